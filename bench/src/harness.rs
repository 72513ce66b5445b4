//! Running programs many times, each time with the packet of another flow.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, MapData, PerCpuArray, ProgramArray};
use aya::programs::{Program, ProgramFd, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader, Pod};
use redirector::dataplane::verify::verify;
use redirector_tests::test_run::{self, skb_context, xdp_context};

use crate::floor::Floor;
use crate::frame::Frame;
use crate::layout::{FIRST_PORT, Listener, MISSES, Plan, Target, V6_FRAME};
use crate::node::ifindex;

pub(crate) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/redirector-floors"));

// SAFETY: `repr(C)`, without padding, valid for every bit pattern.
unsafe impl Pod for Plan {}
// SAFETY: as above.
unsafe impl Pod for Target {}
// SAFETY: as above.
unsafe impl Pod for Listener {}

/// Where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Hook {
    Xdp,
    Tc,
}

/// The packets of a case: the first flow's, and how the others differ. See [`Plan`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packets {
    pub(crate) hook: Hook,
    pub(crate) ifindex: u32,
    pub(crate) first: Frame,
    pub(crate) flows: u32,
    pub(crate) services: u32,
    pub(crate) source_mask: u32,
    pub(crate) source_port_shift: u32,
    pub(crate) destination_port_shift: u32,
}

/// A shift that leaves nothing of a flow's number.
pub(crate) const CONSTANT: u32 = 31;
/// Before the first packet.
const START: u32 = 12345;

impl Packets {
    /// The packet of one flow.
    pub(crate) fn of_flow(&self, flow: u32) -> Frame {
        let first = self.first;
        let port = |port: u16, more: u32| port.wrapping_add(more as u16);
        let source = low_half(first.source.ip()).wrapping_add((flow & self.source_mask) as u16);
        let source_port = port(first.source.port(), flow >> self.source_port_shift);
        let destination_port = port(
            first.destination.port(),
            (flow >> self.destination_port_shift) + flow % self.services,
        );
        Frame {
            source: SocketAddr::new(with_low_half(first.source.ip(), source), source_port),
            destination: SocketAddr::new(first.destination.ip(), destination_port),
            identification: if first.source.is_ipv4() { !source } else { 0 },
            balance: !fold(
                u32::from(source) + u32::from(source_port) + u32::from(destination_port),
            ),
            ..first
        }
    }

    /// The number of the flow whose packet comes first in a sample.
    pub(crate) fn first_flow(&self) -> u32 {
        START.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) & (self.flows - 1)
    }

    pub(crate) fn plan(&self) -> Result<Plan> {
        let bytes = self.of_flow(0).bytes()?;
        let mut padded = [0; V6_FRAME];
        padded[..bytes.len()].copy_from_slice(&bytes);
        let mut frame = [0; V6_FRAME / 8];
        for (word, bytes) in frame.iter_mut().zip(padded.as_chunks::<8>().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        Ok(Plan {
            frame,
            len: u32::try_from(bytes.len())?,
            state: START,
            flow_mask: self.flows - 1,
            source: low_half(self.first.source.ip()).into(),
            source_mask: self.source_mask,
            source_port: self.first.source.port().into(),
            source_port_shift: self.source_port_shift,
            destination_port: self.first.destination.port().into(),
            destination_port_shift: self.destination_port_shift,
            services: self.services,
            udp: u32::from(self.first.protocol == redirector_common::Protocol::Udp),
            reserved: 0,
        })
    }
}

fn low_half(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(v4) => v4.to_bits() as u16,
        IpAddr::V6(v6) => v6.to_bits() as u16,
    }
}

pub(crate) fn with_low_half(address: IpAddr, low: u16) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() & !0xffff | u32::from(low)).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !0xffff | u128::from(low)).into()),
    }
}

fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// What came of running a program.
#[derive(Clone, Debug)]
pub(crate) struct Ran {
    /// Nanoseconds a packet.
    pub(crate) ns: f64,
    /// The last packet's verdict.
    pub(crate) verdict: u32,
    /// The last packet.
    pub(crate) packet: Vec<u8>,
}

/// The floors, and what runs in front of them and of our programs.
pub(crate) struct Harness {
    ebpf: Ebpf,
    xdp: ProgramArray<MapData>,
    tc: ProgramArray<MapData>,
    plan: Array<MapData, Plan>,
}

impl Harness {
    /// Loads them with tables for so many flows.
    pub(crate) fn load(flows: u32) -> Result<Self> {
        ensure!(
            !OBJECT.is_empty(),
            "built without a compiler for BPF: run `cargo xtask setup`, then again"
        );
        let flows = flows.max(1024);
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("LRU", flows + flows / 4)
            .map_max_entries("LRU_SMALL", flows / 2)
            .map_max_entries("HASH40", flows + flows / 4)
            .map_max_entries("LAZY", flows + flows / 4)
            .map_max_entries("READY", flows + flows / 4)
            .map_max_entries("SETS", flows / 2)
            .load(OBJECT)
            .context("loading the floors")?;
        for (name, program) in ebpf.programs_mut() {
            let loaded = if let Program::Xdp(xdp) = program {
                verify(|| xdp.load())
            } else {
                <&mut SchedClassifier>::try_from(program)
                    .and_then(|program| verify(|| program.load()))
            };
            loaded.with_context(|| format!("loading {name}"))?;
        }
        let mut take = |name: &str| ebpf.take_map(name).with_context(|| format!("no map {name}"));
        let (xdp, tc, plan) = (take("JUMP")?, take("JUMP_TC")?, take("PLAN")?);
        let mut harness =
            Self { xdp: xdp.try_into()?, tc: tc.try_into()?, plan: plan.try_into()?, ebpf };
        harness.fill_maps(flows)?;
        Ok(harness)
    }

    fn fill_maps(&mut self, flows: u32) -> Result<()> {
        let mut ports: Array<_, u64> = self.map_mut("PORT_ARRAY")?;
        for port in 0..10_000 {
            ports.set(u32::from(FIRST_PORT) + port, 1, 0)?;
        }
        let map = self.ebpf.map_mut("PORT_HASH").context("no map PORT_HASH")?;
        let mut ports: aya::maps::HashMap<_, u32, u64> = map.try_into()?;
        for port in FIRST_PORT..FIRST_PORT + 10_000 {
            ports.insert(u32::from(port.to_be()), 1, 0)?;
        }
        // The mask of the sets stands in the first of them, after the tags.
        const SET: usize = 576;
        let map = self.ebpf.map_mut("SETS").context("no map SETS")?;
        let mut sets: Array<_, [u8; SET]> = map.try_into()?;
        let mut first = [0; SET];
        first[16..20].copy_from_slice(&(flows / 2 - 1).to_ne_bytes());
        Ok(sets.set(0, first, 0)?)
    }

    fn map_mut<V: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>> {
        Ok(self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?.try_into()?)
    }

    /// What floors translate to.
    pub(crate) fn set_target(&mut self, target: Target) -> Result<()> {
        let map = self.ebpf.map_mut("DEVICES").context("no map DEVICES")?;
        let mut devices: aya::maps::DevMap<_> = map.try_into()?;
        devices.set(target.ifindex & 63, target.ifindex, None, 0)?;
        Ok(self.map_mut("TARGET")?.set(0, target, 0)?)
    }

    /// The socket that is looked up.
    pub(crate) fn set_listener(&mut self, listener: Listener) -> Result<()> {
        Ok(self.map_mut("LISTENER")?.set(0, listener, 0)?)
    }

    /// A floor, to be run.
    pub(crate) fn program(&self, floor: Floor) -> Result<ProgramFd> {
        self.named(floor.program())
    }

    /// One of our own programs by its name in the object file.
    pub(crate) fn named(&self, name: &str) -> Result<ProgramFd> {
        let program = self.ebpf.program(name).with_context(|| format!("no program {name}"))?;
        Ok(program.fd()?.try_clone()?)
    }

    /// A floor at TC, to be attached.
    pub(crate) fn classifier(&mut self, floor: Floor) -> Result<&mut SchedClassifier> {
        let name = floor.program();
        let program = self.ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
        Ok(program.try_into()?)
    }

    /// Sends packets as live frames out of an interface.
    pub(crate) fn send(&mut self, packets: &Packets, interface: &str, count: u32) -> Result<()> {
        self.plan.set(0, packets.plan()?, 0)?;
        let mut target: Array<_, Target> = self.map_mut("TARGET")?;
        let before = target.get(&0, 0)?;
        target.set(0, Target { ifindex: ifindex(interface)?, ..before }, 0)?;
        let data = packets.of_flow(0).bytes()?;
        let program: &Xdp = self.ebpf.program("l_generate").context("no l_generate")?.try_into()?;
        test_run::send_live(program, &data, 0, count)?;
        Ok(self.map_mut("TARGET")?.set(0, before, 0)?)
    }

    /// How many look-ups have not ended as they should, since this was last asked.
    pub(crate) fn take_misses(&mut self) -> Result<u64> {
        let mut tally: Array<_, u64> = self.map_mut("TALLY")?;
        let misses = tally.get(&MISSES, 0)?;
        tally.set(MISSES, 0, 0)?;
        Ok(misses)
    }

    /// Packets that the floors that count have counted.
    pub(crate) fn counted(&mut self) -> Result<u64> {
        let map = self.ebpf.map("COUNTS").context("no map COUNTS")?;
        let counts: PerCpuArray<_, [u64; 2]> = map.try_into()?;
        Ok(counts.get(&1, 0)?.iter().map(|[packets, _]| packets).sum())
    }

    /// Runs a program on `repeat` packets, one after the other.
    pub(crate) fn run(
        &mut self,
        program: &ProgramFd,
        packets: &Packets,
        repeat: u32,
    ) -> Result<Ran> {
        self.plan.set(0, packets.plan()?, 0)?;
        match packets.hook {
            Hook::Xdp => self.xdp.set(0, program, 0)?,
            Hook::Tc => self.tc.set(0, program, 0)?,
        }
        let front = match packets.hook {
            Hook::Xdp => "f_vary",
            Hook::Tc => "f_vary_tc",
        };
        self.run_alone(front, packets, repeat)
    }

    /// Runs one of our own programs with nothing in front of it.
    pub(crate) fn run_alone(&self, name: &str, packets: &Packets, repeat: u32) -> Result<Ran> {
        let data = packets.of_flow(0).bytes()?;
        let context = match packets.hook {
            Hook::Xdp => xdp_context(packets.ifindex, data.len())?,
            Hook::Tc => skb_context(packets.ifindex, packets.ifindex, 0),
        };
        let program = self.ebpf.program(name).with_context(|| format!("no program {name}"))?;
        let (result, packet) = test_run::run(program, &data, &context, repeat)?;
        Ok(Ran { ns: result.duration.as_secs_f64() * 1e9, verdict: result.return_value, packet })
    }
}
