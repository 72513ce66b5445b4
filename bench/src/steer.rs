//! Steering: connections that sockets of the node have, and packets that open some.
//!
//! Handing a packet to a listener is refused to `BPF_PROG_TEST_RUN`. So what opens connections comes
//! in by a real interface, as live frames, and the kernel's own account of a program's run time
//! tells what each packet cost. The clock reads in that account are in a program that only returns,
//! too, which is taken off.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::programs::tc::{SchedClassifierLinkId, qdisc_add_clsact};
use aya::programs::{SchedClassifier, TcAttachType};
use aya::sys::{Stats, enable_stats};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use redirector_tests::connection::one_sided;
use redirector_tests::namespace::run;

use crate::harness::{Harness, Packets};
use crate::node::NODE;
use crate::ours::{FAMILIES, LOCAL_BACKEND};

/// The interface that packets come in by, and the other end of its cable.
const INTERFACE: &str = "eth0";
const PEER: &str = "peer0";
/// How long the last packets may take.
const LATE: Duration = Duration::from_secs(2);
/// Files beside the connections.
const FILES: u64 = 64;
/// Connections of one process at most.
const CONNECTIONS: u64 = 65_536;
/// Ends a list of connections, and answers it.
const READY: &str = "ready";

/// Sockets of the node's, gone with this.
pub(crate) struct Sockets {
    _holders: Vec<Holder>,
    _listeners: Vec<TcpListener>,
}

/// A process that has some of the connections: no process may have as many files as there are flows.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        // It ends with its input.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

impl Sockets {
    /// A listener for what is steered, and these connections: node's end, client's end.
    pub(crate) fn open(connections: &[(SocketAddr, SocketAddr)]) -> Result<Self> {
        let listeners = FAMILIES.map(|family| {
            let address = SocketAddr::new(NODE.of(family), LOCAL_BACKEND);
            TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))
        });
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard.max(soft), hard)?;
        let each = usize::try_from(hard.saturating_sub(FILES).clamp(1, CONNECTIONS))?;
        Ok(Self {
            _holders: connections.chunks(each).map(hold_elsewhere).collect::<Result<_>>()?,
            _listeners: listeners.into_iter().collect::<Result<_>>()?,
        })
    }
}

/// Starts a process that has these connections, and waits until it has.
fn hold_elsewhere(connections: &[(SocketAddr, SocketAddr)]) -> Result<Holder> {
    let mut command = Command::new(std::env::current_exe().context("this program's own file")?);
    command.arg("hold-connections").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut holder = Holder(command.spawn().with_context(|| format!("starting {command:?}"))?);
    let (input, output) = (holder.0.stdin.as_mut(), holder.0.stdout.take());
    let (input, output) = input.zip(output).context("a process without pipes")?;
    let mut lines = String::new();
    for (from, to) in connections {
        lines += &format!("{from} {to}\n");
    }
    // It says itself why it ended.
    input.write_all((lines + READY + "\n").as_bytes()).context("a holder of connections ended")?;
    let mut answer = String::new();
    BufReader::new(output).read_line(&mut answer)?;
    ensure!(answer.trim_end() == READY, "a holder of connections ended");
    Ok(holder)
}

/// `hold-connections`: opens what it is told to, says so, and keeps it until its input ends.
pub(crate) fn hold() -> Result<()> {
    let mut sockets = Vec::new();
    for line in std::io::stdin().lines() {
        let line = line?;
        if line == READY {
            println!("{READY}");
            continue;
        }
        let (from, to) = line.split_once(' ').with_context(|| format!("{line:?}"))?;
        sockets.push(one_sided(from.parse()?, to.parse()?)?);
    }
    Ok(())
}

/// Makes the interface take live frames, and the kernel answer each SYN without remembering it.
pub(crate) fn prepare() -> Result<()> {
    run("ethtool", ["-K", INTERFACE, "gro", "on"])?;
    let path = "/proc/sys/net/ipv4/tcp_syncookies";
    std::fs::write(path, "2").with_context(|| format!("cannot write {path}"))
}

/// SYN cookies that the kernel has sent from this namespace.
pub(crate) fn cookies() -> Result<u64> {
    let path = "/proc/thread-self/net/netstat";
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let mut rows = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) =
        rows.next().zip(rows.next()).with_context(|| format!("no TcpExt in {path}"))?;
    let mut columns = names.split(' ').zip(values.split(' '));
    let sent = columns.find(|(name, _)| *name == "SyncookiesSent");
    Ok(sent.with_context(|| format!("no SyncookiesSent in {path}"))?.1.parse()?)
}

/// Attaches a program for what comes in.
pub(crate) fn attach(
    program: &mut SchedClassifier,
    interface: &str,
) -> Result<SchedClassifierLinkId> {
    // Before 6.6 programs hang from a queueing discipline, which may be there already.
    let _ = qdisc_add_clsact(interface);
    program
        .attach(interface, TcAttachType::Ingress)
        .with_context(|| format!("attaching a TC program to {interface}"))
}

/// A program while packets come in to it.
pub(crate) struct Attached<'a> {
    program: &'a mut SchedClassifier,
    link: Option<SchedClassifierLinkId>,
}

impl<'a> Attached<'a> {
    pub(crate) fn new(program: &'a mut SchedClassifier) -> Result<Self> {
        let link = attach(program, INTERFACE)?;
        Ok(Self { program, link: Some(link) })
    }

    /// Time and runs so far.
    fn ran(&self) -> Result<(Duration, u64)> {
        let info = self.program.info()?;
        Ok((info.run_time(), info.run_count()))
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        if let Some(link) = self.link.take()
            && let Err(error) = self.program.detach(link)
        {
            eprintln!("detaching: {error}");
        }
    }
}

/// Nanoseconds that a program takes for each of so many packets that come in.
pub(crate) fn time(
    generator: &mut Harness,
    attached: &Attached<'_>,
    packets: &Packets,
    count: u32,
) -> Result<f64> {
    let _stats = enable_stats(Stats::RunTime).context("BPF_ENABLE_STATS")?;
    let (time, runs) = attached.ran()?;
    generator.send(packets, PEER, count)?;
    let began = Instant::now();
    loop {
        let (after, runs_after) = attached.ran()?;
        let (spent, ran) = (after.saturating_sub(time), runs_after - runs);
        // What else comes in: the kernel's own greetings.
        ensure!(ran <= u64::from(count) + 64, "{ran} packets came in, not {count}");
        if ran >= u64::from(count) {
            return Ok(spent.as_secs_f64() * 1e9 / ran as f64);
        }
        ensure!(began.elapsed() < LATE, "of {count} packets {ran} came in");
        std::thread::sleep(Duration::from_millis(1));
    }
}
