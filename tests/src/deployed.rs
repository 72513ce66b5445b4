//! What deploy/ says of the agent's container.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::rbac::v1::PolicyRule;
use serde_json::Value;

/// deploy/kubernetes/daemonset.yaml.
const DAEMONSET: &str = include_str!("../../deploy/kubernetes/daemonset.yaml");

/// deploy/kubernetes/rbac.yaml.
const RIGHTS: &str = include_str!("../../deploy/kubernetes/rbac.yaml");

/// The dashboard.
const DASHBOARD: &str = include_str!("../../deploy/chart/dashboards/redirector.json");

/// The DaemonSet.
///
/// # Errors
///
/// If it is not YAML.
pub fn daemonset() -> Result<Value> {
    serde_saphyr::from_str(DAEMONSET).context("daemonset.yaml")
}

/// The namespace of kustomization.yaml.
pub const NAMESPACE: &str = "redirector";

/// What the agent may ask of the API server, by the kind of role: `ClusterRole` everywhere, `Role`
/// in [`NAMESPACE`].
///
/// # Errors
///
/// If there is no such role.
pub fn rights(kind: &str) -> Result<Vec<PolicyRule>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(RIGHTS).context("rbac.yaml")?;
    let role = documents.iter().find(|document| document["kind"] == kind);
    let rules = &role.with_context(|| format!("no {kind}"))?["rules"];
    Ok(serde_json::from_value(rules.clone())?)
}

/// The agent's container.
///
/// # Errors
///
/// If it is not the only one.
pub fn agent(daemonset: &Value) -> Result<&Value> {
    let containers = daemonset["spec"]["template"]["spec"]["containers"].as_array();
    let [agent] = containers.context("no containers")?.as_slice() else {
        anyhow::bail!("more than one container");
    };
    Ok(agent)
}

/// Its capabilities, as `setpriv` names them.
///
/// # Errors
///
/// If there are none.
pub fn capabilities() -> Result<Vec<String>> {
    let daemonset = daemonset()?;
    let added = agent(&daemonset)?["securityContext"]["capabilities"]["add"].as_array();
    let added = added.context("no capabilities")?;
    Ok(added.iter().filter_map(Value::as_str).map(str::to_lowercase).collect())
}

/// What `setpriv` is told so that a program of root's has these capabilities and no others.
///
/// # Errors
///
/// As [`capabilities`].
pub fn confinement() -> Result<Vec<String>> {
    let kept: Vec<String> = capabilities()?.iter().map(|name| format!(",+{name}")).collect();
    Ok(vec![
        format!("--bounding-set=-all{}", kept.concat()),
        "--inh-caps=-all".to_owned(),
        "--no-new-privs".to_owned(),
    ])
}

/// Environment variables of the agent's container that have a value in the manifest.
///
/// # Errors
///
/// If there are none.
pub fn environment() -> Result<Vec<(String, String)>> {
    let daemonset = daemonset()?;
    let variables = agent(&daemonset)?["env"].as_array().context("no environment")?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Ok(variables.iter().filter_map(|it| Some((text(&it["name"])?, text(&it["value"])?))).collect())
}

/// Names of the metrics that the dashboard asks for.
///
/// # Errors
///
/// If there are none.
pub fn dashboard_metrics() -> Result<Vec<String>> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).context("redirector.json")?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let mut names = Vec::new();
    for target in panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten() {
        let expression = target["expr"].as_str().context("no expression")?;
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        names.extend(words.filter(|word| word.starts_with("redirector_")).map(str::to_owned));
    }
    names.sort_unstable();
    names.dedup();
    ensure!(!names.is_empty(), "the dashboard asks for nothing");
    Ok(names)
}
