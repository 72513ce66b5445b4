//! What stands beside a packet in a capture.

use std::fmt::Write as _;

use redirector_common::Reason;
use redirector_common::event::Phase;

use crate::cli::watch::Story;

/// The moment, the verdict and why, what the packet is translated to, the service.
pub(super) fn comment(story: &Story) -> String {
    let moment = match story.phase {
        Phase::Before => "before, ",
        Phase::After => "after, ",
        Phase::Only => "",
    };
    let mut text = format!(
        "{moment}{} on {}, {}: {}",
        story.hook,
        story.interface,
        story.reason(),
        story.verdict()
    );
    // Writing to a string does not fail.
    if let Some((source, destination)) = story.claimed {
        let _ = write!(text, ", {source} > {destination}");
    }
    match (story.translated, story.reason) {
        (Some((_, backend)), Some(Reason::DsrNew | Reason::DsrEstablished)) => {
            let _ = write!(text, " handed over to {}", backend.ip());
        }
        (Some((_, backend)), Some(Reason::SteeredNew)) => {
            let _ = write!(text, " steered to {backend}");
        }
        (Some((source, destination)), _) => {
            let _ = write!(text, " becomes {source} > {destination}");
        }
        (None, _) => {}
    }
    if let Some(service) = &story.service {
        let _ = write!(text, ", service {service}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::watch::story;

    #[test]
    fn a_comment_says_what_becomes_of_the_packet() {
        let story = story();
        assert_eq!(
            comment(&story),
            "before, xdp on eth0, remote-established: forward, 198.51.100.9:4000 > 192.0.2.1:80 \
             becomes 192.0.2.1:50000 > 10.0.0.5:8080, service default/web"
        );
    }

    #[test]
    fn what_is_not_translated_becomes_nothing() {
        let story = Story {
            phase: Phase::Only,
            reason: Some(Reason::NoLocalBackend),
            translated: None,
            ..story()
        };
        assert_eq!(
            comment(&story),
            "xdp on eth0, no-local-backend: drop, 198.51.100.9:4000 > 192.0.2.1:80, \
             service default/web"
        );
    }

    #[test]
    fn what_another_node_gets_is_not_changed() {
        let story = Story { reason: Some(Reason::DsrNew), service: None, ..story() };
        assert_eq!(
            comment(&story),
            "before, xdp on eth0, dsr-new: forward, 198.51.100.9:4000 > 192.0.2.1:80 \
             handed over to 10.0.0.5"
        );
    }

    #[test]
    fn what_has_no_ports_has_a_verdict() {
        let story = Story {
            phase: Phase::Only,
            reason: None,
            claimed: None,
            translated: None,
            service: None,
            ..story()
        };
        assert_eq!(comment(&story), "xdp on eth0, unknown: unknown");
    }
}
