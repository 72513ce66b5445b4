//! Single packets through single programs: `BPF_PROG_TEST_RUN`.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{
        Array, HashMap, MapData, PerCpuArray, RingBuf,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{Program, SchedClassifier, Xdp, XdpMode},
};
use redirector::dataplane::{loader::OBJECT, pins::Hook, watcher};
use redirector_common::{
    Affinity, AffinityKey, CacheSet, CachedFlow, Event, FirstFragment, Flow, FragmentKey, Reason,
    SourceBits, SourceRange, Tuple, cache,
    map_name::MapName,
    node::{Counter, CounterBlock, MAX_SLOTS},
    reason::REASON_CAPACITY,
};

use crate::test_run::{self, skb_context, xdp_context};

/// Elements of the flow cache for each CPU: few, so that flows meet in them.
pub const CACHE_SETS: u32 = 16;

/// What a program answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `XDP_PASS`, `TC_ACT_OK`.
    Pass,
    /// `XDP_DROP`, `TC_ACT_SHOT`.
    Drop,
    /// `XDP_REDIRECT`, `TC_ACT_REDIRECT`.
    Redirect,
}

impl Verdict {
    fn from_code(hook: Hook, code: u32) -> Result<Self> {
        Ok(match (hook, code) {
            (Hook::Xdp, 1) | (Hook::Ingress | Hook::Egress, 2) => Self::Drop,
            (Hook::Xdp, 2) | (Hook::Ingress | Hook::Egress, 0) => Self::Pass,
            (Hook::Xdp, 4) | (Hook::Ingress | Hook::Egress, 7) => Self::Redirect,
            _ => bail!("{} answered {code}", hook.name()),
        })
    }
}

/// What one packet brought about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The program's answer.
    pub verdict: Verdict,
    /// The packet as it left the program.
    pub packet: Vec<u8>,
    /// What was counted, over all interfaces and CPUs.
    pub counted: BTreeMap<&'static str, Counted>,
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The programs, loaded with maps of their own. Nothing is attached or pinned.
#[derive(Debug)]
pub struct Programs {
    ebpf: Ebpf,
}

/// What the kernel says of a loaded program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Instructions that the verifier walked.
    pub verified: u32,
    /// Bytes of machine code.
    pub machine_code: u32,
}

impl Programs {
    /// Loads them. They look routes up in the namespace of the thread that runs them.
    ///
    /// # Errors
    ///
    /// If the kernel refuses one: the message holds what the verifier said. This needs root.
    pub fn load() -> Result<Self> {
        // Both halves of more flows than any test has.
        Self::load_with_flows(16384)
    }

    /// Loads them with room for so many halves of flows.
    ///
    /// # Errors
    ///
    /// As [`Self::load`].
    pub fn load_with_flows(capacity: u32) -> Result<Self> {
        let cpus = aya::util::online_cpus().map_err(|(what, error)| anyhow!("{what}: {error}"))?;
        let cpus = cpus.into_iter().max().unwrap_or_default() + 1;
        Self::load_by(
            EbpfLoader::new()
                .map_max_entries(MapName::Flows.name(), capacity)
                .map_max_entries(MapName::FlowCache.name(), CACHE_SETS * cpus),
        )
    }

    fn load_by(loader: &mut EbpfLoader<'_>) -> Result<Self> {
        let mut ebpf = loader.load(OBJECT)?;
        for (name, program) in ebpf.programs_mut() {
            #[expect(clippy::wildcard_enum_match_arm, reason = "aya's enum; others we do not have")]
            let loaded = match program {
                Program::Xdp(program) => program.load(),
                Program::CgroupSockAddr(program) => program.load(),
                other => <&mut SchedClassifier>::try_from(other).and_then(SchedClassifier::load),
            };
            loaded.with_context(|| format!("loading {name}"))?;
        }
        Ok(Self { ebpf })
    }

    /// Attaches the XDP program to an interface of this thread's namespace, in the driver, for as
    /// long as `self` lives.
    ///
    /// # Errors
    ///
    /// If the interface does not take it.
    pub fn attach_xdp(&mut self, interface: &str) -> Result<()> {
        let program = self.ebpf.program_mut(functions(Hook::Xdp)[0]).context("no such program")?;
        <&mut Xdp>::try_from(program)?.attach(interface, XdpMode::Driver)?;
        Ok(())
    }

    /// How large each program is, by name.
    ///
    /// # Errors
    ///
    /// If the kernel does not say.
    pub fn sizes(&self) -> Result<BTreeMap<String, Size>> {
        let size = |(name, program): (&str, &Program)| {
            let info = program.info()?;
            let verified = info.verified_instruction_count().context("no instruction count")?;
            Ok((name.to_owned(), Size { verified, machine_code: info.size_jitted() }))
        };
        self.ebpf.programs().map(size).collect()
    }

    /// Runs one packet that came in by (or, at egress, goes out of) the interface. At TC it may be
    /// a super-packet, which will be cut into segments with so many bytes of payload.
    ///
    /// # Errors
    ///
    /// If the kernel refuses to run it, or the program's answer has no meaning.
    pub fn run(
        &self,
        (hook, function): (Hook, &str),
        ifindex: u32,
        packet: &[u8],
        segment: u32,
    ) -> Result<Outcome> {
        let before = self.counters()?;
        let context = match hook {
            Hook::Xdp => xdp_context(ifindex, packet.len())?,
            // `ingress_ifindex` is zero at egress: made by a socket of this host.
            Hook::Ingress => skb_context(ifindex, ifindex, segment),
            Hook::Egress => skb_context(ifindex, 0, segment),
        };
        let program = self.ebpf.program(function);
        let program = program.with_context(|| format!("no program {function}"))?;
        let (result, output) = test_run::run(program, packet, &context, 1)
            .with_context(|| format!("running {function}"))?;
        Ok(Outcome {
            verdict: Verdict::from_code(hook, result.return_value)?,
            packet: output,
            counted: difference(&before, &self.counters()?),
        })
    }

    /// Writes an element of an array map.
    ///
    /// # Errors
    ///
    /// If there is no such map or element.
    pub fn set<V: Pod>(&mut self, map: MapName, index: u32, value: V) -> Result<()> {
        Ok(self.array(map)?.set(index, value, 0)?)
    }

    /// Changes an element of an array map.
    ///
    /// # Errors
    ///
    /// If there is no such map or element.
    pub fn change<V: Pod>(
        &mut self,
        map: MapName,
        index: u32,
        change: impl FnOnce(&mut V),
    ) -> Result<()> {
        let mut array = self.array(map)?;
        let mut value = array.get(&index, 0)?;
        change(&mut value);
        Ok(array.set(index, value, 0)?)
    }

    fn array<V: Pod>(&mut self, map: MapName) -> Result<Array<&mut MapData, V>> {
        let map = self.ebpf.map_mut(map.name()).with_context(|| format!("no map {map:?}"))?;
        Ok(Array::try_from(map)?)
    }

    /// Writes an entry of a hash map.
    ///
    /// # Errors
    ///
    /// If there is no such map, or it is full.
    pub fn insert<K: Pod, V: Pod>(&mut self, map: MapName, key: K, value: V) -> Result<()> {
        let map = self.ebpf.map_mut(map.name()).with_context(|| format!("no map {map:?}"))?;
        let mut map: HashMap<&mut MapData, K, V> = HashMap::try_from(map)?;
        Ok(map.insert(key, value, 0)?)
    }

    /// Writes a source range.
    ///
    /// # Errors
    ///
    /// If the map is full.
    pub fn admit(&mut self, range: SourceRange) -> Result<()> {
        let name = MapName::SourceRanges.name();
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        let mut map: LpmTrie<&mut MapData, SourceBits, u32> = LpmTrie::try_from(map)?;
        let key = Key::new(range.prefix_len, range.bits);
        Ok(map.insert(&key, SourceRange::ADMITTED, 0)?)
    }

    /// Remembers a client.
    ///
    /// # Errors
    ///
    /// If there is no map for it.
    pub fn keep(&mut self, key: AffinityKey, affinity: Affinity) -> Result<()> {
        let name = MapName::Affinity.name();
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        let mut map: HashMap<&mut MapData, AffinityKey, Affinity> = HashMap::try_from(map)?;
        Ok(map.insert(key, affinity, 0)?)
    }

    /// What was told of packets since this was last asked, with the bytes of each.
    ///
    /// # Errors
    ///
    /// If the map can't be read.
    pub fn events(&mut self) -> Result<Vec<(Event, Vec<u8>)>> {
        let map = self.ebpf.map_mut(MapName::Events.name()).context("no map EVENTS")?;
        let mut ring: RingBuf<&mut MapData> = RingBuf::try_from(map)?;
        let mut events = Vec::new();
        while let Some(item) = ring.next() {
            let (event, bytes) = watcher::parse(&item).context("a record that is no event")?;
            events.push((event, bytes.to_vec()));
        }
        Ok(events)
    }

    /// All halves of all flows.
    ///
    /// # Errors
    ///
    /// If the map can't be read.
    pub fn flows(&self) -> Result<BTreeMap<Tuple, Flow>> {
        let map = self.ebpf.map(MapName::Flows.name()).context("no map FLOWS")?;
        let map: HashMap<&MapData, Tuple, Flow> = HashMap::try_from(map)?;
        let mut flows = map.iter().collect::<Result<BTreeMap<_, _>, _>>()?;
        for entry in self.cached()? {
            if let Some(flow) = flows.get_mut(&entry.key) {
                let (packets, bytes) = entry.pending(flow);
                flow.packets += packets;
                flow.bytes += bytes;
            }
        }
        Ok(flows)
    }

    /// What stands in the flow cache, also what is no longer believed.
    ///
    /// # Errors
    ///
    /// If the map can't be read.
    pub fn cached(&self) -> Result<Vec<CachedFlow>> {
        let map = self.ebpf.map(MapName::FlowCache.name()).context("no map FLOW_CACHE")?;
        let map: Array<&MapData, CacheSet> = Array::try_from(map)?;
        let sets = map.iter().collect::<Result<Vec<_>, _>>()?;
        Ok(sets.iter().flat_map(|set| set.ways).filter(|entry| entry.epoch != 0).collect())
    }

    /// Routes have changed: makes void what the flow cache holds.
    ///
    /// # Errors
    ///
    /// If the map can't be written.
    pub fn raise_epochs(&mut self) -> Result<()> {
        for index in 0..cache::EPOCHS {
            self.change(MapName::Epochs, index, |epoch: &mut u32| *epoch += 2)?;
        }
        Ok(())
    }

    /// Removes all flows.
    ///
    /// # Errors
    ///
    /// If the map can't be written.
    pub fn clear_flows(&mut self) -> Result<()> {
        let keys: Vec<Tuple> = self.flows()?.into_keys().collect();
        let map = self.ebpf.map_mut(MapName::Flows.name()).context("no map FLOWS")?;
        let mut map: HashMap<&mut MapData, Tuple, Flow> = HashMap::try_from(map)?;
        for key in keys {
            map.remove(&key)?;
        }
        self.raise_epochs()
    }

    /// Forgets the first fragments of all packets.
    ///
    /// # Errors
    ///
    /// If the map can't be written.
    pub fn clear_fragments(&mut self) -> Result<()> {
        let name = MapName::Fragments.name();
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        let mut map: HashMap<&mut MapData, FragmentKey, FirstFragment> = HashMap::try_from(map)?;
        let keys: Result<Vec<FragmentKey>, _> = map.keys().collect();
        for key in keys? {
            map.remove(&key)?;
        }
        Ok(())
    }

    /// By Reason, over all interfaces and CPUs.
    fn counters(&self) -> Result<Vec<Counter>> {
        let map = self.ebpf.map(MapName::Counters.name()).context("no map COUNTERS")?;
        let map: PerCpuArray<&MapData, CounterBlock> = PerCpuArray::try_from(map)?;
        let mut sums = vec![Counter::default(); REASON_CAPACITY as usize];
        for slot in 0..MAX_SLOTS {
            for block in map.get(&slot, 0)?.iter() {
                for (sum, counter) in sums.iter_mut().zip(&block.reasons) {
                    sum.packets += counter.packets;
                    sum.bytes += counter.bytes;
                }
            }
        }
        Ok(sums)
    }
}

/// The names of a hook's programs in the object. There are two for XDP, in the driver and generic.
#[must_use]
pub const fn functions(hook: Hook) -> &'static [&'static str] {
    match hook {
        Hook::Xdp => &["redirector_xdp", "redirector_gen"],
        Hook::Ingress => &["redirector_in"],
        Hook::Egress => &["redirector_out"],
    }
}

fn difference(before: &[Counter], after: &[Counter]) -> BTreeMap<&'static str, Counted> {
    let differences = Reason::ALL.iter().map(|reason| {
        let (before, after) = (&before[*reason as usize], &after[*reason as usize]);
        let packets = after.packets - before.packets;
        (reason.name(), Counted { packets, bytes: after.bytes - before.bytes })
    });
    differences.filter(|(_, counted)| *counted != Counted::default()).collect()
}

/// Asserts that every half in `flows` has its partner.
///
/// # Errors
///
/// If one has not.
pub fn check_pairs(flows: &BTreeMap<Tuple, Flow>) -> Result<()> {
    for (key, flow) in flows {
        let partner = flows.get(&flow.translated.reversed());
        let back = partner.map(|partner| partner.translated.reversed());
        ensure!(back == Some(*key), "{key:?} has no partner at {:?}", flow.translated.reversed());
    }
    Ok(())
}
