use std::net::{IpAddr, Ipv4Addr};

use redirector_common::{Address, FlowState, Port};

use super::*;

const SECOND: u64 = 1_000_000_000;

impl FlowTable for BTreeMap<Tuple, Flow> {
    fn read(&self, each: &mut dyn FnMut(Vec<(Tuple, Flow)>)) -> Result<(), TableError> {
        for (key, flow) in self {
            each(vec![(*key, *flow)]);
        }
        Ok(())
    }

    fn half(&self, key: &Tuple) -> Result<Option<Flow>, TableError> {
        Ok(self.get(key).copied())
    }

    fn put_half(&mut self, key: &Tuple, flow: &Flow) -> Result<(), TableError> {
        self.insert(*key, *flow);
        Ok(())
    }

    fn remove_half(&mut self, key: &Tuple, _: bool) -> Result<(), TableError> {
        self.remove(key);
        Ok(())
    }
}

fn keep(listed: &BTreeSet<(ServiceId, BackendId)>) -> Keep<'_> {
    Keep { listed: Some(listed), frontends: None, dead_end: None }
}

fn end(host: u8, port: u16) -> (Address, Port) {
    (IpAddr::V4(Ipv4Addr::new(10, 0, 0, host)).into(), Port::new(port))
}

/// A flow of client 9 through frontend 1:80 to backend 2:8080.
fn add(table: &mut BTreeMap<Tuple, Flow>, protocol: Protocol, port: u16, seen: (u64, u64)) {
    let forward = Tuple::new(protocol, end(9, port), end(1, 80));
    let translated = Tuple::new(protocol, end(1, port), end(2, 8080));
    let mut there = Flow::new(Direction::Forward, translated, 1, 1, false, seen.0);
    let mut back = Flow::new(Direction::Reply, forward.reversed(), 1, 1, false, seen.1);
    if protocol == Protocol::Tcp {
        there.set_state(FlowState::SynReceived);
        back.set_state(FlowState::SynReceived);
    }
    table.insert(forward, there);
    table.insert(translated.reversed(), back);
}

#[test]
fn a_flow_is_idle_for_as_long_as_its_less_idle_half() {
    let mut table = BTreeMap::new();
    add(&mut table, Protocol::Tcp, 1000, (0, 0));
    add(&mut table, Protocol::Tcp, 1001, (0, 60 * SECOND));
    add(&mut table, Protocol::Tcp, 1002, (60 * SECOND, 0));
    let collected = collect(&mut table, keep(&BTreeSet::new()), 61 * SECOND).expect("collected");
    assert_eq!((collected.halves, collected.expired), (4, 2));
    assert_eq!(table.len(), 4);
    let flags = collected.in_use.get(Protocol::Tcp, Port::new(80));
    assert_eq!(flags, PortFlags::FRONTEND.union(PortFlags::REMOTE));
    let flags = collected.in_use.get(Protocol::Tcp, Port::new(1001));
    assert_eq!(flags, PortFlags::SNAT);
    assert_eq!(collected.in_use.get(Protocol::Tcp, Port::new(1000)), PortFlags(0));
}

#[test]
fn a_half_alone_goes_after_its_own_timeout() {
    let mut table = BTreeMap::new();
    add(&mut table, Protocol::Tcp, 1000, (0, 0));
    table.pop_first();
    let listed = BTreeSet::new();
    assert_eq!(collect(&mut table, keep(&listed), 60 * SECOND).expect("collected").expired, 0);
    assert_eq!(collect(&mut table, keep(&listed), 61 * SECOND).expect("collected").expired, 1);
    assert!(table.is_empty());
}

/// A table whose client comes again as soon as its forward half is gone, as a packet would have it:
/// with what is left of the flow for its own.
#[derive(Default)]
struct Busy {
    table: BTreeMap<Tuple, Flow>,
    opened: u64,
}

impl FlowTable for Busy {
    fn read(&self, each: &mut dyn FnMut(Vec<(Tuple, Flow)>)) -> Result<(), TableError> {
        self.table.read(each)
    }

    fn half(&self, key: &Tuple) -> Result<Option<Flow>, TableError> {
        self.table.half(key)
    }

    fn put_half(&mut self, key: &Tuple, flow: &Flow) -> Result<(), TableError> {
        self.table.put_half(key, flow)
    }

    fn remove_half(&mut self, key: &Tuple, _: bool) -> Result<(), TableError> {
        let Some(flow) = self.table.remove(key) else {
            return Ok(());
        };
        // A client that has a forward half uses that.
        if flow.direction() == Direction::Forward && self.opened == 0 {
            self.opened = 1000 * SECOND;
            let half = |direction, translated| {
                Flow::new(direction, translated, 2, 2, false, 1000 * SECOND)
            };
            let reply = half(Direction::Reply, key.reversed());
            self.table.entry(flow.translated.reversed()).or_insert(reply);
            self.table.insert(*key, half(Direction::Forward, flow.translated));
        }
        Ok(())
    }
}

#[test]
fn a_client_that_comes_again_meanwhile_has_a_whole_flow() {
    for orphaned in [true, false] {
        let mut busy = Busy::default();
        add(&mut busy.table, Protocol::Udp, 1000, (0, 0));
        let old = (!orphaned).then_some((1, 1));
        let listed = old.into_iter().chain([(2, 2)]).collect();
        let now = if orphaned { SECOND } else { 200 * SECOND };
        let collected = collect(&mut busy, keep(&listed), now).expect("collected");
        assert_eq!(collected.orphaned + collected.expired, 2);
        assert_eq!(busy.table.len(), 2);
        assert!(busy.table.values().all(|half| half.created == busy.opened));
    }
}

#[test]
fn udp_flows_end_with_their_backend() {
    let mut table = BTreeMap::new();
    add(&mut table, Protocol::Tcp, 1000, (0, 0));
    add(&mut table, Protocol::Udp, 1000, (0, 0));
    let listed = BTreeSet::from([(1, 1)]);
    assert_eq!(collect(&mut table, keep(&listed), 1).expect("collected").orphaned, 0);
    let unknown = Keep { listed: None, frontends: None, dead_end: None };
    assert_eq!(collect(&mut table, unknown, 1).expect("collected").orphaned, 0);
    let collected = collect(&mut table, keep(&BTreeSet::new()), 1).expect("collected");
    assert_eq!((collected.halves, collected.orphaned), (2, 2));
    assert!(table.keys().all(|key| key.protocol() == Protocol::Tcp));
}

#[test]
fn udp_flows_end_where_their_frontend_becomes_another_services() {
    let mut table = BTreeMap::new();
    add(&mut table, Protocol::Tcp, 1000, (0, 0));
    add(&mut table, Protocol::Udp, 1000, (0, 0));
    let listed = BTreeSet::from([(1, 1), (2, 1)]);
    let (address, port) = end(1, 80);
    let mut orphaned = |service| {
        let owned = Frontend::new(service, address);
        let frontends = BTreeMap::from(
            Protocol::ALL.map(|protocol| (FrontendKey::new(address, port, protocol), owned)),
        );
        let frontends = Some(&frontends).filter(|_| service != 0);
        let keep = Keep { listed: Some(&listed), frontends, dead_end: None };
        collect(&mut table, keep, 1).expect("collected").orphaned
    };
    assert_eq!((orphaned(0), orphaned(1)), (0, 0));
    assert_eq!((orphaned(2), orphaned(2)), (2, 0));
    assert!(table.len() == 2 && table.keys().all(|key| key.protocol() == Protocol::Tcp));
}

#[test]
fn tcp_flows_that_lose_their_backend_are_led_to_the_dead_end() {
    let mut table = BTreeMap::new();
    add(&mut table, Protocol::Tcp, 1000, (0, 0));
    add(&mut table, Protocol::Tcp, 1001, (0, 0));
    for (_, flow) in table.iter_mut().filter(|(key, _)| {
        key.source_port == Port::new(1000) || key.destination_port == Port::new(1000)
    }) {
        flow.set_state(FlowState::Established);
    }
    let (none, listed) = (BTreeSet::new(), BTreeSet::from([(1, 1)]));
    let (address, port) = end(1, 49152);
    let dead_end = Some(DeadEnd { v4: Some(address), v6: None, first: 49152, last: 49153 });
    let mut led = |listed, dead_end| {
        collect(&mut table, Keep { listed: Some(listed), frontends: None, dead_end }, 1)
            .expect("collected")
    };
    assert_eq!(led(&none, None).led, 0);
    assert_eq!(led(&listed, dead_end).led, 0);
    // The one that is not established will not be waited for.
    let collected = led(&none, dead_end);
    assert_eq!((collected.led, collected.halves), (2, 4));
    let flags = collected.in_use.get(Protocol::Tcp, port);
    assert_eq!(flags.union(PortFlags::LOCAL_BACKEND), flags);
    // It stays there.
    assert_eq!(led(&none, dead_end).led, 0);
    assert_eq!(table.len(), 4);
    let forward = Tuple::new(Protocol::Tcp, end(9, 1000), end(1, 80));
    let half = table[&forward];
    assert_eq!(half.translated, Tuple::new(Protocol::Tcp, end(9, 1000), (address, port)));
    assert!(half.is_local() && half.state() == FlowState::Established);
    let reply = table[&half.translated.reversed()];
    assert_eq!((reply.translated, reply.is_local()), (forward.reversed(), true));
    assert_eq!(reply.direction(), Direction::Reply);
}

/// A client may use one port of its own towards many frontends.
#[test]
fn flows_that_would_look_the_same_there_have_ports_of_their_own() {
    let mut table = BTreeMap::new();
    for frontend in [80, 81, 82] {
        let forward = Tuple::new(Protocol::Tcp, end(9, 1000), end(1, frontend));
        let translated = Tuple::new(Protocol::Tcp, end(1, 50000 + frontend), end(2, 8080));
        let mut flow = Flow::new(Direction::Forward, translated, 1, 1, false, 0);
        flow.set_state(FlowState::Established);
        table.insert(forward, flow);
    }
    let none = BTreeSet::new();
    let (address, _) = end(1, 0);
    let dead_end = Some(DeadEnd { v4: Some(address), v6: None, first: 49152, last: 49153 });
    let keep = Keep { listed: Some(&none), frontends: None, dead_end };
    assert_eq!(collect(&mut table, keep, 1).expect("collected").led, 4);
    let ends = |table: &BTreeMap<Tuple, Flow>| -> Vec<u16> {
        let led = table.values().filter(|flow| flow.is_local());
        let there = led.filter(|flow| flow.direction() == Direction::Forward);
        there.map(|flow| flow.translated.destination_port.number()).collect()
    };
    assert_eq!(ends(&table), [49152, 49153]);
    // The third one's turn comes when one of them has been reset.
    assert_eq!(collect(&mut table, keep, 1).expect("collected").led, 0);
    table.retain(|key, flow| {
        key.destination_port.number() != 80 && flow.translated.source_port.number() != 80
    });
    assert_eq!(collect(&mut table, keep, 1).expect("collected").led, 2);
    assert_eq!(ends(&table), [49153, 49152]);
}
