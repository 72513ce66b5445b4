//! What the node says to the cluster, and how it keeps from locking itself out.

use super::Node;

impl Node {
    /// Looks again at what was refused for a reason that may be over.
    pub(in crate::agent) fn retry(&self) {
        if let Some(kubernetes) = &self.kubernetes {
            kubernetes.retry();
        }
    }

    /// Tells the cluster how the node is, and what is wrong with objects.
    pub(in crate::agent) async fn speak(&mut self) {
        let snapshot = self.account.shared.snapshot();
        if let Some(kubernetes) = &mut self.kubernetes {
            kubernetes.speak(&snapshot).await;
        }
    }

    /// Takes the programs off all interfaces; everything else stays.
    pub(in crate::agent) fn let_go(&mut self) {
        tracing::error!(
            "the API server could be reached before the programs were attached and cannot be now: \
             they are taken off"
        );
        self.is_off = true;
        if let Err(error) = self.detach_others(&[]) {
            self.account.failed(&format!("{error:#}"));
        }
    }

    /// It was the programs: they stay off until the agent is started again.
    pub(in crate::agent) fn stand_down(&mut self) {
        let text = "the API server can be reached only without the programs: they stay off the \
                    interfaces; find out what the node's file and the cluster's Services take from \
                    it, and start the agent again";
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
