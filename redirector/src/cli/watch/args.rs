//! Which packets somebody wants to be told of.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use redirector_common::watch::{self, MAX_SERVICES};
use redirector_common::{Address, Port, Reason, ServiceId, Verdict, Watch, event};

use super::Limits;
use crate::cli::flow::service_name;
use crate::cli::parties::{End, Parties, is_named};
use crate::dataplane::pinned::Pinned;

/// Filters and limits. What says which packets is added up; the rest must all match.
#[derive(Args, Clone, Debug, Default)]
pub(in crate::cli) struct WatchArgs {
    /// New flows
    #[arg(long)]
    new: bool,
    /// Packets that are dropped, also those whose sender is told
    #[arg(long)]
    drops: bool,
    /// Packets with this Reason, as in 'redirector counters'; may be given several times
    #[arg(long, value_name = "REASON", hide_possible_values = true, value_parser = reasons())]
    reason: Vec<Reason>,
    /// Packets with this verdict; may be given several times. 'pass' includes all that is not ours
    #[arg(long, value_parser = verdicts())]
    verdict: Vec<Verdict>,
    #[command(flatten)]
    parties: Parties,
    /// Of packets that neither open a flow nor are dropped, one in so many on each CPU
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    sample: Option<u32>,
    /// End after so many packets
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    duration: Option<u64>,
}

impl WatchArgs {
    /// What to ask the data path for; `usual`: which Reasons, where none was asked for.
    pub(in crate::cli) fn wish(&self, maps: &Pinned, usual: Usual) -> Result<Watch> {
        let end = |end: Option<End>| match end {
            None => watch::End::ANY,
            Some(end) => watch::End {
                address: Address::from(end.address),
                port: end.port.map_or(Port::ZERO, Port::new),
                reserved: 0,
            },
        };
        Ok(Watch {
            reasons: self.reasons(usual),
            unsampled: bits(opens) | bits(drops),
            sample: self.sample.unwrap_or(1),
            protocol: self.parties.protocol.map_or(0, |protocol| protocol.number().into()),
            client: end(self.parties.client),
            frontend: end(self.parties.frontend),
            backend: end(self.parties.backend),
            services: self.services(maps)?,
            ..Watch::NONE
        })
    }

    /// When to end.
    pub(in crate::cli) fn limits(&self) -> Limits {
        Limits { count: self.count, duration: self.duration.map(Duration::from_secs) }
    }

    fn reasons(&self, usual: Usual) -> u64 {
        let mut wanted = bits(|reason| {
            self.reason.contains(&reason)
                || self.verdict.contains(&reason.verdict())
                || (self.new && opens(reason))
                || (self.drops && drops(reason))
        });
        if wanted == 0 {
            wanted = match usual {
                Usual::Turns if self.sample.is_none() => bits(opens) | bits(drops),
                Usual::Turns | Usual::Ours => bits(is_ours),
            };
        }
        wanted
    }

    /// The numbers of the services with the name.
    fn services(&self, maps: &Pinned) -> Result<[ServiceId; MAX_SERVICES]> {
        let mut services = [0; MAX_SERVICES];
        let Some(wanted) = &self.parties.service else {
            return Ok(services);
        };
        let infos = maps.infos()?;
        let found: Vec<_> = infos
            .keys()
            .copied()
            .filter(|id| is_named(&service_name(&infos, *id), wanted))
            .collect();
        if found.is_empty() {
            bail!("there is no service {wanted}: 'redirector service list' shows all");
        }
        if found.len() > MAX_SERVICES {
            bail!("too many services are named {wanted}: name one as NAMESPACE/NAME");
        }
        services.iter_mut().zip(found).for_each(|(place, id)| *place = id);
        Ok(services)
    }
}

/// What is told where nothing else is asked for.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli) enum Usual {
    /// New flows and drops; everything of ours where only a sample is wanted.
    Turns,
    /// Everything of ours.
    Ours,
}

fn bits(is_wanted: impl Fn(Reason) -> bool) -> u64 {
    Reason::ALL
        .iter()
        .filter(|reason| is_wanted(**reason))
        .fold(0, |bits, reason| bits | event::bit(*reason))
}

/// Whether the packet is the first of a flow or connection.
pub(in crate::cli) const fn opens(reason: Reason) -> bool {
    matches!(reason, Reason::LocalNew | Reason::RemoteNew | Reason::SteeredNew | Reason::DsrNew)
}

fn drops(reason: Reason) -> bool {
    reason.verdict() == Verdict::Drop
}

/// Whether the packet is of a flow, or to a frontend.
fn is_ours(reason: Reason) -> bool {
    reason.verdict() != Verdict::Pass || matches!(reason, Reason::NoFlow | Reason::NoReplyFlow)
}

/// Whether packets are counted so: some Reasons count flows, or calls of programs.
const fn is_of_packets(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::ClientLocal
            | Reason::ClientRemote
            | Reason::ClientRefused
            | Reason::HalfOpenDropped
            | Reason::FlowReclaimed
    )
}

fn reasons() -> impl TypedValueParser<Value = Reason> {
    let known = || Reason::ALL.iter().copied().filter(|reason| is_of_packets(*reason));
    PossibleValuesParser::new(known().map(Reason::name)).try_map(move |word| {
        known().find(|reason| reason.name() == word).ok_or("no such Reason of packets")
    })
}

fn verdicts() -> impl TypedValueParser<Value = Verdict> {
    const ALL: [Verdict; 4] = [Verdict::Pass, Verdict::Drop, Verdict::Deliver, Verdict::Forward];
    PossibleValuesParser::new(ALL.map(Verdict::name))
        .try_map(|word| ALL.into_iter().find(|it| it.name() == word).ok_or("no such verdict"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(args: &WatchArgs, usual: Usual) -> Vec<&'static str> {
        let bits = args.reasons(usual);
        let reasons = Reason::ALL.iter().filter(|reason| bits & event::bit(**reason) != 0);
        reasons.map(|reason| reason.name()).collect()
    }

    #[test]
    fn new_flows_and_drops_are_told_by_default() {
        let told = wanted(&WatchArgs::default(), Usual::Turns);
        assert!(told.contains(&"remote-new") && told.contains(&"no-backend"), "{told:?}");
        assert!(!told.contains(&"remote-established"), "{told:?}");
    }

    #[test]
    fn what_is_not_ours_is_told_only_if_asked_for() {
        let sampled = WatchArgs { sample: Some(10), ..WatchArgs::default() };
        let captured = wanted(&WatchArgs::default(), Usual::Ours);
        assert_eq!(wanted(&sampled, Usual::Turns), captured);
        assert!(captured.contains(&"remote-reply") && captured.contains(&"no-flow"));
        assert!(!captured.contains(&"not-ours") && !captured.contains(&"not-ip"));
        let passing = WatchArgs { verdict: vec![Verdict::Pass], ..WatchArgs::default() };
        let told = wanted(&passing, Usual::Turns);
        assert!(told.contains(&"not-ours") && told.contains(&"not-ip"), "{told:?}");
    }

    #[test]
    fn what_is_asked_for_is_added_up() {
        let args =
            WatchArgs { new: true, reason: vec![Reason::RemoteReply], ..WatchArgs::default() };
        let expected = ["local-new", "remote-new", "remote-reply", "steered-new", "dsr-new"];
        assert_eq!(wanted(&args, Usual::Turns), expected);
        assert_eq!(wanted(&args, Usual::Ours), expected);
    }
}
