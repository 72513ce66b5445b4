//! What the verifier of the running kernel says of every program. Needs root.
//!
//! `cargo xtask kernels` runs this on each kernel and reads the lines that begin with `verifier `.

mod load;

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    EbpfLoader,
    maps::{Map, MapData},
};
use aya_obj::Object;
use aya_obj::btf::BtfFeatures;
use load::{Kind, load, load_types};
use redirector::dataplane::loader::OBJECT;
use std::collections::HashSet;
use std::os::fd::{AsFd as _, AsRawFd as _};

#[test]
fn every_program_is_accepted() -> Result<()> {
    let maps = EbpfLoader::new().load(OBJECT)?;
    let mut object = Object::parse(OBJECT)?;
    // Every kernel that we run on knows them all.
    let known = BtfFeatures::new(true, true, true, true, true, true, true, true);
    let types = object.fixup_and_sanitize_btf(&known)?.context("the object has no types")?;
    let types = load_types(&types.to_bytes())?;
    let definitions = std::mem::take(&mut object.maps);
    let mut bound = Vec::new();
    for (name, definition) in &definitions {
        let map = maps.map(name).with_context(|| format!("no map {name}"))?;
        bound.push((name.as_str(), data(map)?.fd().as_fd().as_raw_fd(), definition));
    }
    let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_maps(bound.into_iter(), &text)?;
    object.relocate_calls(&text)?;

    let mut refused = 0;
    ensure!(!object.programs.is_empty(), "the object has no programs");
    for (name, program) in &object.programs {
        let function = &object.functions[&program.function_key()];
        let (accepted, log) = load(Kind::of(&program.section)?, function, &types)?;
        match accepted {
            Ok(()) => {
                let verified = number_after(&log, "processed ").context("no count in the log")?;
                let stack = deepest(&log).context("no stack in the log")?;
                println!("verifier {name} {verified} {stack}");
            }
            Err(error) => {
                refused += 1;
                println!("verifier {name} refused: {error}\n{}", last_lines(&log));
            }
        }
    }
    ensure!(refused == 0, "{refused} programs are refused");
    Ok(())
}

fn data(map: &Map) -> Result<&MapData> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "aya's enum; the rest we do not use")]
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::PerCpuLruHashMap(data)
        | Map::RingBuf(data) => Ok(data),
        other => bail!("a kind of map that this test does not know: {other:?}"),
    }
}

/// Bytes of stack of the function that takes most of it: `stack depth 0+344+56`.
fn deepest(log: &str) -> Option<u32> {
    let (_, rest) = log.rsplit_once("stack depth ")?;
    let depths = rest.split_whitespace().next()?.split('+');
    depths.filter_map(|depth| depth.parse().ok()).max()
}

/// The number after the last `word`: `processed 6369 insns (limit 1000000) …`.
fn number_after(log: &str, word: &str) -> Option<u32> {
    let (_, rest) = log.rsplit_once(word)?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
