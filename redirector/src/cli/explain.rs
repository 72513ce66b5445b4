//! `redirector explain`: what would become of a packet, step by step.
//!
//! The decision is made by the functions that the kernel's programs run, over a copy of what the
//! maps hold now: nothing is written, counted or sent.

mod copy;
mod sockets;

use std::net::SocketAddr;

use anyhow::{Result, bail};
use clap::Args;
use redirector_common::packet::{Decision, Hook, IcmpError, Outcome, Packet, Step, TcpFlags};
use redirector_common::packet::{decide, decide_reply};
use redirector_common::{Address, Manner, Port, Protocol, Tuple};
use serde::Serialize;

use super::ReadArgs;
use super::counters::interface_name;
use super::render;
use copy::{Copied, Found};

/// Options of `redirector explain`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  redirector explain tcp 198.51.100.7:40000 192.0.2.10:80
  redirector explain udp '[2001:db8::7]:5353' '[2001:db8:1::1]:53' -o json
  redirector explain tcp 192.0.2.10:8080 198.51.100.7:40000 --leaving")]
pub struct ExplainArgs {
    /// tcp or udp
    #[arg(value_name = "PROTO", value_parser = parse_protocol)]
    protocol: Protocol,
    /// Where the packet comes from
    #[arg(value_name = "SRC:PORT")]
    source: SocketAddr,
    /// Where it is sent to
    #[arg(value_name = "DST:PORT")]
    destination: SocketAddr,
    /// TCP: a later packet of a connection, in place of its first (SYN)
    #[arg(long)]
    established: bool,
    /// A packet that this host sends, in place of one that comes in
    #[arg(long)]
    leaving: bool,
    /// Its length, IP header included
    #[arg(long, value_name = "BYTES", default_value_t = 60,
          value_parser = clap::value_parser!(u16).range(28..))]
    length: u16,
    /// Its time to live, or hop limit
    #[arg(long, value_name = "NUMBER", default_value_t = 64)]
    ttl: u8,
    #[command(flatten)]
    read: ReadArgs,
}

fn parse_protocol(text: &str) -> Result<Protocol, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err("allowed: tcp, udp".to_owned()),
    }
}

/// What would become of the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Explanation {
    /// The program that decides.
    hook: &'static str,
    steps: Vec<Found>,
    verdict: &'static str,
    reason: &'static str,
    description: &'static str,
    /// What happens, for people.
    action: String,
    /// Source and destination with which it goes on, where they change.
    #[serde(skip_serializing_if = "Option::is_none")]
    translated: Option<Ends>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Ends {
    source: SocketAddr,
    destination: SocketAddr,
}

/// Runs the command.
///
/// # Errors
///
/// If the addresses are of two families, or the maps cannot be read.
pub fn run(args: &ExplainArgs) -> Result<()> {
    if args.source.is_ipv4() != args.destination.is_ipv4() {
        bail!(
            "{} and {} are not of one family: name two IPv4 or two IPv6 addresses",
            args.source,
            args.destination
        );
    }
    let copied = Copied::load(&args.read.open()?)?;
    let explanation = explain(&copied, &packet(args), args.leaving)?;
    render::print_document(args.read.output, &explanation, || describe(&explanation))
}

fn packet(args: &ExplainArgs) -> Packet {
    let end = |end: SocketAddr| (Address::from(end.ip()), Port::new(end.port()));
    let flags = match (args.protocol, args.established) {
        (Protocol::Tcp, false) if args.leaving => TcpFlags::SYN | TcpFlags::ACK,
        (Protocol::Tcp, false) => TcpFlags::SYN,
        (Protocol::Tcp, true) => TcpFlags::ACK,
        (Protocol::Udp, _) => 0,
    };
    Packet {
        tuple: Tuple::new(args.protocol, end(args.source), end(args.destination)),
        ip_len: args.length,
        ttl: args.ttl,
        flags: TcpFlags(flags),
        ..Packet::EMPTY
    }
}

/// As XDP sees it first, and TC ingress where XDP leaves it alone.
fn explain(copied: &Copied, packet: &Packet, leaving: bool) -> Result<Explanation> {
    let mut outcome = Outcome::EMPTY;
    if leaving {
        let decision = decide_reply(copied, packet, &mut outcome);
        return conclude("tc-egress", copied, packet, decision, &outcome);
    }
    let at_xdp = copied.clone();
    let decision = decide(&at_xdp, packet, Hook::Xdp, packet.ip_len, &mut outcome);
    if matches!(decision.step, Step::Forward | Step::Drop) {
        return conclude("xdp", &at_xdp, packet, decision, &outcome);
    }
    let mut outcome = Outcome::EMPTY;
    let decision = decide(copied, packet, Hook::Ingress, packet.ip_len, &mut outcome);
    conclude("tc-ingress", copied, packet, decision, &outcome)
}

fn conclude(
    hook: &'static str,
    copied: &Copied,
    packet: &Packet,
    decision: Decision,
    outcome: &Outcome,
) -> Result<Explanation> {
    if let Some(failure) = copied.take_failure() {
        return Err(failure.into());
    }
    let goes_on = matches!(decision.step, Step::Deliver | Step::Forward | Step::ForwardUnresolved);
    Ok(Explanation {
        hook,
        steps: copied.take_steps(),
        verdict: decision.reason.verdict().name(),
        reason: decision.reason.name(),
        description: decision.reason.description().trim(),
        action: action(hook, decision.step, outcome),
        translated: (goes_on
            && outcome.translated != packet.tuple
            && !is_handed_over(decision.step, outcome))
        .then(|| ends(&outcome.translated)),
    })
}

fn ends(tuple: &Tuple) -> Ends {
    let end = |address: Address, port: Port| SocketAddr::new(address.into(), port.number());
    Ends {
        source: end(tuple.source, tuple.source_port),
        destination: end(tuple.destination, tuple.destination_port),
    }
}

fn action(hook: &str, step: Step, outcome: &Outcome) -> String {
    let interface = || interface_name(outcome.next_hop.ifindex);
    match step {
        Step::Pass | Step::HandOver => "it goes on, unchanged".to_owned(),
        Step::Drop => "it is dropped, without an answer".to_owned(),
        Step::Reject => {
            let error = match outcome.error {
                IcmpError::PortUnreachable => "port unreachable".to_owned(),
                IcmpError::TimeExceeded => "time exceeded".to_owned(),
                IcmpError::TooBig => {
                    format!("packet too big, at most {} bytes", outcome.next_hop.mtu)
                }
            };
            format!("it is dropped, and its sender is told: {error}")
        }
        Step::Deliver if hook == "tc-egress" => "it leaves, translated".to_owned(),
        Step::Deliver => "it goes to this host's own stack, translated".to_owned(),
        Step::Forward => format!("it is sent out of {}, {}", interface(), manner(outcome)),
        Step::ForwardUnresolved => format!(
            "it is sent out of {}, {}, once the kernel has found the neighbour",
            interface(),
            manner(outcome)
        ),
    }
}

fn is_handed_over(step: Step, outcome: &Outcome) -> bool {
    matches!(step, Step::Forward | Step::ForwardUnresolved) && outcome.manner.hands_over()
}

fn manner(outcome: &Outcome) -> String {
    match outcome.manner {
        Manner::Translate => "translated".to_owned(),
        Manner::Layer2 => "as it is, to the next node".to_owned(),
        Manner::Tunnel => format!("in a packet to {}", outcome.translated.destination),
    }
}

fn describe(explanation: &Explanation) -> String {
    let steps = explanation.steps.iter();
    let mut text = render::columns(
        &["STEP", "FOUND"],
        steps.map(|it| vec![it.step.to_owned(), it.found.clone()]),
    );
    let mut rows = vec![
        ("Decided by", explanation.hook.to_owned()),
        ("Verdict", explanation.verdict.to_owned()),
        ("Reason", format!("{}: {}", explanation.reason, explanation.description)),
        ("So", explanation.action.clone()),
    ];
    if let Some(Ends { source, destination }) = &explanation.translated {
        rows.push(("Goes on as", format!("{source} → {destination}")));
    }
    text.push('\n');
    text + &render::fields(&rows)
}

#[cfg(test)]
mod tests;
