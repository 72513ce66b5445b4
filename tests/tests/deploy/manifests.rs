//! deploy/kubernetes, and what holds of the chart just as well.

use anyhow::{Context as _, Result, ensure};
use redirector_tests::{cli::program, deployed};
use serde_json::{Value, json};
use std::process::Command;

use crate::strict::{only, read};
use crate::{deploy, run, tool};

pub(crate) fn kustomized() -> Result<Vec<Value>> {
    let mut kubectl = tool("REDIRECTOR_KUBECTL", "kubectl");
    let (built, yaml, complaint) = run(kubectl.arg("kustomize").arg(deploy("kubernetes")))?;
    ensure!(built, "kubectl kustomize: {complaint}");
    read(&yaml)
}

/// What holds of every way of installing.
pub(crate) fn check(objects: &[Value]) -> Result<()> {
    check_agent(only(objects, "DaemonSet")?)?;
    check_rules(&only(objects, "ClusterRole")?["rules"])?;
    check_leases(objects)?;
    let file = &only(objects, "ConfigMap")?["data"]["redirector.yaml"];
    check_file(file.as_str().context("the ConfigMap has no redirector.yaml")?)
}

/// The agent takes its arguments, and has no more power than it needs.
fn check_agent(daemonset: &Value) -> Result<()> {
    let pod = &daemonset["spec"]["template"]["spec"];
    ensure!(pod["hostNetwork"] == true, "not in the host's network");
    ensure!(daemonset["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"] == 0);
    let agent = deployed::agent(daemonset)?;
    let security = &agent["securityContext"];
    ensure!(security["privileged"] == false && security["readOnlyRootFilesystem"] == true);
    ensure!(security["allowPrivilegeEscalation"] == false);
    let capabilities = json!({"drop": ["ALL"], "add": ["BPF", "NET_ADMIN", "PERFMON"]});
    ensure!(security["capabilities"] == capabilities, "{security}");
    for mount in agent["volumeMounts"].as_array().context("no mounts")? {
        ensure!(
            pod["volumes"].as_array().is_some_and(|volumes| volumes
                .iter()
                .any(|volume| volume["name"] == mount["name"])),
            "no volume for {mount}"
        );
        // The API server refuses it without privileged.
        ensure!(mount["mountPropagation"] != "Bidirectional", "{mount}");
    }
    // Options are looked at before help is printed.
    let arguments = agent["args"].as_array().context("no arguments")?;
    let arguments: Vec<String> = arguments
        .iter()
        .filter_map(Value::as_str)
        .map(|word| expand(word, &agent["env"]))
        .collect();
    let (known, _, complaint) = run(Command::new(program()?).args(arguments).arg("--help"))?;
    ensure!(known, "the agent does not know its arguments: {complaint}");
    Ok(())
}

/// An argument as the container gets it: variables that come from the pod, which all are
/// addresses where arguments use them, have a value.
fn expand(argument: &str, environment: &Value) -> String {
    let variables = environment.as_array().into_iter().flatten();
    let from_pod =
        variables.filter(|it| it["valueFrom"]["fieldRef"]["fieldPath"] == "status.hostIP");
    from_pod
        .filter_map(|variable| variable["name"].as_str())
        .fold(argument.to_owned(), |text, name| text.replace(&format!("$({name})"), "192.0.2.1"))
}

/// Reading, and telling by Events; nothing else.
fn check_rules(rules: &Value) -> Result<()> {
    let rules = rules.as_array().context("no rules")?;
    for rule in rules {
        let resources = rule["resources"].as_array().context("no resources")?;
        let allowed: &[&str] =
            if *resources == ["events"] { &["create"] } else { &["list", "watch"] };
        ensure!(rule["verbs"] == json!(allowed), "{rule}");
    }
    let mut resources: Vec<&str> = rules
        .iter()
        .filter_map(|rule| rule["resources"].as_array())
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    resources.sort_unstable();
    ensure!(
        resources == ["endpointslices", "events", "nodes", "pods", "services"],
        "{resources:?}"
    );
    Ok(())
}

/// Leases of the agents' own namespace, and nothing else there.
fn check_leases(objects: &[Value]) -> Result<()> {
    let (role, binding) = (only(objects, "Role")?, only(objects, "RoleBinding")?);
    let rules = json!([{
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "verbs": ["list", "watch", "create", "patch", "delete"],
    }]);
    ensure!(role["rules"] == rules, "{}", role["rules"]);
    let namespace = &only(objects, "DaemonSet")?["metadata"]["namespace"];
    for object in [role, binding] {
        ensure!(object["metadata"]["namespace"] == *namespace, "{}", object["metadata"]);
    }
    ensure!(binding["roleRef"]["name"] == role["metadata"]["name"], "{binding}");
    let cluster_wide = only(objects, "ClusterRoleBinding")?;
    ensure!(binding["subjects"] == cluster_wide["subjects"], "{binding}");
    Ok(())
}

fn check_file(text: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), text)?;
    let mut command = Command::new(program()?);
    let (right, _, complaint) = run(command.args(["config", "check"]).arg(file.path()))?;
    ensure!(right, "{complaint}");
    Ok(())
}

#[test]
fn manifests_are_strict_and_least() -> Result<()> {
    let objects = kustomized()?;
    check(&objects)?;
    for object in &objects {
        let metadata = &object["metadata"];
        let cluster_wide = ["Namespace", "ClusterRole", "ClusterRoleBinding"];
        let namespaced = !cluster_wide.iter().any(|kind| object["kind"] == *kind);
        ensure!(!namespaced || metadata["namespace"] == "redirector", "{metadata}");
    }
    Ok(())
}

/// Wherever an example is shown, the agent takes it.
#[test]
fn the_example_is_taken() -> Result<()> {
    check_file(&std::fs::read_to_string(deploy("redirector.example.yaml"))?)
}
