//! Which flows a command is about.

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use redirector_common::FlowState;

use super::rows::FlowRow;
use crate::cli::parties::{End, Parties, is_named};

/// Filters; a flow must match all that are given.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct Selection {
    #[command(flatten)]
    parties: Parties,
    /// Only in this state
    #[arg(long, ignore_case = true, value_parser = states())]
    state: Option<FlowState>,
}

impl Selection {
    /// Whether the flow matches all filters that are given.
    pub(super) fn matches(&self, row: &FlowRow) -> bool {
        let Parties { client, frontend, backend, service, protocol } = &self.parties;
        let at = |end: &Option<End>, socket| end.is_none_or(|end| end.matches(socket));
        at(client, row.client)
            && at(frontend, row.frontend)
            && at(backend, row.backend)
            && service.as_ref().is_none_or(|name| is_named(&row.service, name))
            && protocol.is_none_or(|protocol| row.protocol == protocol)
            && self.state.is_none_or(|state| row.state == state)
    }
}

fn states() -> impl TypedValueParser<Value = FlowState> {
    PossibleValuesParser::new(FlowState::ALL.map(FlowState::name)).try_map(|word| {
        FlowState::ALL
            .into_iter()
            .find(|state| state.name().eq_ignore_ascii_case(&word))
            .ok_or("no such state")
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use redirector_common::Protocol;

    use super::super::rows::{Loaded, flow_rows, tests::flow};
    use super::*;

    fn row() -> FlowRow {
        let halves = flow(Protocol::Tcp, "198.51.100.7:4000", "192.0.2.1:80", "10.0.0.5:8080");
        let loaded = Loaded { flows: BTreeMap::from(halves), infos: BTreeMap::new() };
        flow_rows(&loaded, 0).remove(0)
    }

    fn end(text: &str) -> Option<End> {
        Some(text.parse().expect(text))
    }

    #[test]
    fn without_filters_all_match() {
        assert!(Selection::default().matches(&row()));
    }

    #[test]
    fn every_filter_must_match() {
        let parties = Parties {
            client: end("198.51.100.7"),
            backend: end("10.0.0.5:8080"),
            protocol: Some(Protocol::Tcp),
            ..Parties::default()
        };
        let mut selection = Selection { parties, state: None };
        assert!(selection.matches(&row()));
        selection.parties.frontend = end("192.0.2.1:81");
        assert!(!selection.matches(&row()));
    }

    #[test]
    fn a_service_matches_with_and_without_its_namespace() {
        let with = |service: &str, filter: &str| {
            let parties = Parties { service: Some(filter.to_owned()), ..Parties::default() };
            let selection = Selection { parties, state: None };
            let row = FlowRow { service: service.to_owned(), ..row() };
            selection.matches(&row)
        };
        assert!(with("shop/web", "web"));
        assert!(with("shop/web", "shop/web"));
        assert!(!with("shop/web", "eb"));
        assert!(with("80:8080/tcp", "80:8080/tcp"));
        assert!(!with("80:8080/tcp", "tcp"));
    }
}
