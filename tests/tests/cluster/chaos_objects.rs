//! Services and slices that change at random, among them services with backends that live
//! throughout.

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::{
    core::v1::Service,
    discovery::v1::{Endpoint, EndpointSlice},
};
use redirector_common::{
    Family,
    Protocol::{self, Tcp, Udp},
};
use redirector_tests::{
    cluster::{
        Cluster,
        build::{NAMESPACE, mk_endpoint, mk_port, mk_service, mk_slice, spec},
        network::pod_address,
        pod::Pod,
    },
    topology::{Addresses, FAMILIES},
    wait,
};

use crate::chaos::STEADY;

/// Services that come, change and go.
const SERVICES: usize = 8;
/// Slices of one service and family.
const SLICES: usize = 3;

/// Random numbers that can be had again: xorshift.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or_default() % limit
    }

    pub(crate) fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[self.below(among.len())]
    }
}

/// The objects.
pub(crate) struct Objects {
    pub(crate) dice: Dice,
    /// Backends that live throughout, and their nodes' numbers.
    living: Vec<(Addresses, u8)>,
}

impl Objects {
    pub(crate) fn new(dice: Dice, pods: &[Pod]) -> Self {
        Self { dice, living: pods.iter().map(|pod| (pod.addresses, pod.node)).collect() }
    }

    /// The services with backends that live throughout.
    pub(crate) fn put_steady(&self, cluster: &Cluster) -> Result<()> {
        for (name, protocol, node_port) in STEADY {
            let mut service =
                mk_service(name, vec![mk_port(protocol, 80, target(protocol), node_port)]);
            spec(&mut service).selector = None;
            cluster.put_service(service)?;
            for family in FAMILIES {
                let all = self.living.iter().copied();
                let endpoints = all.map(|(address, node)| alive(address, node, family)).collect();
                cluster.put(&steady_slice(name, protocol, family, 0, endpoints))?;
            }
        }
        Ok(())
    }

    /// Changes something.
    pub(crate) fn change(&mut self, cluster: &Cluster) -> Result<()> {
        match self.dice.below(10) {
            0..=2 => self.change_service(cluster),
            3..=6 => self.change_slice(cluster),
            7 => self.remove(cluster),
            _ => self.move_living(cluster),
        }
    }

    fn change_service(&mut self, cluster: &Cluster) -> Result<()> {
        let index = self.dice.below(SERVICES);
        let protocol = *self.dice.pick(&[Tcp, Udp]);
        // One of three ports of its own, so that no two services ever want the same.
        let number = 31_000 + 10 * u16::try_from(index)? + u16::try_from(self.dice.below(3))?;
        let port = mk_port(protocol, 80, target(protocol), number);
        let mut service = mk_service(&format!("random{index}"), vec![port]);
        let wanted = spec(&mut service);
        wanted.selector = None;
        wanted.type_ = Some((*self.dice.pick(&["NodePort", "NodePort", "ClusterIP"])).into());
        wanted.external_traffic_policy = Some((*self.dice.pick(&["Cluster", "Local"])).into());
        wanted.session_affinity = Some((*self.dice.pick(&["None", "ClientIP"])).into());
        cluster.put_service(service)
    }

    fn change_slice(&mut self, cluster: &Cluster) -> Result<()> {
        let (service, protocol, family, name) = self.random_slice();
        let endpoints = (0..self.dice.below(4)).map(|_| self.endpoint(family)).collect();
        cluster.put(&slice(&name, &service, protocol, family, endpoints))
    }

    fn remove(&mut self, cluster: &Cluster) -> Result<()> {
        let store = cluster.api.store();
        let (service, _, _, name) = self.random_slice();
        // It may not be there.
        let _ = if self.dice.one_in(3) {
            store.remove::<Service>(NAMESPACE, &service)
        } else {
            store.remove::<EndpointSlice>(NAMESPACE, &name)
        };
        Ok(())
    }

    /// Moves backends that live throughout to another slice, with others beside them that come and
    /// go. Of TCP services in any order; of UDP services they are in one of the slices at any time,
    /// as their flows would else rightly be removed.
    fn move_living(&mut self, cluster: &Cluster) -> Result<()> {
        let (name, protocol, _) = *self.dice.pick(&STEADY);
        let family = *self.dice.pick(&FAMILIES);
        let (from, to) = (self.dice.below(SLICES), self.dice.below(SLICES));
        let mut endpoints: Vec<Endpoint> =
            self.living.iter().map(|(address, node)| alive(*address, *node, family)).collect();
        if self.dice.one_in(2) {
            endpoints.reverse();
        }
        if self.dice.one_in(2) {
            endpoints.push(self.endpoint(family));
        }
        let full = steady_slice(name, protocol, family, to, endpoints);
        let others: Vec<EndpointSlice> = (0..SLICES)
            .map(|step| (from + step) % SLICES)
            .filter(|index| *index != to)
            .map(|index| steady_slice(name, protocol, family, index, Vec::new()))
            .collect();
        if protocol == Udp || self.dice.one_in(2) {
            cluster.put(&full)?;
            others.iter().try_for_each(|slice| cluster.put(slice))
        } else {
            others.iter().try_for_each(|slice| cluster.put(slice))?;
            cluster.put(&full)
        }
    }

    /// Waits until the agents have seen everything: a last service, and a last slice.
    pub(crate) fn settle(&mut self, cluster: &Cluster) -> Result<()> {
        let mut last = mk_service("last", vec![mk_port(Tcp, 80, target(Tcp), 32_000)]);
        spec(&mut last).selector = None;
        cluster.put_service(last)?;
        let address = pod_address(2, 250);
        for family in FAMILIES {
            let endpoints = vec![alive(address, 2, family)];
            cluster.put(&slice(&format!("last-{family:?}"), "last", Tcp, family, endpoints))?;
        }
        wait::until_true("the last service", Duration::from_secs(60), || {
            let listed = serde_json::to_string(&cluster.rows(1, &["service", "list"])?)?;
            Ok(FAMILIES.iter().all(|family| listed.contains(&address.of(*family).to_string())))
        })
    }

    fn random_slice(&mut self) -> (String, Protocol, Family, String) {
        let service = format!("random{}", self.dice.below(SERVICES));
        let protocol = *self.dice.pick(&[Tcp, Udp]);
        let family = *self.dice.pick(&FAMILIES);
        let name = format!("{service}-{family:?}-{}", self.dice.below(SLICES)).to_lowercase();
        (service, protocol, family, name)
    }

    /// An endpoint at which nobody is.
    fn endpoint(&mut self, family: Family) -> Endpoint {
        let node = *self.dice.pick(&[1, 2]);
        let number = 100 + u8::try_from(self.dice.below(8)).unwrap_or_default();
        let (ready, terminating) = (!self.dice.one_in(4), self.dice.one_in(4));
        let address = pod_address(node, number).of(family);
        mk_endpoint(address, &format!("node{node}"), ready, terminating)
    }
}

fn alive(address: Addresses, node: u8, family: Family) -> Endpoint {
    mk_endpoint(address.of(family), &format!("node{node}"), true, false)
}

const fn target(protocol: Protocol) -> u16 {
    match protocol {
        Tcp => 8080,
        Udp => 8081,
    }
}

fn slice(
    name: &str,
    service: &str,
    protocol: Protocol,
    family: Family,
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    let port = mk_port(protocol, 80, 0, 0).name.unwrap_or_default();
    let ports = [(port, protocol, target(protocol))];
    mk_slice(&name.to_lowercase(), service, family, &ports, endpoints)
}

fn steady_slice(
    service: &str,
    protocol: Protocol,
    family: Family,
    index: usize,
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    slice(&format!("{service}-{family:?}-{index}"), service, protocol, family, endpoints)
}
