//! Real servers.

use std::{
    fmt::Write as _,
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    client::PATIENCE,
    namespace::Namespace,
    transfer,
    wait::{uninterrupted, until_free},
};

/// Every address of either family.
const ANY: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// How soon a server notices that it was dropped.
const TICK: Duration = Duration::from_millis(50);

/// What a server does with a connection or datagram.
#[derive(Clone, Debug)]
pub enum Service {
    /// Sends everything back; closes when the client has finished.
    Echo,
    /// Answers one line (to HTTP, in a response): its own name and the client's address.
    Whoami(&'static str),
    /// Bulk data both ways: [`transfer::serve`]. TCP only.
    Bulk,
    /// Reads a byte, then resets the connection. TCP only.
    Reset,
}

/// A running server, ended when dropped.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    seen: Arc<Seen>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Seen {
    accepted: AtomicU64,
    resets: AtomicU64,
    failures: AtomicU64,
}

impl Server {
    /// Serves TCP on every address of the host.
    ///
    /// # Errors
    ///
    /// If it can't listen there.
    pub fn tcp(host: &Namespace, port: u16, service: Service) -> Result<Self> {
        let socket = bind(host, SocketAddr::new(ANY, port), Type::STREAM)?;
        until_free(|| socket.listen(4096))?;
        Ok(Self::start(move |stop, seen| accept_until(stop, seen, &socket, &service)))
    }

    /// Serves UDP on every address of the host.
    ///
    /// # Errors
    ///
    /// If it can't listen there.
    pub fn udp(host: &Namespace, port: u16, service: Service) -> Result<Self> {
        Self::udp_at(host, SocketAddr::new(ANY, port), service)
    }

    /// Serves UDP on one address of the host.
    ///
    /// # Errors
    ///
    /// If it can't listen there.
    pub fn udp_at(host: &Namespace, address: SocketAddr, service: Service) -> Result<Self> {
        let socket: UdpSocket = bind(host, address, Type::DGRAM)?.into();
        Ok(Self::start(move |stop, seen| answer_until(stop, seen, &socket, &service)))
    }

    fn start(serve: impl FnOnce(&AtomicBool, &Arc<Seen>) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Seen::default());
        let thread = {
            let (stop, seen) = (stop.clone(), seen.clone());
            thread::spawn(move || serve(&stop, &seen))
        };
        Self { stop, seen, thread: Some(thread) }
    }

    /// Connections accepted, or datagrams answered.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.seen.accepted.load(Ordering::Relaxed)
    }

    /// Connections that the client reset.
    #[must_use]
    pub fn resets(&self) -> u64 {
        self.seen.resets.load(Ordering::Relaxed)
    }

    /// Connections that ended in any other error, such as wrong content.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.seen.failures.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has already printed why, if it panicked.
            let _ = thread.join();
        }
    }
}

fn bind(host: &Namespace, address: SocketAddr, kind: Type) -> Result<Socket> {
    let socket = host.enter(move || {
        let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
        Ok(Socket::new(Domain::for_address(address), kind, Some(protocol))?)
    })?;
    socket.set_reuse_address(kind == Type::STREAM)?;
    if kind == Type::DGRAM {
        // A pause of the server must not look like a loss on the way.
        socket.set_recv_buffer_size(4 << 20)?;
    }
    until_free(|| socket.bind(&address.into())).with_context(|| format!("binding {address}"))?;
    socket.set_read_timeout(Some(TICK))?;
    Ok(socket)
}

fn accept_until(stop: &AtomicBool, seen: &Arc<Seen>, socket: &Socket, service: &Service) {
    while !stop.load(Ordering::Relaxed) {
        let stream: TcpStream = match uninterrupted(|| socket.accept()) {
            Ok((stream, _)) => stream.into(),
            Err(error) if is_timeout(&error) => continue,
            Err(error) => {
                eprintln!("accepting: {error}");
                continue;
            }
        };
        seen.accepted.fetch_add(1, Ordering::Relaxed);
        let (service, seen_here) = (service.clone(), seen.clone());
        // A thousand connections are a thousand threads: they get by with little stack.
        let thread = thread::Builder::new().stack_size(256 * 1024).spawn(move || {
            if let Err(error) = converse(&stream, &service) {
                let reset = error
                    .downcast_ref::<io::Error>()
                    .is_some_and(|e| e.kind() == ErrorKind::ConnectionReset);
                let counter = if reset { &seen_here.resets } else { &seen_here.failures };
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        if let Err(error) = thread {
            eprintln!("no thread for a connection: {error}");
        }
    }
}

fn converse(mut stream: &TcpStream, service: &Service) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    match service {
        Service::Echo => {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let count = uninterrupted(|| stream.read(&mut buffer))?;
                if count == 0 {
                    return Ok(stream.shutdown(Shutdown::Write)?);
                }
                stream.write_all(&buffer[..count])?;
            }
        }
        Service::Whoami(name) => {
            let line = identify(name, stream.peer_addr()?);
            let mut request = [0; 4096];
            let count = uninterrupted(|| stream.read(&mut request))?;
            let mut answer = String::new();
            if request[..count].starts_with(b"GET ") {
                write!(
                    answer,
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    line.len()
                )?;
            }
            Ok(stream.write_all((answer + &line).as_bytes())?)
        }
        Service::Bulk => transfer::serve(stream),
        Service::Reset => {
            let mut byte = [0; 1];
            stream.read_exact(&mut byte)?;
            let socket = Socket::from(stream.try_clone()?);
            Ok(socket.set_linger(Some(Duration::ZERO))?)
        }
    }
}

fn answer_until(stop: &AtomicBool, seen: &Arc<Seen>, socket: &UdpSocket, service: &Service) {
    let mut buffer = vec![0; 64 * 1024];
    while !stop.load(Ordering::Relaxed) {
        let (count, peer) = match uninterrupted(|| socket.recv_from(&mut buffer)) {
            Ok(received) => received,
            Err(error) if is_timeout(&error) => continue,
            Err(error) => {
                eprintln!("receiving: {error}");
                continue;
            }
        };
        let sent = match service {
            Service::Whoami(name) => socket.send_to(identify(name, peer).as_bytes(), peer),
            Service::Echo | Service::Bulk | Service::Reset => {
                socket.send_to(&buffer[..count], peer)
            }
        };
        match sent {
            Ok(_) => seen.accepted.fetch_add(1, Ordering::Relaxed),
            Err(_) => seen.failures.fetch_add(1, Ordering::Relaxed),
        };
    }
}

fn identify(name: &str, peer: SocketAddr) -> String {
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    format!("server={name} client={peer}\n")
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
