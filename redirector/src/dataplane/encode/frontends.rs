//! Who may come to a service, and by which addresses and ports.

use redirector_common::{Address, Frontend, PortFlags, Protocol, ServiceId, SourceRange};

use super::Encoder;
use crate::dataplane::contents::Ports;
use crate::model::desired::DesiredService;

impl Encoder<'_> {
    pub(super) fn add_ranges(&mut self, id: ServiceId, service: &DesiredService) {
        for network in service.source_ranges.iter().flatten() {
            let range = SourceRange::new(id, network.addr().into(), network.prefix_len());
            self.encoded.contents.ranges.insert(range, SourceRange::ADMITTED);
        }
    }

    pub(super) fn add_frontends(&mut self, id: ServiceId, service: &DesiredService) {
        for key in &service.localhost {
            let local_address = Address::loopback(key.address.family());
            let value = Frontend::new(id, local_address);
            self.encoded.contents.frontends.insert(*key, value);
        }
        for (key, local_address) in &service.frontends {
            let value = Frontend::new(id, *local_address);
            let is_unlisted = service.unlisted.contains(&key.address);
            let value = if is_unlisted { value.unlisted() } else { value };
            self.encoded.contents.frontends.insert(*key, value);
        }
        for (key, local_address) in &service.foreign {
            self.encoded.contents.frontends.insert(*key, Frontend::foreign(id, *local_address));
        }
        Self::add_ports(&mut self.encoded.contents.ports, service);
    }

    /// Adds the flags of the ports that a service needs looked up.
    pub(in crate::dataplane) fn add_ports(ports: &mut Ports, service: &DesiredService) {
        for key in &service.localhost {
            ports.add(key.protocol(), key.port, PortFlags::FRONTEND);
        }
        let remote = service
            .backends
            .iter()
            .any(|backend| backend.takes_new_flows && !backend.backend.is_local());
        let steers = service.steers
            && service
                .backends
                .iter()
                .any(|backend| backend.takes_new_flows && backend.backend.is_own());
        for (key, local_address) in service.frontends.iter().chain(&service.foreign) {
            let mut flags = PortFlags::FRONTEND;
            if remote {
                flags = flags.union(PortFlags::REMOTE);
            }
            // The kernel takes only packets to this host's own addresses to its sockets.
            if steers && key.protocol() == Protocol::Tcp && key.address == *local_address {
                flags = flags.union(PortFlags::STEER);
            }
            ports.add(key.protocol(), key.port, flags);
            for backend in service.backends.iter().map(|backend| backend.backend) {
                if backend.is_local() {
                    ports.add(key.protocol(), backend.port, PortFlags::LOCAL_BACKEND);
                }
            }
        }
    }
}
