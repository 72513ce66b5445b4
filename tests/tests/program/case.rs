//! A row of the tables: a packet, where it goes in, and what must come of it.

mod told;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use redirector::dataplane::pins::Hook;
use redirector_common::{Direction, Flow, FlowState, Reason, Tuple, Watch, map_name::MapName};
use redirector_tests::{
    packet::Packet,
    program::{Counted, Outcome, Programs, Verdict, check_pairs, functions},
};

use crate::{given::Given, world};

/// Both hooks that see what comes in.
pub(crate) const INWARD: [Hook; 2] = [Hook::Xdp, Hook::Ingress];

/// What must come of a packet.
#[derive(Clone, Debug)]
pub(crate) enum Expected {
    /// Passed on, byte for byte; counted so by TC ingress, and by the others not at all.
    Pass(Reason),
    /// Gone.
    Drop(Reason),
    /// Passed to this host's stack or out of it, as these bytes.
    Deliver(Reason, Vec<u8>),
    /// Sent out of an interface, as these bytes.
    Forward(Reason, Vec<u8>),
    /// Passed on as these bytes, and counted by whoever sees them next.
    HandOver(Vec<u8>),
}

/// A row.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    description: String,
    hook: Hook,
    interface: &'static str,
    block: u16,
    segment: u32,
    flows: Vec<Given>,
    before: Vec<Vec<u8>>,
    input: Vec<u8>,
    expected: Expected,
    after: Option<(Tuple, FlowState)>,
}

impl Case {
    /// `packet` comes in by `eth0` (at egress: goes out of it).
    pub(crate) fn new(description: impl Into<String>, hook: Hook, packet: &Packet) -> Self {
        Self::raw(description, hook, packet.bytes())
    }

    /// As [`Self::new`], for bytes that are no whole packet.
    pub(crate) fn raw(description: impl Into<String>, hook: Hook, input: Vec<u8>) -> Self {
        Self {
            description: format!("{}, {}", description.into(), hook.name()),
            hook,
            interface: "eth0",
            block: 1,
            segment: 0,
            flows: Vec::new(),
            before: Vec::new(),
            input,
            expected: Expected::Pass(Reason::NotOurs),
            after: None,
        }
    }

    /// By this interface instead.
    pub(crate) fn by(self, interface: &'static str) -> Self {
        Self { interface, ..self }
    }

    /// With a translation block of this many ports instead of one.
    pub(crate) fn block(self, block: u16) -> Self {
        Self { block, ..self }
    }

    /// As a super-packet, to be cut into segments of so many bytes of payload.
    pub(crate) fn segments(self, segment: u32) -> Self {
        Self { segment, ..self }
    }

    /// With this flow in the table.
    pub(crate) fn given(mut self, flow: Given) -> Self {
        self.flows.push(flow);
        self
    }

    /// After this packet, which went the same way through the hook at TC.
    pub(crate) fn following(mut self, packet: &Packet) -> Self {
        self.before.push(packet.bytes());
        self
    }

    /// As [`Self::following`], for bytes that are no packet.
    pub(crate) fn following_bytes(mut self, bytes: Vec<u8>) -> Self {
        self.before.push(bytes);
        self
    }

    /// The packet passes, for this Reason.
    pub(crate) fn passes(self, reason: Reason) -> Self {
        Self { expected: Expected::Pass(reason), ..self }
    }

    /// The packet is dropped, for this Reason.
    pub(crate) fn drops(self, reason: Reason) -> Self {
        Self { expected: Expected::Drop(reason), ..self }
    }

    /// The packet goes on to the stack, or from it, like this.
    pub(crate) fn delivers(self, reason: Reason, packet: &Packet) -> Self {
        self.delivers_bytes(reason, packet.bytes())
    }

    /// As [`Self::delivers`], for bytes that are no whole packet.
    pub(crate) fn delivers_bytes(self, reason: Reason, bytes: Vec<u8>) -> Self {
        Self { expected: Expected::Deliver(reason, bytes), ..self }
    }

    /// The packet leaves by another interface like this.
    pub(crate) fn forwards(self, reason: Reason, packet: &Packet) -> Self {
        self.sends(reason, packet.bytes())
    }

    /// These bytes leave in the packet's place.
    pub(crate) fn sends(self, reason: Reason, bytes: Vec<u8>) -> Self {
        Self { expected: Expected::Forward(reason, bytes), ..self }
    }

    /// These bytes go on in the packet's place, uncounted.
    pub(crate) fn hands_over(self, bytes: Vec<u8>) -> Self {
        Self { expected: Expected::HandOver(bytes), ..self }
    }

    /// Afterwards both halves of this flow are in this state, and the one that the packet
    /// belongs to has counted it.
    pub(crate) fn then(self, flow: &Given, state: FlowState) -> Self {
        Self { after: Some((flow.forward_key(), state)), ..self }
    }

    /// Runs the row, through each of the hook's programs.
    pub(crate) fn check(&self, programs: &mut Programs) -> Result<()> {
        for function in functions(self.hook) {
            self.check_program(programs, function, false)
                .with_context(|| (*function).to_owned())?;
            // Nothing is different for being watched.
            let everything = Watch { until: u64::MAX, ..Watch::NONE };
            programs.set(MapName::Watch, 0, everything)?;
            let watched = self.check_program(programs, function, true);
            programs.set(MapName::Watch, 0, Watch::NONE)?;
            watched.with_context(|| format!("{function}, watched"))?;
        }
        Ok(())
    }

    fn check_program(
        &self,
        programs: &mut Programs,
        function: &str,
        is_watched: bool,
    ) -> Result<()> {
        programs.clear_flows()?;
        programs.clear_fragments()?;
        world::set_block(programs, self.block)?;
        for flow in &self.flows {
            flow.insert(programs)?;
        }
        let ifindex = world::ifindex(self.interface)?;
        let at_tc = if self.hook == Hook::Egress { Hook::Egress } else { Hook::Ingress };
        for packet in &self.before {
            programs.run((at_tc, functions(at_tc)[0]), ifindex, packet, 0)?;
        }
        let before = programs.flows()?;
        programs.events()?;
        let outcome = programs.run((self.hook, function), ifindex, &self.input, self.segment)?;
        let (verdict, reason, bytes) = self.expectation();
        let counts = match self.expected {
            Expected::Pass(_) => self.hook == Hook::Ingress,
            Expected::HandOver(_) => false,
            Expected::Drop(_) | Expected::Deliver(..) | Expected::Forward(..) => true,
        };
        let counted: Vec<_> =
            outcome.counted.iter().map(|(name, counted)| (*name, *counted)).collect();
        let size = Counted { packets: 1, bytes: self.input.len() as u64 };
        let expected = if counts { vec![(reason.name(), size)] } else { Vec::new() };
        ensure!(
            outcome.verdict == verdict && counted == expected,
            "{:?} counted as {counted:?}; expected {verdict:?} as {expected:?}",
            outcome.verdict
        );
        if let Some(bytes) = bytes {
            compare(&outcome.packet, bytes)?;
        }
        self.check_told(counts && is_watched, &programs.events()?)?;
        let after = programs.flows()?;
        check_pairs(&after)?;
        if matches!(self.expected, Expected::Pass(_) | Expected::Drop(_)) {
            ensure!(before == after, "flows changed from {before:?} to {after:?}");
        }
        self.check_flow(&before, &after)?;
        self.check_again(programs, function, &outcome).context("the same packet again")
    }

    /// Packets of established flows are answered from the cache from the second one on, and no
    /// different from the first.
    fn check_again(&self, programs: &Programs, function: &str, first: &Outcome) -> Result<()> {
        let (_, reason, _) = self.expectation();
        let established = [
            Reason::RemoteEstablished,
            Reason::RemoteReply,
            Reason::LocalEstablished,
            Reason::LocalReply,
            Reason::DsrEstablished,
        ];
        if !established.contains(&reason) || matches!(self.expected, Expected::Pass(_)) {
            return Ok(());
        }
        let ifindex = world::ifindex(self.interface)?;
        for _ in 0..2 {
            let again = programs.run((self.hook, function), ifindex, &self.input, self.segment)?;
            ensure!(
                again.verdict == first.verdict && again.counted == first.counted,
                "{:?} counted as {:?}",
                again.verdict,
                again.counted
            );
            compare(&again.packet, &first.packet)?;
        }
        check_pairs(&programs.flows()?)
    }

    fn expectation(&self) -> (Verdict, Reason, Option<&[u8]>) {
        match &self.expected {
            Expected::Pass(reason) => (Verdict::Pass, *reason, Some(&self.input)),
            Expected::Drop(reason) => (Verdict::Drop, *reason, None),
            Expected::Deliver(reason, bytes) => (Verdict::Pass, *reason, Some(bytes)),
            Expected::Forward(reason, bytes) => (Verdict::Redirect, *reason, Some(bytes)),
            Expected::HandOver(bytes) => (Verdict::Pass, Reason::NotOurs, Some(bytes)),
        }
    }

    fn check_flow(
        &self,
        before: &BTreeMap<Tuple, Flow>,
        after: &BTreeMap<Tuple, Flow>,
    ) -> Result<()> {
        let Some((key, state)) = self.after else {
            return Ok(());
        };
        let forward = after.get(&key).context("the flow is not there afterwards")?;
        let reply_key = forward.translated.reversed();
        let reply = after.get(&reply_key).context("its reply half is not there afterwards")?;
        ensure!(
            forward.state() == state && reply.state() == state,
            "halves are {:?} and {:?}; expected {state:?}",
            forward.state(),
            reply.state()
        );
        ensure!(
            forward.direction() == Direction::Forward && reply.direction() == Direction::Reply,
            "halves are {:?} and {:?}",
            forward.direction(),
            reply.direction()
        );
        let packets = |flows: &BTreeMap<Tuple, Flow>| {
            [key, reply_key].map(|key| flows.get(&key).map_or(0, |flow| flow.packets))
        };
        let counted: u64 = packets(after).iter().sum();
        // A flow that began anew starts from zero.
        let counted_before: u64 = if before.get(&key).map(|f| f.created) == Some(forward.created) {
            packets(before).iter().sum()
        } else {
            0
        };
        ensure!(counted == counted_before + 1, "{counted} packets after {counted_before}");
        Ok(())
    }
}

/// Runs every row and fails with all that failed.
pub(crate) fn check_all(cases: Vec<Case>) -> Result<()> {
    check_all_with(|| Ok(()), cases)
}

/// As [`check_all`], with what `fill` makes on the node and in the maps.
pub(crate) fn check_all_in(
    fill: impl FnOnce(&mut Programs) -> Result<()> + Send + 'static,
    cases: Vec<Case>,
) -> Result<()> {
    let node = world::build_node()?;
    node.enter(move || {
        let mut programs = Programs::load()?;
        world::fill_maps(&mut programs)?;
        fill(&mut programs)?;
        check_rows(&mut programs, &cases)
    })
}

/// As [`check_all`], with what `prepare` makes on the node.
pub(crate) fn check_all_with<T>(
    prepare: impl FnOnce() -> Result<T> + Send + 'static,
    cases: Vec<Case>,
) -> Result<()> {
    let node = world::build_node()?;
    node.enter(move || {
        let _prepared = prepare()?;
        let mut programs = Programs::load()?;
        world::fill_maps(&mut programs)?;
        check_rows(&mut programs, &cases)
    })
}

fn check_rows(programs: &mut Programs, cases: &[Case]) -> Result<()> {
    let mut failures = Vec::new();
    for case in cases {
        if let Err(error) = case.check(programs) {
            failures.push(format!("{}: {error:#}", case.description));
        }
    }
    println!("{} cases", cases.len());
    if !failures.is_empty() {
        bail!("{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
    }
    Ok(())
}

fn compare(actual: &[u8], expected: &[u8]) -> Result<()> {
    let differs = actual.iter().zip(expected).position(|(a, b)| a != b);
    ensure!(
        actual.len() == expected.len() && differs.is_none(),
        "{} bytes came out and {} were expected; the first difference is at {differs:?}\n  \
         out      {}\n  expected {}",
        actual.len(),
        expected.len(),
        hex(actual),
        hex(expected)
    );
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    let shown = bytes.iter().take(120).map(|byte| format!("{byte:02x}"));
    shown.collect::<Vec<_>>().join(" ")
}
