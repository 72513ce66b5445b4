//! `redirector check`: what it says beforehand is what the agent then gets.

use anyhow::{Context as _, Result, ensure};
use redirector_tests::agent::Lab;
use serde_json::Value;

#[test]
fn what_is_foretold_comes_true() -> Result<()> {
    Lab::run(|lab| {
        let options = ["check", "--interface", "eth0", "--interface", "eth1"];
        let report = lab.cli().json(&options)?;
        ensure!(report["ok"] == true, "{report}");
        let foretold = modes(&report)?;
        for interface in report["interfaces"].as_array().context("no interfaces")? {
            ensure!(interface["driver"] == "veth" && interface["mtu"] == 1500, "{interface}");
            ensure!(interface["receiveQueues"].as_u64() > Some(0), "{interface}");
        }
        ensure!(!lab.has_pins(), "checking left something behind");
        lab.write_config("publish: ['80:8080']")?;
        lab.start(&[])?;
        let status = lab.cli().json(&["status"])?;
        ensure!(foretold == modes(&status)?, "{report}\n{status}");
        Ok(())
    })
}

fn modes(report: &Value) -> Result<Vec<(String, String)>> {
    let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
    let interfaces = report["interfaces"].as_array().context("no interfaces")?.iter();
    interfaces.map(|it| Ok((text(&it["name"])?, text(&it["xdp"])?))).collect()
}

/// What is wrong is told all at once, each with what to do; then one line, and exit code 1.
#[test]
fn what_is_wrong_is_told() -> Result<()> {
    Lab::run(|lab| {
        let output = lab.cli().output(&["check", "--interface", "lo", "--cgroup", "/tmp"])?;
        ensure!(output.status.code() == Some(1), "{output:?}");
        let said = String::from_utf8_lossy(&output.stdout);
        for part in ["/tmp is no control group", "lo carries no Ethernet frames"] {
            ensure!(said.contains(part), "{part} is not in: {said}");
        }
        let line = lab.cli().refusal(&["check", "--interface", "nowhere"])?;
        ensure!(line.contains("cannot be had here"), "{line}");
        // By default, every interface with a default route: there is none.
        let output = lab.cli().output(&["check"])?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(said.contains("--interface"), "does not say what to do: {said}");
        Ok(())
    })
}
