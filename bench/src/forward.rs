//! The least that can forward: an XDP program that looks nothing up.

use anyhow::{Context as _, Result, ensure};
use aya::maps::{DevMap, HashMap};
use aya::programs::{SchedClassifier, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, Pod};
use redirector::dataplane::verify::verify;
use redirector_tests::namespace::Namespace;

use crate::harness::OBJECT;
use crate::layout::Way;

// SAFETY: `repr(C)`, without padding, valid for every bit pattern.
unsafe impl Pod for Way {}

/// The program that passes everything.
pub(crate) const PASS: &str = "f_return";

/// Programs for live frames: plain forwarding, a generator, and ends that count.
pub(crate) fn load() -> Result<Ebpf> {
    ensure!(
        !OBJECT.is_empty(),
        "built without a compiler for BPF: run `cargo xtask setup`, then again"
    );
    let mut ebpf = EbpfLoader::new().map_max_entries("CACHE", 1).load(OBJECT)?;
    for name in [PASS, "l_generate", "l_forward", "l_server", "l_client"] {
        let program: &mut Xdp = ebpf.program_mut(name).context("no program")?.try_into()?;
        verify(|| program.load()).with_context(|| format!("loading {name}"))?;
    }
    let program = ebpf.program_mut("l_server_tc").context("no l_server_tc")?;
    let program = <&mut SchedClassifier>::try_from(program)?;
    verify(|| program.load()).context("loading l_server_tc")?;
    Ok(ebpf)
}

/// Attaches one of them to an interface of the namespace that the thread is in.
pub(crate) fn attach(ebpf: &mut Ebpf, name: &str, interface: &str) -> Result<()> {
    let program: &mut Xdp = ebpf.program_mut(name).context("no program")?.try_into()?;
    program
        .attach(interface, XdpMode::Driver)
        .map(drop)
        .with_context(|| format!("attaching {name} to {interface}"))
}

/// Makes a node send what comes in by `eth0` out of `eth1`, to a host with one interface, and the
/// reverse.
pub(crate) fn through(
    ebpf: &mut Ebpf,
    (client, node, server): (&Namespace, &Namespace, &Namespace),
) -> Result<()> {
    let ends = [("eth0", client), ("eth1", server)];
    for (slot, ((from, _), (to, host))) in (1..).zip(ends.into_iter().zip(ends.into_iter().rev())) {
        let (own, next) = (node.mac(from)?, host.mac("eth0")?);
        let way = Way { link: link([next, node.mac(to)?]), own: words(own), reserved: 0, slot };
        let (from, to) = (node.ifindex(from)?, node.ifindex(to)?);
        let map = ebpf.map_mut("WAYS").context("no WAYS")?;
        HashMap::<_, u32, Way>::try_from(map)?.insert(from, way, 0)?;
        let map = ebpf.map_mut("PORTS_OUT").context("no PORTS_OUT")?;
        node.enter(|| Ok(DevMap::try_from(map)?.set(slot, to, None, 0)?))?;
    }
    for (interface, _) in ends {
        node.enter(|| attach(ebpf, "l_forward", interface))?;
    }
    Ok(())
}

/// The same with a program of its own.
pub(crate) fn between(hosts: (&Namespace, &Namespace, &Namespace)) -> Result<Ebpf> {
    let mut ebpf = load()?;
    through(&mut ebpf, hosts)?;
    Ok(ebpf)
}

fn link(addresses: [[u8; 6]; 2]) -> [u32; 3] {
    let bytes = addresses.concat();
    let words = bytes.as_chunks::<4>().0;
    std::array::from_fn(|i| u32::from_ne_bytes(words[i]))
}

fn words(mac: [u8; 6]) -> [u16; 3] {
    let words = mac.as_chunks::<2>().0;
    std::array::from_fn(|i| u16::from_ne_bytes(words[i]))
}
