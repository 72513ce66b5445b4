//! What the node says to the cluster, and how it keeps from locking itself out.

use anyhow::Context as _;

use super::{Node, absent};
use crate::dataplane::attach::detach_clients;
use crate::dataplane::netlink::Host;
use crate::dataplane::status::ClientsStatus;

/// What is said for as long as the programs are off.
pub(super) const STOOD_DOWN: &str = "the API server can be reached only without the programs: they stay off; find out what the \
     node's file and the cluster's Services take from it, and start the agent again";

/// What is said while they are off for the time being.
pub(super) const READS_FIRST: &str = "the API server can be reached only without the programs: they come back when everything that \
     is asked for now was read";

impl Node {
    /// Looks again at what was refused for a reason that may be over, and at what may have run out.
    pub(in crate::agent) fn retry(&self) {
        if let Some(kubernetes) = &self.kubernetes {
            kubernetes.retry();
            kubernetes.pass_time();
        }
    }

    /// Tells the cluster how the node is, and what is wrong with objects.
    pub(in crate::agent) async fn speak(&mut self) {
        let snapshot = self.account.shared.snapshot();
        if let Some(kubernetes) = &mut self.kubernetes {
            kubernetes.speak(&snapshot).await;
            let peers = kubernetes.peers();
            self.account.change(|status| status.peers = Some(peers));
            self.account.publish(&mut self.maps.status);
        }
    }

    /// Takes the programs off all interfaces, and off the control group: what a program of this host
    /// asks for may be what keeps the agent from the API server. Maps and settings stay.
    pub(in crate::agent) fn let_go(&mut self) {
        tracing::error!(
            "the API server could be reached before the programs were attached and cannot be now: \
             they are taken off"
        );
        self.is_off = true;
        let off = self
            .detach_others(&[])
            .and_then(|()| detach_clients(self.pins()).context("cannot take all programs off"));
        if let Err(error) = off {
            self.account.failed(&format!("{error:#}"));
        }
        let taken_off = || "taken off: the API server could not be reached".to_owned();
        let chosen = self.chosen.iter();
        let interfaces = chosen.map(|name| absent(name, self.slots.of(name), taken_off()));
        self.account.interfaces(interfaces.collect());
        if self.account.has_clients() {
            let clients = ClientsStatus { cgroup: None, error: Some(taken_off()) };
            self.account.clients(Some(clients));
        }
        self.account.publish(&mut self.maps.status);
    }

    /// Whether every source was read.
    pub(in crate::agent) fn is_complete(&self) -> bool {
        self.account.shared.snapshot().waiting_for.is_empty()
    }

    /// It was the programs, with maps that may be out of date: they stay off until all that is asked
    /// for now was read.
    pub(in crate::agent) fn read_first(&mut self) {
        self.reads_first = true;
        self.account.failed(READS_FIRST);
        self.account.publish(&mut self.maps.status);
    }

    /// Brings the programs back if they were waiting for everything to be read, and it has been.
    /// Returns whether that is so.
    pub(in crate::agent) fn resume(&mut self, host: &Host) -> bool {
        if !self.reads_first || !self.is_complete() {
            return false;
        }
        self.reads_first = false;
        self.is_off = false;
        self.reconcile(host, false);
        self.account.shared.update(|snapshot| snapshot.ready = true);
        true
    }

    /// It was the programs: they stay off until the agent is started again.
    pub(in crate::agent) fn stand_down(&mut self) {
        let text = STOOD_DOWN;
        self.account.failed(text);
        self.account.shared.update(|snapshot| snapshot.ready = false);
        self.account.publish(&mut self.maps.status);
        if let Some(kubernetes) = &mut self.kubernetes {
            kubernetes.note_detached(text);
        }
    }

    /// It was not the programs: they come back with the next look at everything.
    pub(in crate::agent) fn take_up(&mut self) {
        tracing::warn!("the API server cannot be reached without the programs either");
        self.is_off = false;
    }
}
