//! Questions to the kernel that are so small that they are spelled out byte by byte.

use std::collections::BTreeMap;
use std::io;

use rtnetlink::sys::{Socket, SocketAddr};

/// Part of a question's flags: the kernel is to answer at all.
pub(super) const REQUEST: u16 = 1;
/// Part of a question's flags: with its outcome even where there is nothing else to say.
pub(super) const ACK: u16 = 4;
/// Part of a question's flags: with everything that there is.
pub(super) const DUMP: u16 = 0x300;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;

/// A question; its flags contain [`ACK`] or [`DUMP`], or it would have no end.
pub(super) struct Question {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) body: Vec<u8>,
}

/// A socket for one of netlink's protocols.
pub(super) fn open(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Sends a question and hands the body of each part of the answer to `each`.
pub(super) fn ask(
    socket: &Socket,
    question: &Question,
    mut each: impl FnMut(&[u8]),
) -> io::Result<()> {
    socket.send(&encode(question), 0)?;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = answer.as_slice();
        while let Some((kind, body, next)) = split(rest) {
            rest = next;
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return outcome(body),
                _ => each(body),
            }
        }
    }
}

fn encode(question: &Question) -> Vec<u8> {
    let len = HEADER + question.body.len();
    let mut message = Vec::with_capacity(len);
    // Our questions are tens of bytes long.
    message.extend(u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend(question.kind.to_ne_bytes());
    message.extend(question.flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(&question.body);
    message
}

/// Type and body of the first message, and what follows it.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = u32::from_ne_bytes(*bytes.first_chunk::<4>()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk::<2>()?);
    let body = bytes.get(HEADER..len)?;
    let next = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    Some((kind, body, next))
}

/// Attributes of a message, by their kind.
pub(super) type Attributes<'a> = BTreeMap<u16, &'a [u8]>;

/// Appends an attribute.
pub(super) fn push_attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    message.extend(len.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// The attributes that follow each other in `bytes`.
pub(super) fn parse_attributes(mut bytes: &[u8]) -> Attributes<'_> {
    let mut attributes = BTreeMap::new();
    while let Some(([a, b, c, d], _)) = bytes.split_first_chunk::<4>() {
        let len = usize::from(u16::from_ne_bytes([*a, *b]));
        let kind = u16::from_ne_bytes([*c, *d]);
        let Some(value) = bytes.get(4..len) else {
            break;
        };
        attributes.insert(kind, value);
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    }
    attributes
}

fn outcome(body: &[u8]) -> io::Result<()> {
    match body.first_chunk::<4>().map(|code| i32::from_ne_bytes(*code)) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_are_written() {
        let question = Question { kind: 7, flags: REQUEST, body: vec![1, 2, 3] };
        let mut bytes = encode(&question);
        bytes.extend([0, 9]);
        assert_eq!(split(&bytes), Some((7, [1, 2, 3].as_slice(), [9].as_slice())));
    }

    #[test]
    fn cut_messages_end_the_reading() {
        assert_eq!(split(&[20, 0, 0, 0, 3, 0]), None);
    }

    #[test]
    fn cut_attributes_end_the_reading() {
        assert!(parse_attributes(&[200, 0, 1, 0, 9]).is_empty());
    }
}
