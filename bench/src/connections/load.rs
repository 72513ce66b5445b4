//! A server and a load generator, with threads that wait: what is measured is the way between them.
//!
//! A request is the number of bytes that it wants; an answer says first who gave it and what it saw
//! of the connection, so that every answer shows that the way was the right one.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use redirector_tests::{
    namespace::{Namespace, join},
    wait::uninterrupted,
};
use socket2::{Domain, Socket, Type};

/// Bytes at the beginning of each answer.
const HEAD: usize = 128;
/// How soon a server notices that it was dropped.
const TICK: Duration = Duration::from_millis(100);
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;

/// A running server, ended when dropped.
pub(crate) struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Server {
    /// Serves TCP on every address of a host, so many connections at once.
    pub(crate) fn start(host: &Namespace, name: &str, port: u16, at_once: usize) -> Result<Self> {
        let listener: TcpListener = host.enter(|| {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
            socket.set_only_v6(false)?;
            socket.set_reuse_address(true)?;
            socket.set_read_timeout(Some(TICK))?;
            let address = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
            socket.bind(&address.into()).with_context(|| format!("cannot bind to {address}"))?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        })?;
        let mut server = Self { stop: Arc::default(), threads: Vec::new() };
        for _ in 0..at_once {
            let (listener, stop) = (listener.try_clone()?, Arc::clone(&server.stop));
            let name = name.to_owned();
            server.threads.push(host.spawn(move || accept(&listener, &name, &stop))?);
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if let Err(error) = join(thread) {
                eprintln!("a server: {error:#}");
            }
        }
    }
}

fn accept(listener: &TcpListener, name: &str, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            // The client says what went wrong with its connection.
            Ok((stream, peer)) => drop(serve(stream, peer, name, stop)),
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error).context("accepting"),
        }
    }
    Ok(())
}

fn serve(mut stream: TcpStream, peer: SocketAddr, name: &str, stop: &AtomicBool) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TICK))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let head = Head { server: name.to_owned(), peer: plain(peer), at: plain(stream.local_addr()?) };
    let mut block = vec![0; 1 << 16];
    block[..HEAD].copy_from_slice(&head.bytes());
    let mut request = [0; 8];
    while !stop.load(Ordering::Relaxed) {
        match stream.read_exact(&mut request) {
            Ok(()) => {}
            Err(error) if is_timeout(&error) => continue,
            // The client has finished, one way or the other.
            Err(_) => return Ok(()),
        }
        let mut left = u64::from_be_bytes(request) as usize;
        while left > 0 {
            let part = left.min(block.len());
            stream.write_all(&block[..part])?;
            left -= part;
        }
    }
    Ok(())
}

/// What a server says of itself and of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) server: String,
    /// The client as the server sees it.
    pub(crate) peer: SocketAddr,
    /// The server's end.
    pub(crate) at: SocketAddr,
}

impl Head {
    fn bytes(&self) -> [u8; HEAD] {
        let text = format!("{} {} {}", self.server, self.peer, self.at);
        let mut bytes = [b' '; HEAD];
        let len = text.len().min(HEAD);
        bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
        bytes
    }

    fn read(bytes: &[u8; HEAD]) -> Result<Self> {
        let text = String::from_utf8_lossy(bytes);
        let mut words = text.split_whitespace();
        let mut next = || words.next().with_context(|| format!("an answer begins {text:?}"));
        Ok(Self { server: next()?.to_owned(), peer: next()?.parse()?, at: next()?.parse()? })
    }
}

/// What answers have to say.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) server: &'static str,
    /// The client's address as the server sees it.
    pub(crate) peer: IpAddr,
    /// The port of the server's end.
    pub(crate) port: u16,
}

/// One way to a server.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    /// Addresses that are connected to by turns.
    pub(crate) to: Vec<SocketAddr>,
    pub(crate) expected: Expected,
}

impl Way {
    fn connect(&self, number: usize) -> Result<Connection<'_>> {
        let to = *self.to.get(number % self.to.len().max(1)).context("nowhere to connect to")?;
        let stream = TcpStream::connect_timeout(&to, PATIENCE);
        let stream = stream.with_context(|| format!("connecting to {to}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Connection { stream, way: self })
    }

    /// One connection, one answer, checked.
    pub(crate) fn check(&self) -> Result<()> {
        (0..self.to.len()).try_for_each(|number| self.connect(number)?.ask())
    }

    /// Connections each second, of so many clients at once: each opens one, asks once, closes it.
    pub(crate) fn connections(&self, clients: usize, time: Duration) -> Result<f64> {
        let began = Instant::now();
        let counts = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..clients)
                .map(|client| {
                    scope.spawn(move || {
                        let mut count = 0;
                        while began.elapsed() < time {
                            self.connect(client + count)?.ask()?;
                            count += 1;
                        }
                        Ok(count)
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
                .collect::<Result<Vec<usize>>>()
        })?;
        let elapsed = began.elapsed().as_secs_f64();
        Ok(counts.iter().sum::<usize>() as f64 / elapsed)
    }

    /// How long each of so many answers on one connection took, in microseconds, sorted.
    pub(crate) fn latencies(&self, requests: usize) -> Result<Vec<f64>> {
        let mut connection = self.connect(0)?;
        for _ in 0..requests / 10 {
            connection.ask()?;
        }
        let mut all = Vec::with_capacity(requests);
        for _ in 0..requests {
            let began = Instant::now();
            connection.ask()?;
            all.push(began.elapsed().as_secs_f64() * 1e6);
        }
        all.sort_by(f64::total_cmp);
        Ok(all)
    }

    /// Megabytes each second on one connection.
    pub(crate) fn bulk(&self, bytes: usize) -> Result<f64> {
        let mut connection = self.connect(0)?;
        connection.ask()?;
        let began = Instant::now();
        connection.stream.write_all(&(bytes as u64).to_be_bytes())?;
        let mut block = vec![0; 1 << 18];
        let mut left = bytes;
        while left > 0 {
            let part = left.min(block.len());
            let read = uninterrupted(|| connection.stream.read(&mut block[..part]));
            let read = read.context("bulk")?;
            ensure!(read > 0, "the connection ended with {left} bytes to come");
            left -= read;
        }
        Ok(bytes as f64 / 1e6 / began.elapsed().as_secs_f64())
    }
}

struct Connection<'a> {
    stream: TcpStream,
    way: &'a Way,
}

impl Connection<'_> {
    /// One small answer.
    fn ask(&mut self) -> Result<()> {
        self.stream.write_all(&(HEAD as u64).to_be_bytes()).context("asking")?;
        let mut answer = [0; HEAD];
        self.stream.read_exact(&mut answer).context("waiting for an answer")?;
        let head = Head::read(&answer)?;
        let Expected { server, peer, port } = &self.way.expected;
        if head.server != *server || head.peer.ip() != *peer || head.at.port() != *port {
            bail!("{head:?} answered; expected {:?}", self.way.expected);
        }
        Ok(())
    }
}

/// An address of IPv4 as such, on a socket of both families too.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
