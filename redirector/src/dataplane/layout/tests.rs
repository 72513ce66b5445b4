//! Whatever changes in whatever order, what is written bit by bit is what would be laid out.

use proptest::prelude::*;
use redirector_common::{Peer, Protocol};

use super::*;
use crate::dataplane::delta::delta;
use crate::dataplane::encode::encode;
use crate::model::desired::NodeAddresses;
use crate::model::state::Rank;
use crate::model::{
    BackendAddress, BackendSpec, Forwarding, FrontendSpec, Service, Source, TrafficPolicy,
};

const SNAT: RangeInclusive<u16> = 50_000..=50_001;
const CAPACITY: Capacity = Capacity { services: 4096, backends: 4096, lines: 262_144 };

fn node() -> NodeAddresses {
    let ip = |text: &str| text.parse().expect("an address");
    NodeAddresses {
        chosen: vec![ip("192.0.2.10"), ip("2001:db8::10")],
        host: [ip("192.0.2.10"), ip("2001:db8::10")].into(),
        nodes: [ip("192.0.2.10"), ip("192.0.2.20")].map(|node| (node, Peer::taking())).into(),
        ..NodeAddresses::default()
    }
}

fn mk_service(name: u32, port: u16, backends: impl IntoIterator<Item = u8>) -> Service {
    let key =
        ServiceKey { source: Source::NodePort, namespace: None, name: format!("service-{name}") };
    let at = |host: u8| match host {
        0 => BackendAddress::Local,
        host => BackendAddress::At([10, 0, 0, host].into()),
    };
    Service {
        frontends: vec![FrontendSpec { address: None, port, protocol: Protocol::Tcp }],
        backends: backends.into_iter().map(|host| BackendSpec::new(at(host), 8080)).collect(),
        ..Service::new(key)
    }
}

/// What an agent keeps, with maps that take every write.
struct Kept {
    state: State,
    actual: Contents,
    lines: BTreeMap<u32, MaglevLine>,
    layout: Layout,
}

impl Kept {
    fn new(services: impl IntoIterator<Item = Service>) -> Self {
        let ranked = services.into_iter().map(|it| (Rank { source: 1, order: 0 }, it));
        let state = State::new(node(), ranked);
        let mut cursors = Cursors::default();
        let (desired, empty, no_lines) = (state.all(), Contents::default(), BTreeMap::new());
        let encoded = encode(&desired, &empty, &no_lines, SNAT, CAPACITY, &mut cursors);
        let Encoded { contents: actual, lines } = encoded.expect("there is room");
        let layout = Layout::new(&state, &desired, &actual, SNAT, CAPACITY, cursors);
        Self { state, actual, lines: lines.into_iter().collect(), layout }
    }

    /// Carries out what was changed in the state. Returns how many entries were looked at, and
    /// how many were written.
    fn follow(&mut self) -> (usize, usize) {
        let dirty = self.state.take_dirty();
        let step = self.layout.change(&self.state, &dirty, &self.actual, &self.lines);
        let step = step.expect("it fits");
        let (before, after) = (&step.before, &step.after);
        let looked_at = before.slots.len()
            + after.slots.len()
            + before.backends.len()
            + after.backends.len()
            + before.frontends.len()
            + after.frontends.len();
        let written = step.lines.len()
            + delta(&before.slots, &after.slots).set.len()
            + delta(&before.backends, &after.backends).set.len()
            + delta(&before.services, &after.services).set.len()
            + delta(&before.infos, &after.infos).set.len()
            + delta(&before.frontends, &after.frontends).set.len();
        self.lines.extend(step.lines.iter().copied());
        self.layout.commit(step, &mut self.actual);
        (looked_at, written)
    }

    fn check(&self) {
        let mut cursors = self.layout.cursors();
        let desired = self.state.all();
        let laid_out = encode(&desired, &self.actual, &self.lines, SNAT, CAPACITY, &mut cursors);
        let Encoded { contents: mut laid_out, lines } = laid_out.expect("fits");
        assert_eq!(lines, [], "every table is what it should be");
        assert_eq!(*self.layout.listed(), laid_out.listed());
        assert_eq!(*self.layout.wanted_ports(), laid_out.ports);
        assert_eq!(self.layout.has_vips(), !laid_out.vips.is_empty());
        // Flags of ports go later, when no flow needs them.
        laid_out.ports = self.actual.ports.union(&laid_out.ports);
        assert_eq!(laid_out, self.actual);
        let counted = Layout::new(&self.state, &desired, &self.actual, SNAT, CAPACITY, cursors);
        assert_eq!(self.layout.shared, counted.shared);
    }
}

fn any_service() -> impl Strategy<Value = Service> {
    let ranges = prop_oneof![Just(vec![]), Just(vec!["10.0.0.0/8"]), Just(vec!["::/0"])];
    let backends = proptest::collection::btree_set(0_u8..5, 0..4);
    let settings = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (0_u32..5, 80_u16..83, backends, ranges, settings).prop_map(
        |(name, port, backends, ranges, (affinity, local, vip, dsr))| {
            let mut service = mk_service(name, port, backends);
            service.source_ranges =
                ranges.iter().map(|range| range.parse().expect("a network")).collect();
            service.affinity_seconds = affinity.then_some(60);
            if local {
                service.policy = TrafficPolicy::Local;
            }
            if dsr {
                service.forwarding = Forwarding::Dsr;
            }
            if vip {
                service.frontends[0].address = Some([203, 0, 113, 1].into());
            }
            service
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn what_is_written_is_what_would_be_laid_out(
        first in proptest::collection::vec(any_service(), 0..4),
        changes in proptest::collection::vec((any_service(), 0_i64..3, 0..5), 0..8),
    ) {
        let mut kept = Kept::new(first);
        kept.check();
        for (service, order, kind) in changes {
            if kind == 4 {
                // Another node comes, takes flows, or goes.
                let node = std::net::IpAddr::from([192, 0, 2, 30]);
                let mut nodes = kept.state.node().nodes.clone();
                match nodes.remove(&node) {
                    None => nodes.insert(node, Peer::known()),
                    Some(peer) if !peer.takes_flows() => nodes.insert(node, Peer::taking()),
                    Some(_) => None,
                };
                kept.state.set_nodes(nodes);
            } else if kind == 0 {
                kept.state.remove(&service.key);
            } else {
                kept.state.put(Rank { source: 1, order }, service);
            }
            // Now and then several at once.
            if kind != 3 {
                kept.follow();
                kept.check();
            }
        }
    }
}

/// One endpoint of one service among many: how many there are makes no difference.
#[test]
fn work_does_not_grow_with_the_number_of_services() {
    let work = |others: u32| {
        let port = |name: u32| 1024 + u16::try_from(name).expect("a small number");
        let services = (0..others).map(|name| mk_service(name, port(name), [1, 2, 3]));
        let mut kept = Kept::new(services.collect::<Vec<_>>());
        let rank = Rank { source: 1, order: 0 };
        kept.state.put(rank, mk_service(others / 2, port(others / 2), [1, 2, 3, 4]));
        assert_eq!(kept.state.dirty_len(), 1);
        kept.follow()
    };
    assert_eq!(work(10), work(1000));
}

#[test]
fn freed_numbers_and_lines_are_used_again() {
    let mut kept = Kept::new([mk_service(0, 80, [1, 2])]);
    // More numbers than there are, were none used twice.
    for round in 0..2_500_u32 {
        let hosts = if round % 2 == 0 { [3, 4] } else { [1, 2] };
        kept.state.put(Rank { source: 1, order: 0 }, mk_service(0, 80, hosts));
        kept.follow();
    }
    kept.check();
    assert_eq!((kept.actual.backends.len(), kept.actual.services.len()), (2, 2));
}
