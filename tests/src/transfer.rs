//! Bulk data whose every byte is checked.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::wait::uninterrupted;

/// Reads and writes at a time.
const CHUNK: usize = 128 * 1024;

/// Pseudo-random bytes. Their number is prime, so that data which moved by a segment, a page or
/// a power of two never looks right.
static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut table = Vec::with_capacity(1_048_573 + CHUNK);
    while table.len() < 1_048_573 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        table.push(state.to_le_bytes()[3]);
    }
    // Repeated once more at the end, so that every chunk is one slice.
    table.extend_from_within(..CHUNK);
    table
});

/// An endless stream of bytes, the same for the same seed.
#[derive(Clone, Debug)]
pub struct Pattern {
    position: usize,
}

impl Pattern {
    /// The stream of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let period = (TABLE.len() - CHUNK) as u64;
        let position = seed.wrapping_mul(0x9e37_79b9) % period;
        Self { position: usize::try_from(position).unwrap_or_default() }
    }

    /// The next bytes, at most 128 KiB.
    pub fn next(&mut self, length: usize) -> &'static [u8] {
        let start = self.position;
        self.position = (start + length) % (TABLE.len() - CHUNK);
        &TABLE[start..start + length]
    }

    /// Whether these are the next bytes.
    ///
    /// # Errors
    ///
    /// If they are not: says which is the first that differs.
    pub fn check(&mut self, received: &[u8]) -> Result<()> {
        let expected = self.next(received.len());
        let wrong = received.iter().zip(expected).position(|(a, b)| a != b);
        ensure!(wrong.is_none(), "content differs at byte {wrong:?} of a chunk");
        Ok(())
    }
}

/// What the client asks of [`serve`]: seeds and lengths of both directions.
const HEADER: usize = 32;
/// What the server ends with once it has checked all that it received.
const DONE: &[u8; 8] = b"all good";

/// The server's side: sends and receives what the client asks for, at the same time.
///
/// # Errors
///
/// If the connection breaks or the content is wrong.
pub fn serve(mut stream: &TcpStream) -> Result<()> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    let mut words = header.chunks_exact(8).map(|word| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(word);
        u64::from_le_bytes(bytes)
    });
    let mut word = || words.next().context("a short header");
    let (up_seed, up, down_seed, down) = (word()?, word()?, word()?, word()?);
    both_ways(stream, (down_seed, down), (up_seed, up))?;
    stream.write_all(DONE)?;
    Ok(())
}

/// The client's side: sends `up` bytes and receives `down` bytes at the same time.
///
/// # Errors
///
/// If the connection breaks, or either side received wrong content.
pub fn exchange(mut stream: &TcpStream, up: u64, down: u64) -> Result<()> {
    let (up_seed, down_seed) = (up ^ 0x5eed, down ^ 0xd0e5);
    let mut header = Vec::with_capacity(HEADER);
    for word in [up_seed, up, down_seed, down] {
        header.extend_from_slice(&word.to_le_bytes());
    }
    stream.write_all(&header)?;
    both_ways(stream, (up_seed, up), (down_seed, down))?;
    let mut done = [0; DONE.len()];
    stream.read_exact(&mut done).context("the server did not like what it received")?;
    ensure!(&done == DONE, "the server sent too much: {done:?}");
    Ok(())
}

fn both_ways(stream: &TcpStream, outgoing: (u64, u64), incoming: (u64, u64)) -> Result<()> {
    let sender = stream.try_clone()?;
    let sending = thread::spawn(move || send(&sender, outgoing.0, outgoing.1));
    receive(stream, incoming.0, incoming.1)?;
    sending.join().map_err(|_| anyhow!("the sender panicked"))?
}

fn send(mut stream: &TcpStream, seed: u64, length: u64) -> Result<()> {
    let mut pattern = Pattern::new(seed);
    let mut left = length;
    while left > 0 {
        let chunk = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
        let sent = length - left;
        stream
            .write_all(pattern.next(chunk))
            .with_context(|| format!("sending byte {sent} of {length}"))?;
        left -= chunk as u64;
    }
    Ok(())
}

fn receive(mut stream: &TcpStream, seed: u64, length: u64) -> Result<()> {
    let mut pattern = Pattern::new(seed);
    let mut buffer = vec![0; CHUNK];
    let mut left = length;
    while left > 0 {
        let chunk = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
        let received = length - left;
        let count = uninterrupted(|| stream.read(&mut buffer[..chunk]))
            .with_context(|| format!("receiving byte {received} of {length}"))?;
        ensure!(count > 0, "the connection ended at byte {received} of {length}");
        pattern.check(&buffer[..count]).with_context(|| format!("from byte {received}"))?;
        left -= count as u64;
    }
    Ok(())
}

/// Bytes that a busy connection may have on its way in each direction.
const BUSY_BUFFER: usize = 32 * 1024;

/// A connection to an echo server that is kept busy until told to stop.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<u64>>,
}

impl Stream {
    /// Sends without end, checking the echo.
    ///
    /// # Errors
    ///
    /// If the connection can't be duplicated.
    pub fn start(stream: TcpStream, seed: u64) -> Result<Self> {
        // What is on its way fits into the queues of the devices: a veth's has 256 places, and what
        // it drops beyond that would be taken for redirector's doing.
        let socket = socket2::SockRef::from(&stream);
        socket.set_send_buffer_size(BUSY_BUFFER)?;
        socket.set_recv_buffer_size(BUSY_BUFFER)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stop_sender, mut writer, mut reader) = (stop.clone(), stream.try_clone()?, stream);
        let sender = thread::spawn(move || {
            let mut pattern = Pattern::new(seed);
            let mut sent = 0;
            while !stop_sender.load(Ordering::Relaxed) {
                let chunk = pattern.next(16 * 1024);
                writer.write_all(chunk).with_context(|| format!("sending byte {sent}"))?;
                sent += chunk.len() as u64;
                // The pace: some 30 MB/s, which leaves the processor to others.
                thread::sleep(Duration::from_micros(500));
            }
            writer.shutdown(Shutdown::Write)?;
            Ok(sent)
        });
        let receiver = thread::spawn(move || {
            let mut pattern = Pattern::new(seed);
            let mut buffer = vec![0; CHUNK];
            let mut received = 0;
            loop {
                let count = uninterrupted(|| reader.read(&mut buffer))
                    .with_context(|| format!("receiving byte {received}"))?;
                if count == 0 {
                    return Ok(received);
                }
                pattern.check(&buffer[..count]).with_context(|| format!("from byte {received}"))?;
                received += count as u64;
            }
        });
        Ok(Self { stop, sender, receiver })
    }

    /// Stops and returns how many bytes went there and came back.
    ///
    /// # Errors
    ///
    /// If the connection broke, or the content came back wrong or not in full.
    pub fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().map_err(|_| anyhow!("the sender panicked"))??;
        let received = self.receiver.join().map_err(|_| anyhow!("the receiver panicked"))??;
        ensure!(sent == received, "sent {sent} bytes, got {received} back");
        Ok(sent)
    }
}
