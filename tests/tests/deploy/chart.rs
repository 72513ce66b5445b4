//! The Helm chart, by helm itself.

use anyhow::{Context as _, Result, bail, ensure};
use redirector_tests::deployed;
use serde_json::Value;

use crate::manifests::{check, kustomized};
use crate::strict::{only, read};
use crate::{deploy, run, tool};

/// Renders the chart with these settings (`--set-json`).
fn render(settings: &[&str]) -> Result<Vec<Value>> {
    match attempt(settings)? {
        Ok(yaml) => read(&yaml).with_context(|| format!("{settings:?}")),
        Err(complaint) => bail!("{settings:?}: {complaint}"),
    }
}

fn attempt(settings: &[&str]) -> Result<std::result::Result<String, String>> {
    let mut helm = tool("REDIRECTOR_HELM", "helm");
    helm.args(["template", "redirector"]).arg(deploy("chart")).args(["--namespace", "redirector"]);
    for setting in settings {
        helm.args(["--set-json", setting]);
    }
    let (rendered, yaml, complaint) = run(&mut helm)?;
    Ok(if rendered { Ok(yaml) } else { Err(complaint) })
}

#[test]
fn it_lints() -> Result<()> {
    let mut helm = tool("REDIRECTOR_HELM", "helm");
    let (clean, findings, complaint) = run(helm.args(["lint", "--strict"]).arg(deploy("chart")))?;
    ensure!(clean, "{findings}{complaint}");
    Ok(())
}

#[test]
fn every_rendering_is_strict_and_least() -> Result<()> {
    for settings in [
        &[][..],
        &["admin.host=\"$(HOST_IP)\"", "admin.port=9999"],
        &["localClients.enabled=false", "detachOnExit=true", "resources=null"],
        &["interfaces=[\"eth0\",\"bond0.5\"]", "nodePortAddresses=[\"primary\"]"],
        &["nodePortAddresses=[\"192.0.2.0/24\",\"2001:db8::/32\"]"],
        &["externalIPCIDRs=[\"198.51.100.0/24\"]", "serviceProxyName=\"edge\""],
        &["allowPorts=[22,443]", "healthzAddress=\"[::]:10256\""],
        &["config={\"publish\":[\"80:8080\"],\"snatPorts\":\"50000-51000\"}"],
        &["image={\"repository\":\"r\",\"digest\":\"\",\"tag\":\"v2\",\"pullSecrets\":[\"s\"]}"],
        &["fullnameOverride=\"other\"", "podLabels={\"a\":\"b\"}", "podAnnotations={\"a\":\"b\"}"],
        &["seccompProfile={\"type\":\"Unconfined\"}", "seLinuxOptions=null", "tolerations=[]"],
        &["serviceAccount={\"name\":\"mine\",\"annotations\":{\"a\":\"b\"}}"],
        &["extraArgs=[\"--xdp-mode=generic\"]", "extraEnv=[{\"name\":\"A\",\"value\":\"b\"}]"],
        &["affinity={\"nodeAffinity\":{}}", "maxUnavailable=\"10%\""],
    ] {
        check(&render(settings)?).with_context(|| format!("{settings:?}"))?;
    }
    Ok(())
}

#[test]
fn monitoring_is_optional() -> Result<()> {
    let without = render(&[])?;
    ensure!(only(&without, "ServiceMonitor").is_err() && only(&without, "Service").is_err());
    let objects = render(&[
        "serviceMonitor={\"enabled\":true,\"labels\":{\"release\":\"prometheus\"}}",
        "dashboard.enabled=true",
        "admin.host=\"$(HOST_IP)\"",
    ])?;
    only(&objects, "ServiceMonitor")?;
    let dashboard = objects.iter().find_map(|object| object["data"]["redirector.json"].as_str());
    let dashboard: Value = serde_json::from_str(dashboard.context("no dashboard")?)?;
    ensure!(dashboard["title"] == "redirector");
    Ok(())
}

#[test]
fn wrong_values_are_refused() -> Result<()> {
    for (settings, named) in [
        ("nope=1", "nope"),
        ("image.tagg=\"v1\"", "tagg"),
        ("admin.port=0", "port"),
        ("interfaces=[\"eth0/1\"]", "interfaces"),
        ("nodePortAddresses=[\"primary\",\"192.0.2.0/24\"]", "nodePortAddresses"),
        ("nodePortAddresses=[\"192.0.2.0\"]", "nodePortAddresses"),
        ("detachOnExit=\"yes\"", "detachOnExit"),
        ("maxUnavailable=0", "maxUnavailable"),
        ("serviceMonitor.enabled=true", "admin.host"),
    ] {
        let Err(complaint) = attempt(&[settings])? else {
            bail!("{settings} is taken");
        };
        ensure!(complaint.contains(named), "{settings}: {complaint}");
    }
    Ok(())
}

/// Neither way of installing lags behind the other.
#[test]
fn the_chart_and_the_manifests_say_the_same() -> Result<()> {
    let (chart, plain) = (render(&[])?, kustomized()?);
    for (kind, part) in [
        ("DaemonSet", "/spec/template/spec"),
        ("DaemonSet", "/spec/updateStrategy"),
        ("ClusterRole", "/rules"),
        ("ClusterRoleBinding", "/subjects"),
        ("Role", "/rules"),
        ("RoleBinding", "/subjects"),
        ("ConfigMap", "/data"),
        ("ServiceAccount", "/automountServiceAccountToken"),
    ] {
        let of = |objects| -> Result<Value> {
            let object: &Value = only(objects, kind)?;
            Ok(object.pointer(part).with_context(|| format!("{kind} without {part}"))?.clone())
        };
        let (chart, plain) = (of(&chart)?, of(&plain)?);
        ensure!(chart == plain, "{kind}{part}: the chart has\n{chart}\nkustomize\n{plain}");
    }
    deployed::agent(&deployed::daemonset()?).map(drop)
}
