//! redirector's programs, with services and flows.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::maps::{Array, HashMap, IterableMap as _, MapData, PerCpuArray};
use aya::programs::{ProgramFd, SchedClassifier, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, Pod};
use redirector::dataplane::batch;
use redirector::dataplane::loader::{OBJECT, Role};
use redirector::dataplane::verify::verify;
use redirector_common::cache::EPOCHS;
use redirector_common::map_name::MapName;
use redirector_common::node::{CounterBlock, MAX_SLOTS, PortBlock, port_index};
use redirector_common::ring;
use redirector_common::service::{MAGLEV_LINE, MaglevLine};
use redirector_common::{
    Address, Backend, Direction, Family, Flow, FlowState, Frontend, FrontendKey, Interface, Manner,
    NodeConfig, Port, PortFlags, Protocol, Reason, Service, Tuple,
};

use crate::frame::Frame;
use crate::harness::{Hook, with_low_half};
use crate::layout::FIRST_PORT;
use crate::node::{BACKENDS, NEXT, NODE, NODE_INSIDE, ifindex};

pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// Where backends elsewhere listen.
pub(crate) const BACKEND_PORT: u16 = 9090;
/// Backends of every service.
pub(crate) const BACKEND_COUNT: u32 = 256;
/// Port of the frontend with a backend on this host.
pub(crate) const LOCAL_FRONTEND: u16 = 8000;
/// Port of the frontend whose connections that backend's socket accepts itself.
pub(crate) const STEERED_FRONTEND: u16 = 8200;
/// Where that backend listens.
pub(crate) const LOCAL_BACKEND: u16 = 8080;
/// First port of the translation block.
pub(crate) const SNAT_FIRST: u16 = 32768;
/// Ports in it.
const SNAT_COUNT: u16 = 28232;
/// Entries of a service's table: lines, and the prime that the agent would choose.
const TABLE_LINES: u32 = 64;
const TABLE_SIZE: u32 = 1021;

/// Elements of the flow cache for each CPU, as the agent makes it on a machine with enough memory.
const CACHE_SETS: u32 = 32768;

/// Our programs, with maps of their own. Nothing is attached or pinned.
pub(crate) struct Ours {
    ebpf: Ebpf,
}

impl Ours {
    /// Loads them, with so many services in each family and room for so many halves of flows.
    pub(crate) fn load(halves: u32, services: u32) -> Result<Self> {
        ensure!(
            !OBJECT.is_empty(),
            "built without its eBPF programs: run `cargo xtask setup`, then build again"
        );
        let lines = 2 * (services + 1) * TABLE_LINES;
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(MapName::Flows.name(), halves)
            .map_max_entries(MapName::FlowRing.name(), ring::slots(halves))
            .map_max_entries(MapName::FlowCache.name(), CACHE_SETS * cpus()?)
            .map_max_entries(MapName::Maglev.name(), lines.max(65536))
            .load(OBJECT)
            .context("loading redirector's programs")?;
        for role in [Role::Driver, Role::Generic, Role::Ingress, Role::Egress] {
            let name = role.name();
            let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
            match role {
                Role::Driver | Role::Generic => {
                    let program = <&mut Xdp>::try_from(program)?;
                    verify(|| program.load())?;
                }
                Role::Ingress | Role::Egress => {
                    let program = <&mut SchedClassifier>::try_from(program)?;
                    verify(|| program.load())?;
                }
            }
        }
        let mut ours = Self { ebpf };
        ours.configure(services, ring::slots(halves))?;
        Ok(ours)
    }

    /// Attaches the XDP program to interfaces of the namespace that the thread is in.
    pub(crate) fn attach(&mut self, interfaces: &[&str]) -> Result<()> {
        let name = Role::Driver.name();
        let program = self.ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
        let program: &mut Xdp = program.try_into()?;
        for interface in interfaces {
            program
                .attach(interface, XdpMode::Driver)
                .with_context(|| format!("attaching {name} to {interface}"))?;
        }
        Ok(())
    }

    /// The program for what comes in at TC.
    pub(crate) fn ingress(&mut self) -> Result<&mut SchedClassifier> {
        let name = Role::Ingress.name();
        let program = self.ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
        Ok(program.try_into()?)
    }

    fn configure(&mut self, services: u32, ring_slots: u32) -> Result<()> {
        let node = NodeConfig {
            snat_first: SNAT_FIRST,
            snat_count: SNAT_COUNT,
            lookup_ifindex: ifindex("lo")?,
            cache_sets: CACHE_SETS,
            ring_slots,
            ..NodeConfig::default()
        };
        self.array(MapName::Node)?.set(0, node, 0)?;
        for (slot, (name, address)) in (1..).zip([("eth0", NODE), ("eth1", NODE_INSIDE)]) {
            let [v4, v6] = FAMILIES.map(|family| address.of(family).into());
            let value = Interface::new(slot, v4, v6, true);
            self.array(MapName::Interfaces)?.set(ifindex(name)?, value, 0)?;
        }
        for family in FAMILIES {
            let mut peers: HashMap<_, Address, u32> = self.hash(MapName::Peers)?;
            peers.insert(Address::from(NEXT.of(family)), 1, 0)?;
        }
        for (number, family) in (0..).zip(FAMILIES) {
            self.add_services(number, family, services)?;
        }
        self.mark_ports(services)
    }

    fn add_services(&mut self, number: u32, family: Family, services: u32) -> Result<()> {
        let first_backend = 1 + number * (BACKEND_COUNT + 1);
        let mut backends: Array<_, Backend> = self.array(MapName::Backends)?;
        for i in 0..BACKEND_COUNT {
            let address = backend_address(family, i).into();
            backends.set(
                first_backend + i,
                Backend::remote(address, Port::new(BACKEND_PORT)),
                0,
            )?;
        }
        let local = first_backend + BACKEND_COUNT;
        backends.set(local, Backend::local(Port::new(LOCAL_BACKEND)), 0)?;
        let first_service = 1 + number * (services + 1);
        let local_service = services;
        for i in 0..=services {
            let id = first_service + i;
            let line = (id - 1) * TABLE_LINES;
            let mut tables: Array<_, MaglevLine> = self.array(MapName::Maglev)?;
            for n in 0..TABLE_LINES {
                // Any order that has nothing to do with the flows'.
                let entries = std::array::from_fn(|k| {
                    let position = n * MAGLEV_LINE + k as u32;
                    let backend = (position + i).wrapping_mul(0x9e37_79b1) >> 24;
                    if i == local_service { local } else { first_backend + backend }
                });
                tables.set(line + n, MaglevLine { entries }, 0)?;
            }
            let table_offset = line * MAGLEV_LINE;
            let service = Service { table_offset, table_size: TABLE_SIZE, ..Service::default() };
            self.array(MapName::Services)?.set(id, service, 0)?;
            let address = NODE.of(family).into();
            let port =
                if i == local_service { LOCAL_FRONTEND } else { FIRST_PORT + u16::try_from(i)? };
            let frontend = Frontend::new(id, address);
            let mut frontends: HashMap<_, FrontendKey, Frontend> = self.hash(MapName::Frontends)?;
            for protocol in Protocol::ALL {
                let key = FrontendKey::new(address, Port::new(port), protocol);
                frontends.insert(key, frontend, 0)?;
            }
            if i == local_service {
                let key = FrontendKey::new(address, Port::new(STEERED_FRONTEND), Protocol::Tcp);
                frontends.insert(key, frontend, 0)?;
            }
        }
        Ok(())
    }

    fn mark_ports(&mut self, services: u32) -> Result<()> {
        let remote = PortFlags::FRONTEND.union(PortFlags::REMOTE);
        let mut blocks = BTreeMap::<u32, PortBlock>::new();
        for protocol in Protocol::ALL {
            let frontends = (FIRST_PORT..).take(services as usize).map(|port| (port, remote));
            let replies =
                (SNAT_FIRST..).take(SNAT_COUNT.into()).map(|port| (port, PortFlags::SNAT));
            let local =
                [(LOCAL_FRONTEND, PortFlags::FRONTEND), (LOCAL_BACKEND, PortFlags::LOCAL_BACKEND)];
            let steered = (protocol == Protocol::Tcp)
                .then_some((STEERED_FRONTEND, PortFlags::FRONTEND.union(PortFlags::STEER)));
            for (port, flags) in frontends.chain(replies).chain(local).chain(steered) {
                let (block, byte) = port_index(protocol, Port::new(port));
                blocks.entry(block).or_default().flags[byte] |= flags.0;
            }
        }
        let mut ports: Array<_, PortBlock> = self.array(MapName::Ports)?;
        for (index, block) in blocks {
            ports.set(index, block, 0)?;
        }
        Ok(())
    }

    fn array<V: Pod>(&mut self, map: MapName) -> Result<Array<&mut MapData, V>> {
        let map = self.ebpf.map_mut(map.name()).with_context(|| format!("no map {map:?}"))?;
        Ok(Array::try_from(map)?)
    }

    fn hash<K: Pod, V: Pod>(&mut self, map: MapName) -> Result<HashMap<&mut MapData, K, V>> {
        let map = self.ebpf.map_mut(map.name()).with_context(|| format!("no map {map:?}"))?;
        Ok(HashMap::try_from(map)?)
    }

    /// A program, to be run.
    pub(crate) fn program(&self, hook: Hook) -> Result<ProgramFd> {
        let name = match hook {
            Hook::Xdp => Role::Driver.name(),
            Hook::Tc => Role::Ingress.name(),
        };
        let program = self.ebpf.program(name).with_context(|| format!("no program {name}"))?;
        Ok(program.fd()?.try_clone()?)
    }

    /// Records flows, each the packet that comes in and the tuple that it leaves with.
    pub(crate) fn add_flows(
        &mut self,
        local: bool,
        manner: Manner,
        flows: impl Iterator<Item = (Frame, SocketAddr, SocketAddr)>,
    ) -> Result<()> {
        let now = redirector::dataplane::gc::now();
        let mut map: HashMap<_, Tuple, Flow> = self.hash(MapName::Flows)?;
        for (frame, source, destination) in flows {
            let key = tuple(frame.protocol, frame.source, frame.destination);
            let translated = tuple(frame.protocol, source, destination);
            let state = match frame.protocol {
                Protocol::Tcp => FlowState::Established,
                Protocol::Udp => FlowState::Replied,
            };
            let half = |direction, translated| {
                let mut flow = Flow::new(direction, translated, 1, 1, local, now);
                flow.set_state(state);
                flow.set_manner(manner);
                flow
            };
            map.insert(key, half(Direction::Forward, translated), 0)?;
            map.insert(translated.reversed(), half(Direction::Reply, key.reversed()), 0)?;
        }
        Ok(())
    }

    /// All halves of all flows.
    pub(crate) fn flows(&self) -> Result<Vec<(Tuple, Flow)>> {
        let map = self.ebpf.map(MapName::Flows.name()).context("no map FLOWS")?;
        let map: HashMap<&MapData, Tuple, Flow> = HashMap::try_from(map)?;
        Ok(batch::read_all(map.map())?)
    }

    /// Removes all flows and says how many halves there were.
    pub(crate) fn clear_flows(&mut self) -> Result<usize> {
        let flows = self.flows()?;
        let mut map: HashMap<_, Tuple, Flow> = self.hash(MapName::Flows)?;
        for (key, _) in &flows {
            map.remove(key)?;
        }
        // The cache has them, too. By two, because programs set the lowest bit.
        let mut epochs: Array<_, u32> = self.array(MapName::Epochs)?;
        for index in 0..EPOCHS {
            let epoch = epochs.get(&index, 0)?.wrapping_add(2);
            epochs.set(index, epoch, 0)?;
        }
        Ok(flows.len())
    }

    /// Packets counted for a Reason, over all interfaces and CPUs.
    pub(crate) fn counted(&self, reason: Reason) -> Result<u64> {
        let map = self.ebpf.map(MapName::Counters.name()).context("no map COUNTERS")?;
        let map: PerCpuArray<&MapData, CounterBlock> = PerCpuArray::try_from(map)?;
        let mut sum = 0;
        for slot in 0..MAX_SLOTS {
            for block in map.get(&slot, 0)?.iter() {
                sum += block.reasons[reason as usize].packets;
            }
        }
        Ok(sum)
    }
}

pub(crate) fn tuple(protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Tuple {
    let end = |end: SocketAddr| (end.ip().into(), Port::new(end.port()));
    Tuple::new(protocol, end(source), end(destination))
}

/// The address of a backend.
pub(crate) fn backend_address(family: Family, number: u32) -> std::net::IpAddr {
    with_low_half(BACKENDS.of(family), (number % BACKEND_COUNT) as u16)
}

/// One more than the largest number of a CPU that is online.
fn cpus() -> Result<u32> {
    let cpus = aya::util::online_cpus().map_err(|(what, error)| anyhow!("{what}: {error}"))?;
    Ok(cpus.into_iter().max().unwrap_or_default() + 1)
}
