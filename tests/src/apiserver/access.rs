//! Who may do what, and what was asked.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::rbac::v1::PolicyRule;

use super::{error::ApiError, request::Objects, write::Part};

/// What a client asked for: verb, kind (with `/status` where that was meant), in which group,
/// and with which parameters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    /// As rules of roles name it.
    pub verb: &'static str,
    /// API group.
    pub group: &'static str,
    /// `pods`, `services/status`.
    pub resource: String,
    /// The parameters, as they were sent.
    pub query: String,
    /// Whether the rules allow it.
    pub allowed: bool,
}

/// Credentials and rules.
#[derive(Debug, Default)]
pub struct Access {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tokens: BTreeSet<String>,
    rules: Option<Vec<PolicyRule>>,
    /// Besides, in these namespaces alone.
    roles: Vec<(String, Vec<PolicyRule>)>,
    asked: Vec<Asked>,
}

impl Access {
    /// From now on these bearer tokens are good, and no others.
    pub fn set_tokens(&self, tokens: impl IntoIterator<Item = String>) {
        self.lock().tokens = tokens.into_iter().collect();
    }

    /// From now on only this is allowed.
    pub fn set_rules(&self, rules: Vec<PolicyRule>) {
        self.lock().rules = Some(rules);
    }

    /// From now on this is allowed in a namespace, besides what is allowed everywhere.
    pub fn set_role(&self, namespace: &str, rules: Vec<PolicyRule>) {
        let roles = &mut self.lock().roles;
        roles.retain(|(known, _)| known != namespace);
        roles.push((namespace.to_owned(), rules));
    }

    /// All that was asked for so far.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.lock().asked.clone()
    }

    pub(super) fn knows(&self, token: &str) -> bool {
        self.lock().tokens.contains(token)
    }

    /// Notes the request, and refuses it if the rules do.
    pub(super) fn check(
        &self,
        verb: &'static str,
        wanted: &Objects,
        query: &str,
    ) -> Result<(), ApiError> {
        let mut state = self.lock();
        let resource = match wanted.part {
            Part::Main => wanted.resource.plural.to_owned(),
            Part::Status => format!("{}/status", wanted.resource.plural),
        };
        let group = wanted.resource.group;
        let allowed = state.rules.as_ref().is_none_or(|rules| {
            let of_namespace = |(known, _): &&(String, _)| wanted.namespace.as_ref() == Some(known);
            let roles = state.roles.iter().filter(of_namespace).flat_map(|(_, rules)| rules);
            let name = wanted.name.as_deref();
            rules.iter().chain(roles).any(|rule| allows(rule, verb, group, &resource, name))
        });
        let asked = Asked { verb, group, resource, query: query.to_owned(), allowed };
        let result = if allowed {
            Ok(())
        } else {
            Err(ApiError::forbidden(format!(
                "{} is forbidden: User \"redirector\" cannot {verb} resource {:?} in API group \
                 {group:?}",
                wanted.resource.qualified(),
                asked.resource
            )))
        };
        state.asked.push(asked);
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn allows(rule: &PolicyRule, verb: &str, group: &str, resource: &str, name: Option<&str>) -> bool {
    let names = |list: &[String], wanted: &str| list.iter().any(|one| one == "*" || one == wanted);
    let optional = |list: &Option<Vec<String>>, wanted: &str| {
        list.as_ref().is_some_and(|list| names(list, wanted))
    };
    let named = rule.resource_names.as_deref().unwrap_or_default();
    names(&rule.verbs, verb)
        && optional(&rule.api_groups, group)
        && optional(&rule.resources, resource)
        && (named.is_empty() || name.is_some_and(|name| named.iter().any(|one| one == name)))
}
