//! Real clients.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use socket2::{Domain, Socket, Type};

use crate::{namespace::Namespace, wait};

/// How long a client or server waits for the other before it gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A TCP connection from a host.
///
/// # Errors
///
/// If it can't be made.
pub fn tcp(host: &Namespace, to: SocketAddr) -> Result<TcpStream> {
    tcp_from(host, 0, to)
}

/// A TCP connection from a port of a host.
///
/// # Errors
///
/// If it can't be made.
pub fn tcp_from(host: &Namespace, port: u16, to: SocketAddr) -> Result<TcpStream> {
    connect(bound(host, port, to, Type::STREAM)?, to, PATIENCE)
}

/// A TCP connection from a host, if it can be made in so much time.
///
/// # Errors
///
/// If it can't.
pub fn tcp_within(host: &Namespace, to: SocketAddr, patience: Duration) -> Result<TcpStream> {
    connect(bound(host, 0, to, Type::STREAM)?, to, patience)
}

fn connect(socket: Socket, to: SocketAddr, patience: Duration) -> Result<TcpStream> {
    socket
        .connect_timeout(&to.into(), patience)
        .with_context(|| format!("connecting to {to} over TCP"))?;
    Ok(socket.into())
}

/// A UDP socket of a host, connected.
///
/// # Errors
///
/// If it can't be made.
pub fn udp(host: &Namespace, to: SocketAddr) -> Result<UdpSocket> {
    udp_from(host, 0, to)
}

/// A UDP socket on a port of a host, connected.
///
/// # Errors
///
/// If it can't be made.
pub fn udp_from(host: &Namespace, port: u16, to: SocketAddr) -> Result<UdpSocket> {
    let socket = bound(host, port, to, Type::DGRAM)?;
    socket.set_recv_buffer_size(4 << 20)?;
    socket.connect(&to.into()).with_context(|| format!("connecting to {to} over UDP"))?;
    Ok(socket.into())
}

fn bound(host: &Namespace, port: u16, to: SocketAddr, kind: Type) -> Result<Socket> {
    // A socket stays in the namespace in which it was made, whoever uses it.
    let socket = host.enter(move || Ok(Socket::new(Domain::for_address(to), kind, None)?))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    if port != 0 {
        socket.set_reuse_address(true)?;
        let any: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        wait::until_free(|| socket.bind(&SocketAddr::new(any, port).into()))
            .with_context(|| format!("binding the client's port {port}"))?;
    }
    Ok(socket)
}

/// A UDP socket of a host, connected to where an echo server has answered another one: agents may
/// still be about to serve what is asked for.
///
/// # Errors
///
/// If nobody answers.
pub fn udp_once_served(host: &Namespace, to: SocketAddr) -> Result<UdpSocket> {
    wait::until_true(&format!("an echo from {to}"), wait::SOON, || {
        let socket = udp(host, to)?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        Ok(round_trip(&socket, b"hello").is_ok())
    })?;
    udp(host, to)
}

/// What a `Whoami` server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whoami {
    /// The server's name.
    pub server: String,
    /// The client as the server saw it.
    pub client: SocketAddr,
}

impl Whoami {
    /// Reads what a server said.
    ///
    /// # Errors
    ///
    /// If it was no whoami server.
    pub fn parse(text: &str) -> Result<Self> {
        let parse = || {
            let (server, client) = text.trim().strip_prefix("server=")?.split_once(" client=")?;
            Some(Self { server: server.to_owned(), client: client.parse().ok()? })
        };
        parse().with_context(|| format!("not an answer of a whoami server: {text:?}"))
    }
}

/// Asks a `Whoami` server over TCP.
///
/// # Errors
///
/// If there is no connection or no answer.
pub fn whoami(host: &Namespace, to: SocketAddr) -> Result<Whoami> {
    ask(&tcp(host, to)?)
}

/// Asks a `Whoami` server at the other end of a connection.
///
/// # Errors
///
/// If there is no answer.
pub fn ask(mut stream: &TcpStream) -> Result<Whoami> {
    stream.write_all(b"who am I?\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("reading the answer")?;
    Whoami::parse(&answer)
}

/// Asks a `Whoami` server over UDP.
///
/// # Errors
///
/// If there is no answer.
pub fn whoami_udp(host: &Namespace, to: SocketAddr) -> Result<Whoami> {
    let socket = udp(host, to)?;
    let answer = round_trip(&socket, b"who am I?\n")?;
    Whoami::parse(&String::from_utf8(answer)?)
}

/// Sends a datagram and returns the answer.
///
/// # Errors
///
/// If there is none.
pub fn round_trip(socket: &UdpSocket, datagram: &[u8]) -> Result<Vec<u8>> {
    socket.send(datagram).context("sending a datagram")?;
    let mut answer = vec![0; 64 * 1024];
    let count = wait::uninterrupted(|| socket.recv(&mut answer))
        .context("waiting for the answer to a datagram")?;
    answer.truncate(count);
    Ok(answer)
}

/// Sends data over a connection to an echo server and checks what comes back.
///
/// # Errors
///
/// If the connection breaks or the answer differs.
pub fn echo(mut stream: &TcpStream, data: &[u8]) -> Result<()> {
    stream.write_all(data)?;
    let mut answer = vec![0; data.len()];
    stream.read_exact(&mut answer).context("waiting for the echo")?;
    ensure!(answer == data, "the echo differs from what was sent");
    Ok(())
}

/// Ends a connection to an echo server in an orderly way.
///
/// # Errors
///
/// If the connection breaks, or the server has more to say.
pub fn finish(mut stream: &TcpStream) -> Result<()> {
    stream.shutdown(Shutdown::Write)?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).context("waiting for the end")?;
    ensure!(rest.is_empty(), "{} bytes more than were sent", rest.len());
    Ok(())
}

/// Fetches a page with curl.
///
/// # Errors
///
/// If curl fails: the message holds why.
pub fn curl(host: &Namespace, to: SocketAddr) -> Result<String> {
    let url = format!("http://{to}/");
    host.run("curl", ["--silent", "--show-error", "--max-time", "10", &url])
}

/// Datagrams sent to an echo server at a steady pace, each of which must come back.
#[derive(Debug)]
pub struct Pulse {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<BTreeSet<u64>>>,
}

impl Pulse {
    /// Starts sending, a datagram every `interval`.
    ///
    /// # Errors
    ///
    /// If the socket can't be duplicated.
    pub fn start(socket: UdpSocket, interval: Duration) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let outgoing = socket.try_clone()?;
        let stop_sender = stop.clone();
        let total = Arc::new(OnceLock::new());
        let told = total.clone();
        let sender = thread::spawn(move || {
            let start = Instant::now();
            let mut next = 0;
            while !stop_sender.load(Ordering::Relaxed) {
                outgoing
                    .send(&u64::to_be_bytes(next))
                    .with_context(|| format!("sending datagram {next}"))?;
                next += 1;
                let due = interval * u32::try_from(next)?;
                thread::sleep(due.saturating_sub(start.elapsed()));
            }
            Ok(*told.get_or_init(|| next))
        });
        let count = received.clone();
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let receiver = thread::spawn(move || {
            let mut answers = BTreeSet::new();
            let mut buffer = [0; 8];
            let mut ended = None;
            loop {
                if let Some(sent) = total.get() {
                    let ended = *ended.get_or_insert_with(Instant::now);
                    // What has not come for so long does not come any more.
                    if answers.len() as u64 >= *sent || ended.elapsed() > PATIENCE {
                        return Ok(answers);
                    }
                }
                match wait::uninterrupted(|| socket.recv(&mut buffer)) {
                    Ok(8) => {
                        answers.insert(u64::from_be_bytes(buffer));
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(length) => bail!("an answer of {length} bytes"),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error).context("receiving an echo"),
                }
            }
        });
        Ok(Self { stop, received, sender, receiver })
    }

    /// Waits until `count` more datagrams have come back.
    ///
    /// # Errors
    ///
    /// If they don't.
    pub fn beat(&self, count: u64) -> Result<()> {
        let goal = self.received.load(Ordering::Relaxed) + count;
        wait::until_true("datagrams to come back", wait::SOON, || {
            Ok(self.received.load(Ordering::Relaxed) >= goal)
        })
    }

    /// Stops, and returns how many were sent.
    ///
    /// # Errors
    ///
    /// If one did not come back: says which.
    pub fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().map_err(|_| anyhow!("the sender panicked"))??;
        let answers = self.receiver.join().map_err(|_| anyhow!("the receiver panicked"))??;
        let lost: Vec<u64> = (0..sent).filter(|number| !answers.contains(number)).collect();
        ensure!(
            lost.is_empty(),
            "{} of {sent} datagrams did not come back; the first: {:?}",
            lost.len(),
            &lost[..lost.len().min(20)]
        );
        Ok(sent)
    }
}

/// Resets a connection instead of closing it, and frees its addresses at once.
///
/// Closing with a linger time of zero resets only when the last copy of the socket is closed, and
/// a program that another test starts at this moment has one until it runs. Connecting to "no
/// family" resets whoever holds copies.
///
/// # Errors
///
/// If the kernel refuses.
pub fn reset(stream: TcpStream) -> Result<()> {
    let nowhere = libc::sockaddr {
        sa_family: libc::AF_UNSPEC.try_into().context("the family of no address")?,
        sa_data: [0; 14],
    };
    let length = size_of_val(&nowhere).try_into().context("the length of an address")?;
    // SAFETY: the address is of the length that is given, and is only read.
    let result = unsafe { libc::connect(stream.as_raw_fd(), &raw const nowhere, length) };
    ensure!(result == 0, "resetting a connection: {}", std::io::Error::last_os_error());
    drop(stream);
    Ok(())
}
