//! What an event says, in words and names.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};
use redirector_common::event::Phase;
use redirector_common::packet::Hook;
use redirector_common::{Address, Direction, Event, Port, Reason, ServiceId, Tuple};

use super::args::opens;
use crate::cli::counters::interface_name;
use crate::cli::flow::{service_name, socket};
use crate::dataplane::info::Info;
use crate::dataplane::pinned::Pinned;

/// An event, told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Story {
    pub(in crate::cli) time: Timestamp,
    pub(in crate::cli) phase: Phase,
    pub(in crate::cli) hook: &'static str,
    pub(in crate::cli) interface: String,
    /// By which it leaves.
    pub(in crate::cli) out_interface: Option<String>,
    /// `None`: the programs are of another version, which knows more Reasons.
    pub(in crate::cli) reason: Option<Reason>,
    pub(in crate::cli) direction: Option<&'static str>,
    pub(in crate::cli) protocol: Option<&'static str>,
    pub(in crate::cli) client: Option<SocketAddr>,
    pub(in crate::cli) frontend: Option<SocketAddr>,
    pub(in crate::cli) backend: Option<SocketAddr>,
    pub(in crate::cli) service: Option<String>,
    /// Source and destination as the packet came.
    pub(in crate::cli) claimed: Option<(SocketAddr, SocketAddr)>,
    /// And as it is translated.
    pub(in crate::cli) translated: Option<(SocketAddr, SocketAddr)>,
    pub(in crate::cli) bytes: u32,
}

impl Story {
    /// Whether the packet opens a flow.
    pub(in crate::cli) fn is_new(&self) -> bool {
        self.reason.is_some_and(opens)
    }

    /// The Reason's word.
    pub(in crate::cli) fn reason(&self) -> &'static str {
        self.reason.map_or("unknown", Reason::name)
    }

    /// The verdict's word.
    pub(in crate::cli) fn verdict(&self) -> &'static str {
        self.reason.map_or("unknown", |reason| reason.verdict().name())
    }
}

/// Tells events, by the names that things have.
#[derive(Debug)]
pub(in crate::cli) struct Teller {
    maps: Pinned,
    infos: BTreeMap<ServiceId, Info>,
    interfaces: BTreeMap<u32, String>,
    boot: Timestamp,
}

impl Teller {
    /// With the names as they are now.
    pub(in crate::cli) fn new(maps: &Pinned) -> anyhow::Result<Self> {
        Ok(Self {
            maps: maps.clone(),
            infos: maps.infos()?,
            interfaces: BTreeMap::new(),
            boot: boot_time()?,
        })
    }

    /// What an event says.
    pub(in crate::cli) fn tell(&mut self, event: &Event) -> Story {
        let end = |(address, port): (Address, Port)| socket(address, port);
        let ends = |tuple: &Tuple| {
            (
                socket(tuple.source, tuple.source_port),
                socket(tuple.destination, tuple.destination_port),
            )
        };
        Story {
            time: self.time(event.time),
            phase: event.phase(),
            hook: match event.hook() {
                Hook::Xdp => "xdp",
                Hook::Ingress => "ingress",
                Hook::Egress => "egress",
            },
            interface: self.interface(event.ifindex),
            out_interface: (event.out_ifindex != 0).then(|| self.interface(event.out_ifindex)),
            reason: event.reason(),
            direction: event.direction().map(|direction| match direction {
                Direction::Forward => "request",
                Direction::Reply => "reply",
            }),
            protocol: event.claimed().map(|tuple| tuple.protocol().name()),
            client: event.client().map(end),
            frontend: event.frontend().map(end),
            backend: event.backend().map(end),
            service: self.service(event.service),
            claimed: event.claimed().map(ends),
            translated: event.translated().map(ends),
            bytes: event.len,
        }
    }

    /// The clocks may drift apart, and be set.
    pub(in crate::cli) fn set_clock(&mut self) -> anyhow::Result<()> {
        self.boot = boot_time()?;
        Ok(())
    }

    fn time(&self, monotonic: u64) -> Timestamp {
        let nanoseconds = i64::try_from(monotonic).unwrap_or(i64::MAX);
        self.boot.checked_add(SignedDuration::from_nanos(nanoseconds)).unwrap_or(Timestamp::MAX)
    }

    fn interface(&mut self, index: u32) -> String {
        self.interfaces.entry(index).or_insert_with(|| interface_name(index)).clone()
    }

    fn service(&mut self, id: ServiceId) -> Option<String> {
        if id == 0 {
            return None;
        }
        // One that came meanwhile.
        if !self.infos.contains_key(&id)
            && let Ok(infos) = self.maps.infos()
        {
            self.infos = infos;
        }
        Some(service_name(&self.infos, id))
    }
}

/// When the monotonic clock was at zero.
fn boot_time() -> anyhow::Result<Timestamp> {
    let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    let elapsed = SignedDuration::new(monotonic.tv_sec(), i32::try_from(monotonic.tv_nsec())?);
    Ok(Timestamp::now().checked_sub(elapsed)?)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A packet from a client to a backend elsewhere.
    pub(in crate::cli) fn story() -> Story {
        let end = |text: &str| text.parse().expect("address and port");
        let claimed = (end("198.51.100.9:4000"), end("192.0.2.1:80"));
        let translated = (end("192.0.2.1:50000"), end("10.0.0.5:8080"));
        Story {
            time: Timestamp::from_nanosecond(1_767_225_600_000_001_000).expect("a time"),
            phase: Phase::Before,
            hook: "xdp",
            interface: "eth0".to_owned(),
            out_interface: Some("eth1".to_owned()),
            reason: Some(Reason::RemoteEstablished),
            direction: Some("request"),
            protocol: Some("TCP"),
            client: Some(claimed.0),
            frontend: Some(claimed.1),
            backend: Some(translated.1),
            service: Some("default/web".to_owned()),
            claimed: Some(claimed),
            translated: Some(translated),
            bytes: 66,
        }
    }
}
