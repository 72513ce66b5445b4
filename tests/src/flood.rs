//! A flood of SYNs, each from another address: what a generator at the other end of the cable
//! sends, past every socket.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use socket2::{Domain, Socket, Type};

use crate::frame::link_address;
use crate::namespace::Namespace;
use crate::packet::{Flags, Packet};
use crate::wait::uninterrupted;

/// Frames that the kernel takes at once: a burst must not fill the queues on the way.
const BATCH: usize = 32;

/// Frames in a second: what a cable of 65 Mbit/s brings.
const RATE: u32 = 100_000;

/// Where a TCP SYN has its IPv4 source address, behind an Ethernet header.
const SOURCE: usize = 14 + 12;
/// Its IPv4 checksum.
const IP_CHECKSUM: usize = 14 + 10;
/// Its TCP checksum.
const TCP_CHECKSUM: usize = 14 + 20 + 16;

/// Sends `count` SYNs to a frontend by a host's interface, each from an address of 10.0.0.0/8 of
/// its own, from the `first` on. Returns when all of them are on the wire.
///
/// # Errors
///
/// If they can't be sent.
pub fn syns(
    host: &Namespace,
    interface: &str,
    next_hop: [u8; 6],
    to: SocketAddr,
    (first, count): (u32, u32),
) -> Result<()> {
    let IpAddr::V4(_) = to.ip() else { bail!("{to} is no IPv4 address") };
    let index = host.ifindex(interface)?;
    let source = host.mac(interface)?;
    let socket = host.enter(move || {
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        socket.bind(&link_address(index)?)?;
        Ok(socket)
    })?;
    let syn = |number: u32| {
        let [_, a, b, c] = number.to_be_bytes();
        let from = SocketAddrV4::new([10, a, b, c].into(), 1024);
        Packet::tcp(Flags::SYN, from.into(), to).macs(next_hop, source).bytes()
    };
    let template = syn(0);
    let mut frames = vec![template.clone(); BATCH];
    let mut number = first;
    let began = Instant::now();
    while number < first + count {
        let batch = BATCH.min((first + count - number) as usize);
        for frame in &mut frames[..batch] {
            readdress(frame, &template, number);
            number += 1;
        }
        send(&socket, &mut frames[..batch])?;
        let due = Duration::from_secs(1) * (number - first) / RATE;
        std::thread::sleep(due.saturating_sub(began.elapsed()));
    }
    Ok(())
}

/// Gives a copy of the template another source, and its checksums what that changes (RFC 1624).
fn readdress(frame: &mut [u8], template: &[u8], number: u32) {
    let [_, a, b, c] = number.to_be_bytes();
    let words = [u16::from(a), u16::from_be_bytes([b, c])];
    frame[SOURCE..SOURCE + 4].copy_from_slice(&[10, a, b, c]);
    for at in [IP_CHECKSUM, TCP_CHECKSUM] {
        let old = !u16::from_be_bytes([template[at], template[at + 1]]);
        // The template's address is 10.0.0.0: what comes is added, and nothing goes.
        let sum = words.iter().fold(u32::from(old), |sum, word| sum + u32::from(*word));
        let folded = (sum & 0xffff) + (sum >> 16);
        let folded = (folded & 0xffff) + (folded >> 16);
        let new = !u16::try_from(folded).unwrap_or(u16::MAX);
        frame[at..at + 2].copy_from_slice(&new.to_be_bytes());
    }
}

fn send(socket: &Socket, frames: &mut [Vec<u8>]) -> Result<()> {
    let mut parts: Vec<libc::iovec> = frames
        .iter_mut()
        .map(|frame| libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = parts
        .iter_mut()
        .map(|part| {
            // SAFETY: a message without anything is one.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    let mut sent = 0;
    while let Some(rest) = messages.get_mut(sent..).filter(|rest| !rest.is_empty()) {
        let outcome = uninterrupted(|| {
            // SAFETY: the messages point at frames that outlive the call.
            let sent = unsafe {
                libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), rest.len() as u32, 0)
            };
            usize::try_from(sent).map_err(|_| io::Error::last_os_error())
        });
        match outcome {
            Ok(more) => sent += more,
            // The queue is full for now.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => std::thread::yield_now(),
            Err(error) => return Err(error).context("sending a flood"),
        }
    }
    Ok(())
}
