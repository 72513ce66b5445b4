//! What goes wrong with lists and watches, and what helps.

use kube::core::Status;

use super::super::record::Kind;
use crate::causes::chain;

/// Why nothing came.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// A page of a list.
    #[error("a list failed: {0}")]
    List(#[source] kube::Error),
    /// A list that was asked for as a stream did not begin.
    #[error("a list did not begin: {0}")]
    Stream(#[source] kube::Error),
    /// A watch, or a list that came as a stream, did not begin or was broken off.
    #[error("a watch failed: {0}")]
    Watch(#[source] kube::Error),
    /// A watch ended as soon as it had begun, or a list before its end.
    #[error("the API server ended what it had just begun")]
    Short,
    /// Where it could be gone on from is not said.
    #[error("the API server sent no resourceVersion")]
    NoVersion,
}

/// What helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cure {
    /// It goes on by itself.
    Wait,
    /// Other credentials.
    Restart,
    /// The server refuses streaming lists.
    Page,
    /// The server refuses the kind, or does not know it, and it can be done without.
    DoWithout,
}

impl Fault {
    /// The status that the server answered with, if it answered at all.
    fn status(&self) -> Option<&Status> {
        match self {
            Self::List(kube::Error::Api(status))
            | Self::Stream(kube::Error::Api(status))
            | Self::Watch(kube::Error::Api(status)) => Some(status),
            Self::List(_) | Self::Stream(_) | Self::Watch(_) | Self::Short | Self::NoVersion => {
                None
            }
        }
    }

    /// Whether what was seen last is gone from the server's memory, as happens to everyone.
    pub(super) fn is_too_old(&self) -> bool {
        self.status().is_some_and(|status| status.code == 410)
    }

    /// Whether going on from where it was would fail again.
    pub(super) fn is_lasting(&self) -> bool {
        let is_refused = self.status().is_some_and(|status| matches!(status.code, 400 | 410 | 422));
        is_refused || matches!(self, Self::NoVersion)
    }

    /// What the server says, else what came between.
    pub(super) fn describe(&self) -> String {
        match self.status() {
            Some(status) if status.message.is_empty() => {
                format!("{} {}", status.code, status.reason)
            }
            Some(status) => status.message.clone(),
            None => chain(self),
        }
    }

    /// Whether the server answered, be it with an error of its own.
    pub(super) fn is_answer(&self) -> bool {
        self.status().is_some() || matches!(self, Self::NoVersion)
    }

    pub(super) fn cure(&self, kind: Kind) -> Cure {
        match (self, self.status().map(|status| status.code)) {
            (_, Some(401)) => Cure::Restart,
            (Self::Stream(_), Some(400 | 422)) => Cure::Page,
            (_, Some(403 | 404)) if kind.is_optional() => Cure::DoWithout,
            _ => Cure::Wait,
        }
    }
}
