//! The JSON that programs rely on, key by key.

use anyhow::{Context as _, Result, ensure};
use redirector_common::{Family, Reason};
use redirector_tests::{
    agent::{ADMIN, Lab, get},
    client,
    site::{CONFIG, Place, check_answers, serve_echo, serve_names},
    topology::{CLIENT, NODE1, NODE2},
};
use serde_json::{Value, json};

/// Asserts that an object has these keys. There may be more: what is promised is extended, never
/// changed.
fn has_keys(value: &Value, keys: &[&str]) -> Result<()> {
    let object = value.as_object().with_context(|| format!("not an object: {value}"))?;
    let missing: Vec<_> = keys.iter().filter(|key| !object.contains_key(**key)).collect();
    ensure!(missing.is_empty(), "{missing:?} are missing: {value}");
    Ok(())
}

fn find<'a>(rows: &'a [Value], key: &str, value: &str) -> Result<&'a Value> {
    rows.iter()
        .find(|row| row[key] == value)
        .with_context(|| format!("no row with {key} {value}: {rows:?}"))
}

#[test]
fn service_list() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let _servers = serve_names(lab)?;
        check_answers(lab)?;
        let rows = lab.cli().rows(&["service", "list"])?;
        ensure!(rows.len() == 4, "{} services", rows.len());
        for row in &rows {
            has_keys(
                row,
                &[
                    "name",
                    "namespace",
                    "source",
                    "frontends",
                    "backends",
                    "policy",
                    "affinitySeconds",
                    "forwarding",
                    "sourceRanges",
                ],
            )?;
            ensure!(row["namespace"].is_null() && row["affinitySeconds"].is_null(), "{row}");
            ensure!(row["policy"] == "cluster" && row["forwarding"] == "snat", "{row}");
            for frontend in row["frontends"].as_array().context("frontends")? {
                has_keys(frontend, &["address", "port", "protocol", "state", "packets", "bytes"])?;
                ensure!(frontend["port"].is_u64() && frontend["packets"].is_u64(), "{frontend}");
                ensure!(frontend["bytes"].is_u64() && frontend["state"] == "active", "{frontend}");
            }
            for backend in row["backends"].as_array().context("backends")? {
                has_keys(backend, &["address", "port", "local", "state", "weight"])?;
                ensure!(backend["state"] == "active" && backend["weight"] == 1, "{backend}");
            }
        }
        let web = find(&rows, "name", "web")?;
        ensure!(web["source"] == "static", "{web}");
        let frontend = find(
            web["frontends"].as_array().context("frontends")?,
            "address",
            &NODE1.of(Family::V4).to_string(),
        )?;
        ensure!(frontend["port"] == 81 && frontend["protocol"] == "TCP", "{frontend}");
        let backend = json!({
            "address": NODE2.of(Family::V4).to_string(),
            "port": 8080, "local": false, "state": "active", "weight": 1,
        });
        ensure!(web["backends"].as_array().is_some_and(|b| b.contains(&backend)), "{web}");
        let publish = find(&rows, "name", "80:8080/tcp")?;
        ensure!(publish["source"] == "publish" && publish["backends"][0]["local"] == true);

        let one = lab.cli().json(&["service", "get", "web"])?;
        let one = if one.is_array() { &one[0] } else { &one };
        ensure!(one["name"] == "web" && one["frontends"].is_array(), "{one}");
        Ok(())
    })
}

#[test]
fn counters() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let _servers = serve_names(lab)?;
        check_answers(lab)?;
        let rows = lab.cli().rows(&["counters"])?;
        for row in &rows {
            has_keys(row, &["reason", "interface", "verdict", "packets", "bytes"])?;
            let reason = Reason::ALL.iter().find(|reason| row["reason"] == reason.name());
            let reason = reason.with_context(|| format!("no such Reason: {row}"))?;
            ensure!(row["verdict"] == reason.verdict().name(), "{row}");
            ensure!(row["packets"].is_u64() && row["bytes"].is_u64(), "{row}");
        }
        let seen = |reason: &str, interface: &str| {
            rows.iter().any(|row| {
                row["reason"] == reason
                    && row["interface"] == interface
                    && row["packets"].as_u64().is_some_and(|packets| packets > 0)
            })
        };
        for (reason, interface) in [
            ("steered-new", "eth0"),
            ("steered-established", "eth0"),
            // Of UDP.
            ("local-new", "eth0"),
            ("local-reply", "eth0"),
            ("remote-new", "eth0"),
            ("remote-established", "eth0"),
            ("remote-reply", "eth1"),
        ] {
            ensure!(seen(reason, interface), "no {reason} on {interface}: {rows:?}");
        }
        Ok(())
    })
}

#[test]
fn flow_list() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let _servers = serve_echo(lab)?;
        let client = |family| std::net::SocketAddr::new(CLIENT.of(family), 45010).to_string();
        let socket = client::udp_from(&lab.net.client, 45010, Place::Local.udp(Family::V4))?;
        for _ in 0..4 {
            client::round_trip(&socket, b"hello")?;
        }
        let stream = client::tcp_from(&lab.net.client, 45010, Place::Remote.tcp(Family::V6))?;
        client::echo(&stream, b"hello")?;
        let rows = lab.cli().rows(&["flow", "list"])?;
        ensure!(rows.len() == 2, "{rows:?}");
        for row in &rows {
            has_keys(
                row,
                &[
                    "protocol",
                    "client",
                    "frontend",
                    "backend",
                    "service",
                    "state",
                    "ageSeconds",
                    "idleSeconds",
                    "packets",
                    "bytes",
                ],
            )?;
            ensure!(row["ageSeconds"].is_number() && row["idleSeconds"].is_number(), "{row}");
            ensure!(row["packets"].as_u64().is_some_and(|packets| packets > 3), "{row}");
        }
        let local = find(&rows, "client", &client(Family::V4))?;
        ensure!(local["protocol"] == "UDP" && local["state"] == "replied", "{local}");
        ensure!(
            local["frontend"] == "198.18.1.1:53" && local["service"] == "53:5353/udp",
            "{local}"
        );
        ensure!(local["backend"] == "198.18.1.1:5353", "{local}");
        let remote = find(&rows, "client", &client(Family::V6))?;
        ensure!(remote["protocol"] == "TCP" && remote["state"] == "established", "{remote}");
        ensure!(
            remote["frontend"] == "[2001:db8:1::1]:81" && remote["service"] == "web",
            "{remote}"
        );
        ensure!(remote["backend"] == "[2001:db8:2::2]:8080", "{remote}");

        lab.cli().text(&["flow", "flush", "--all"])?;
        ensure!(lab.cli().rows(&["flow", "list"])?.is_empty(), "flows after a flush");
        Ok(())
    })
}

#[test]
fn maps() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let _servers = serve_names(lab)?;
        check_answers(lab)?;
        let listed = lab.cli().rows(&["map", "list"])?;
        for name in redirector_common::map_name::MapName::ALL {
            find(&listed, "name", name.name())?;
            lab.cli().json(&["map", "dump", name.name()])?;
        }
        let frontends = lab.cli().rows(&["map", "dump", "FRONTENDS"])?;
        // Four services, each on two addresses and localhost, of both families.
        ensure!(frontends.len() == 24, "{} frontends", frontends.len());
        Ok(())
    })
}

#[test]
fn admin() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let _servers = serve_names(lab)?;
        check_answers(lab)?;
        for path in ["/livez", "/readyz", "/metrics"] {
            let (status, text) = get(&lab.net.node1, ADMIN, path)?;
            ensure!(status == 200, "{path}: {status} {text}");
        }
        let (_, metrics) = get(&lab.net.node1, ADMIN, "/metrics")?;
        for name in [
            "redirector_packets_total{",
            "redirector_bytes_total{",
            "redirector_service_packets_total{",
            "redirector_flows ",
            "redirector_map_entries{map=\"FLOWS\"}",
            "redirector_map_capacity{map=\"FLOWS\"}",
            "redirector_sync_duration_seconds",
            "redirector_sync_errors_total",
            "redirector_config_stale ",
            "redirector_frontend_conflicts",
            "redirector_xdp_mode{interface=\"eth0\",mode=\"native\"} 1",
            "redirector_build_info{",
        ] {
            ensure!(metrics.contains(name), "no {name} in {metrics}");
        }
        let counted = lab.cli().packets("local-new")?;
        let metric = lab.metric(
            "redirector_packets_total{reason=\"local-new\",verdict=\"deliver\",interface=\"eth0\"}",
        )?;
        #[expect(clippy::cast_precision_loss, reason = "a handful of packets")]
        let counted = counted as f64;
        ensure!(metric == Some(counted), "the metric says {metric:?}, the command {counted}");
        Ok(())
    })
}
