//! What the demo does, in order. Every step checks that it went as it says.

use std::fs::File;
use std::net::IpAddr;
use std::path::Path;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::host::{BIN, Host, Shown};
use super::network::{
    self, CLIENT, CLIENT_END, ENDS, End, NODE1, NODE1_INSIDE, NODE1_OUTSIDE, NODE2, NODE2_END,
};
use super::server::greet;

const CONFIG: &str = "/run/redirector.yaml";
const LOG: &str = "/run/redirector.log";
/// Where the agent keeps maps and programs, unless told otherwise.
const PINS: &str = "/sys/fs/bpf/redirector";
/// The agent's own server on node 1.
const READY: &str = "http://127.0.0.1:9961/readyz";

/// How long anything may take to be there.
const PATIENCE: Duration = Duration::from_secs(15);

/// Tells the whole story; `agent` is the release binary.
pub(super) fn tell(agent: &Path) -> Result<()> {
    // On the PATH, so that commands can be shown as an operator would type them.
    std::fs::create_dir(BIN).context("cannot make a directory for the agent")?;
    std::os::unix::fs::symlink(agent, format!("{BIN}/redirector"))
        .with_context(|| format!("cannot link to {}", agent.display()))?;

    chapter("Three hosts, each a network namespace: client ── node1 ── node2");
    network::build()?;
    for End { host, v4, v6, .. } in ENDS {
        println!("  {:<7} {:<13} {v6}", host.name, v4.to_string());
    }
    println!("  No host is a router, and node2 does not know the way to the client.");

    chapter("Servers in the host network of node1 and node2");
    println!("  node1: HTTP on port 8080, UDP echo on port 5353");
    println!("  node2: HTTP on port 8080");
    let _servers = start_servers()?;

    chapter("Before: nothing listens on the ports that clients know");
    for url in urls(80) {
        curl(&url)?.must_fail()?;
    }

    chapter("The agent on node1, with this file");
    let mut running = start_agent()?;
    println!("\n  Ready after {:.1} s.", running.start.as_secs_f64());

    let told = published_ports().and_then(|()| {
        look()?;
        survive(&mut running.agent)?;
        detach()
    });
    if told.is_err() {
        show_log();
    }
    told
}

fn chapter(title: &str) {
    println!("\n── {title}");
}

fn start_servers() -> Result<[Child; 2]> {
    let program = std::env::current_exe().context("cannot tell which program this is")?;
    let program = program.to_string_lossy();
    let start = |host: Host, arguments: &[&str]| {
        let words = [&[&*program, "demo-server", host.name], arguments].concat();
        host.start(&mut host.command(&words))
    };
    let servers =
        [start(NODE1, &["--http", "8080", "--udp", "5353"])?, start(NODE2, &["--http", "8080"])?];
    for host in [NODE1, NODE2] {
        wait_until(&format!("the server on {} to answer", host.name), || {
            Ok(host.run(&["curl", "-sf", "http://127.0.0.1:8080/"]).is_ok())
        })?;
    }
    Ok(servers)
}

/// An agent that is ready.
struct Running {
    agent: Child,
    start: Duration,
}

fn start_agent() -> Result<Running> {
    let config = format!(
        "interfaces: [eth0, eth1]
publish:
  - \"80:8080\"           # port 80 of this node: its own port 8080
  - \"53:5353/udp\"
services:
  - name: web-on-node2
    frontends:
      - {{port: 8081}}    # port 8081 of this node: port 8080 of another
    backends:
      - {{address: {}, port: 8080}}
      - {{address: \"{}\", port: 8080}}
",
        NODE2_END.v4, NODE2_END.v6
    );
    for line in config.lines() {
        println!("  {line}");
    }
    std::fs::write(CONFIG, config).with_context(|| format!("cannot write {CONFIG}"))?;

    // The hosts are namespaces: every program of this machine would be a client on them.
    println!("\n  node1$ redirector run --config {CONFIG} --no-local-clients &");
    let begin = Instant::now();
    let log = File::create(LOG).with_context(|| format!("cannot write {LOG}"))?;
    let mut command =
        NODE1.command(&["redirector", "run", "--config", CONFIG, "--no-local-clients"]);
    command.stdout(log.try_clone().context("cannot share the agent's log")?).stderr(log);
    let mut agent = NODE1.start(&mut command)?;
    let ready = wait_until("the agent to be ready", || {
        if let Some(status) = agent.try_wait().context("cannot ask for the agent")? {
            bail!("the agent ended ({status})");
        }
        Ok(NODE1.run(&["curl", "-sf", READY]).is_ok())
    });
    if ready.is_err() {
        show_log();
    }
    ready?;
    Ok(Running { agent, start: begin.elapsed() })
}

fn published_ports() -> Result<()> {
    chapter("After: a port of node1 that its own server answers");
    println!(
        "  Its socket, which listens on 8080, accepts the connection on port 80 itself: nothing"
    );
    println!("  is translated, and the server sees the client's own address.");
    let [v4, v6] = urls(80);
    curl(&v4)?.must_contain(&greeting(NODE1, 80, CLIENT_END.v4))?;
    curl(&v6)?.must_contain(&greeting(NODE1, 80, CLIENT_END.v6))?;

    chapter("After: a port of node1 that node2 answers");
    println!("  The answer has to come back through node1, so node2 sees node1's address.");
    let [v4, v6] = urls(8081);
    curl(&v4)?.must_contain(&greeting(NODE2, 8080, NODE1_INSIDE.v4))?;
    curl(&v6)?.must_contain(&greeting(NODE2, 8080, NODE1_INSIDE.v6))?;

    chapter("After: UDP");
    let End { v4, v6, .. } = NODE1_OUTSIDE;
    echo(&format!("-4 {v4}"))?.must_contain(&greeting(NODE1, 5353, CLIENT_END.v4))?;
    echo(&format!("-6 {v6}"))?.must_contain(&greeting(NODE1, 5353, CLIENT_END.v6))
}

/// A port of node 1 as the client names it, in each family.
fn urls(port: u16) -> [String; 2] {
    let End { v4, v6, .. } = NODE1_OUTSIDE;
    let port = if port == 80 { String::new() } else { format!(":{port}") };
    [format!("http://{v4}{port}/"), format!("http://[{v6}]{port}/")]
}

/// What a server says to a client.
fn greeting(server: Host, port: u16, client: impl Into<IpAddr>) -> String {
    greet(server.name, port, client.into())
}

/// What an operator would look at.
fn look() -> Result<()> {
    chapter("What an operator sees on node1");
    for command in ["status", "service list", "flow list", "counters"] {
        NODE1.show(&format!("redirector {command}"))?.must_succeed()?;
    }
    Ok(())
}

fn survive(agent: &mut Child) -> Result<()> {
    chapter("The agent is killed: everything that packets need is in the kernel");
    println!("\n  node1$ kill -9 {}", agent.id());
    agent.kill().context("cannot kill the agent")?;
    agent.wait().context("cannot wait for the agent")?;
    let [local, _] = urls(80);
    let [_, elsewhere] = urls(8081);
    curl(&local)?.must_contain(&greeting(NODE1, 80, CLIENT_END.v4))?;
    curl(&elsewhere)?.must_contain(&greeting(NODE2, 8080, NODE1_INSIDE.v6))
}

fn detach() -> Result<()> {
    chapter("Detached: nothing is left");
    NODE1.show("redirector detach")?.must_succeed()?;
    for url in urls(80) {
        curl(&url)?.must_fail()?;
    }
    if Path::new(PINS).exists() {
        bail!("{PINS} is still there");
    }
    Ok(())
}

/// Sends a datagram to port 53 and waits for the answer.
fn echo(to: &str) -> Result<Shown> {
    CLIENT.show(&format!("echo hello | nc -u -w 1 {to} 53"))
}

fn curl(url: &str) -> Result<Shown> {
    CLIENT.show(&format!("curl -sS --max-time 3 '{url}'"))
}

fn show_log() {
    let log = std::fs::read_to_string(LOG).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    println!("\n── The agent's log");
    for line in lines.iter().skip(lines.len().saturating_sub(30)) {
        println!("  {line}");
    }
}

/// Waits for something that another process does.
fn wait_until(what: &str, mut there: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !there()? {
        if Instant::now() > deadline {
            bail!("waited {} s for {what}", PATIENCE.as_secs());
        }
        sleep(Duration::from_millis(20));
    }
    Ok(())
}
