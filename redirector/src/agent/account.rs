//! The agent's account of itself: kept in `Shared`, written to `STATUS` where it changed.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redirector_common::node::Text;

use super::Options;
use super::shared::Shared;
use crate::dataplane::status::{ClientsStatus, InterfaceStatus, Status};
use crate::dataplane::table::ArrayTable;

/// Keeps it.
pub(super) struct Account {
    pub(super) shared: Shared,
    /// What was written last.
    written: String,
}

impl Account {
    pub(super) fn new(options: &Options) -> Self {
        let status = Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: now(),
            config: options.config.clone(),
            kubernetes: options.kubernetes.is_some(),
            node_name: options.node_name(),
            out_of_sync_since: Some(now()),
            ..Status::default()
        };
        Self { shared: Shared::new(status), written: String::new() }
    }

    pub(super) fn synced(&self, took: Duration, conflicts: usize) {
        self.shared.update(|snapshot| {
            snapshot.syncs.record(took);
            snapshot.status.last_sync = Some(now());
            snapshot.status.conflicts = conflicts;
        });
    }

    /// Notes how long ago what is now in the maps came to be, in milliseconds.
    pub(super) fn programmed(&self, latencies: Vec<u64>) {
        self.shared.update(|snapshot| {
            for latency in latencies {
                snapshot.programming.record(Duration::from_millis(latency));
            }
        });
    }

    /// Notes what has to be read before all is complete; nothing: the node is ready.
    pub(super) fn waits_for(&self, kinds: Vec<&'static str>) {
        self.shared.update(|snapshot| {
            if kinds.is_empty() && !snapshot.waiting_for.is_empty() {
                tracing::info!("every source was read");
                snapshot.ready = true;
            }
            snapshot.waiting_for = kinds;
        });
    }

    pub(super) fn in_sync(&self) {
        self.change(|status| {
            status.in_sync = true;
            status.out_of_sync_since = None;
            status.last_error = None;
        });
    }

    /// Notes an error of the data path; it is logged when it is new.
    pub(super) fn failed(&self, error: &str) {
        self.shared.update(|snapshot| {
            snapshot.syncs.errors += 1;
            let status = &mut snapshot.status;
            if status.last_error.as_deref() != Some(error) {
                tracing::error!("the data path is not as it should be: {error}");
            }
            status.in_sync = false;
            status.out_of_sync_since.get_or_insert_with(now);
            status.last_error = Some(error.to_owned());
        });
    }

    pub(super) fn config_failed(&self, error: &str) {
        tracing::error!("the file is not used, what was before it stays: {error}");
        self.change(|status| {
            status.config_error = Some(error.to_owned());
            status.config_error_since.get_or_insert_with(now);
        });
    }

    pub(super) fn config_accepted(&self) {
        self.change(|status| {
            status.config_error = None;
            status.config_error_since = None;
        });
    }

    /// Notes what interfaces got; what is new is logged.
    pub(super) fn interfaces(&self, interfaces: Vec<InterfaceStatus>) {
        self.change(|status| {
            for interface in interfaces.iter().filter(|now| !status.interfaces.contains(now)) {
                let InterfaceStatus { name, xdp, tc, .. } = interface;
                match &interface.error {
                    Some(error) => tracing::error!("{error}"),
                    None => tracing::info!("{name}: XDP {}, TC {}", xdp.name(), tc.name()),
                }
            }
            status.interfaces = interfaces;
        });
    }

    /// Whether clients on this machine are, or were to be, served.
    pub(super) fn has_clients(&self) -> bool {
        self.shared.snapshot().status.clients.is_some()
    }

    /// Notes what clients on this machine got; what is new is logged.
    pub(super) fn clients(&self, clients: Option<ClientsStatus>) {
        self.change(|status| {
            if status.clients != clients {
                match &clients {
                    None => tracing::info!("clients on this machine: off"),
                    Some(ClientsStatus { error: Some(error), .. }) => {
                        tracing::warn!("clients on this machine are not served: {error}");
                    }
                    Some(ClientsStatus { cgroup, .. }) => {
                        let dir = cgroup.as_deref().unwrap_or(Path::new("")).display();
                        tracing::info!("clients on this machine: control group {dir}");
                    }
                }
            }
            status.clients = clients;
        });
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Status)) {
        self.shared.update(|snapshot| change(&mut snapshot.status));
    }

    /// Writes it to the map, if it differs from what was written last.
    pub(super) fn publish(&mut self, map: &mut ArrayTable<Text>) {
        let text = self.shared.snapshot().status.encode();
        if text == self.written {
            return;
        }
        match map.put(0, &Text::new(&text)) {
            Ok(()) => self.written = text,
            Err(error) => tracing::warn!(%error, "the status cannot be shown"),
        }
    }
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
