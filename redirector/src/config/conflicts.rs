//! Checks across entries: what two of them claim, and what the translation block claims.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use redirector_common::Protocol;

use super::document::{Placed, SnatPorts};
use super::error::{Place, Problems};
use crate::model::{BackendAddress, FrontendSpec, Source};

/// Who has a port of an address, or of every node address.
struct Claim<'p> {
    address: Option<IpAddr>,
    source: Source,
    place: &'p Place,
}

/// Reports frontends that two entries claim. Of two ranges that overlap, the first port that they
/// share stands for all.
pub(super) fn check_frontends(services: &[Placed], problems: &mut Problems) {
    let mut claims: BTreeMap<(Protocol, u16), Vec<Claim<'_>>> = BTreeMap::new();
    let mut reported = BTreeSet::new();
    for placed in services {
        for (frontend, place) in placed.service.frontends.iter().zip(&placed.frontends) {
            let claim =
                Claim { address: frontend.address, source: placed.service.key.source, place };
            let earlier = claims.entry((frontend.protocol, frontend.port)).or_default();
            if let Some(other) = earlier.iter().find(|other| other.overlaps(&claim))
                && reported.insert((place, other.place))
            {
                let taker = if other.address == frontend.address {
                    "the entry".to_owned()
                } else {
                    show(&FrontendSpec { address: other.address, ..*frontend })
                };
                let message = format!(
                    "{} is taken by {taker} at {}; remove one of them",
                    show(frontend),
                    other.place
                );
                problems.report(place.clone(), placed.message(".frontends", &message));
            }
            earlier.push(claim);
        }
    }
}

impl Claim<'_> {
    fn overlaps(&self, other: &Self) -> bool {
        match (self.address, other.address) {
            (Some(one), Some(other)) => one == other,
            (None, None) => true,
            (None, Some(_)) => !self.gives_way_to(other),
            (Some(_), None) => !other.gives_way_to(self),
        }
    }

    /// A publish entry for every node address leaves out those that a service names: the service
    /// is the more exact, and its address is often a virtual one that is no node address at all.
    /// Where it is one, the service has it ([`Config::services`](super::Config::services) has
    /// services first).
    fn gives_way_to(&self, exact: &Self) -> bool {
        self.source == Source::Publish && exact.source == Source::Static
    }
}

fn show(frontend: &FrontendSpec) -> String {
    let FrontendSpec { address, port, protocol } = frontend;
    match address {
        None => format!("port {port}/{protocol} of every node address"),
        Some(IpAddr::V4(v4)) => format!("{v4}:{port}/{protocol}"),
        Some(IpAddr::V6(v6)) => format!("[{v6}]:{port}/{protocol}"),
    }
}

/// Reports ports of frontends and of local backends in the translation block: replies come to
/// those ports, so packets to them would be taken for replies.
pub(super) fn check_snat_ports(
    services: &[Placed],
    snat_ports: &SnatPorts,
    problems: &mut Problems,
) {
    let mut reported = BTreeSet::new();
    for placed in services {
        let service = &placed.service;
        let frontends = service
            .frontends
            .iter()
            .map(|frontend| frontend.port)
            .zip(&placed.frontends)
            .map(|(port, place)| (".frontends", "port", port, place));
        let backends = service
            .backends
            .iter()
            .zip(&placed.backends)
            .filter(|(backend, _)| backend.address == BackendAddress::Local)
            .map(|(backend, place)| (".backends", "local port", backend.port, place));
        for (part, kind, port, place) in frontends.chain(backends) {
            if snat_ports.range.contains(&port) && reported.insert((place, kind)) {
                let message = format!(
                    "{kind} {port} lies in {}, which is reserved for translation; choose another \
                     port or another block",
                    show_snat_ports(&snat_ports.range, snat_ports.place.as_ref())
                );
                problems.report(place.clone(), placed.message(part, &message));
            }
        }
    }
}

fn show_snat_ports(range: &RangeInclusive<u16>, place: Option<&Place>) -> String {
    let (first, last) = (range.start(), range.end());
    match place {
        Some(place) => format!("snatPorts {first}-{last} at {place}"),
        None => format!("snatPorts {first}-{last} (the default)"),
    }
}

impl Placed {
    /// `message` with the path of one of the parts of the service in front.
    fn message(&self, part: &str, message: &str) -> String {
        match self.path {
            "" => message.to_owned(),
            "services" => format!("services{part}: {message}"),
            path => format!("{path}: {message}"),
        }
    }
}
