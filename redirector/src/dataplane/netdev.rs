//! Which interfaces can send frames for XDP: the kernel's `netdev` family of generic netlink
//! (kernel 6.3), spoken directly because it is two small questions.

use std::collections::BTreeMap;
use std::io;

use rtnetlink::sys::protocols::NETLINK_GENERIC;
use rtnetlink::sys::{Socket, SocketAddr};

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

/// The driver has `ndo_xdp_xmit`, and it works at the moment.
const FEATURE_NDO_XMIT: u64 = 4;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of `struct genlmsghdr`.
const GENERIC_HEADER: usize = 4;

/// For each interface index, whether frames can be sent out of it from XDP now; `None` on kernels
/// that don't tell.
///
/// # Errors
///
/// If the kernel cannot be asked.
pub fn read_xdp_transmit() -> io::Result<Option<BTreeMap<u32, bool>>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;

    let mut name = Vec::new();
    push_attribute(&mut name, CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    let question = Question {
        family: GENL_ID_CTRL,
        flags: NLM_F_REQUEST | NLM_F_ACK,
        command: CTRL_CMD_GETFAMILY,
        attributes: &name,
    };
    let mut family = None;
    match ask(&socket, &question, |attributes| {
        family = attributes.get(&CTRL_ATTR_FAMILY_ID).and_then(|id| number(id));
    }) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(error) => return Err(error),
    }
    let Some(family) = family.and_then(|id| u16::try_from(id).ok()) else {
        return Ok(None);
    };

    let mut transmit = BTreeMap::new();
    let question = Question {
        family,
        flags: NLM_F_REQUEST | NLM_F_DUMP,
        command: NETDEV_CMD_DEV_GET,
        attributes: &[],
    };
    ask(&socket, &question, |attributes| {
        let get = |kind| attributes.get(&kind).and_then(|value| number(value));
        let index = get(NETDEV_A_DEV_IFINDEX).and_then(|index| u32::try_from(index).ok());
        if let (Some(index), Some(features)) = (index, get(NETDEV_A_DEV_XDP_FEATURES)) {
            transmit.insert(index, features & FEATURE_NDO_XMIT != 0);
        }
    })?;
    Ok(Some(transmit))
}

struct Question<'a> {
    family: u16,
    flags: u16,
    command: u8,
    attributes: &'a [u8],
}

type Attributes<'a> = BTreeMap<u16, &'a [u8]>;

/// Sends a question and hands each part of the answer to `each`.
fn ask(
    socket: &Socket,
    question: &Question<'_>,
    mut each: impl FnMut(&Attributes<'_>),
) -> io::Result<()> {
    socket.send(&encode(question), 0)?;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = answer.as_slice();
        while let Some((kind, body, next)) = split_message(rest) {
            rest = next;
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return outcome(body),
                _ => each(&parse_attributes(body.get(GENERIC_HEADER..).unwrap_or(&[]))),
            }
        }
    }
}

fn encode(question: &Question<'_>) -> Vec<u8> {
    let len = HEADER + GENERIC_HEADER + question.attributes.len();
    let mut message = Vec::with_capacity(len);
    // Our questions are tens of bytes long.
    message.extend(u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend(question.family.to_ne_bytes());
    message.extend(question.flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([question.command, 1, 0, 0]);
    message.extend(question.attributes);
    message
}

/// Type and body of the first message, and what follows it.
fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = u32::from_ne_bytes(*bytes.first_chunk::<4>()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk::<2>()?);
    let body = bytes.get(HEADER..len)?;
    let next = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    Some((kind, body, next))
}

fn outcome(body: &[u8]) -> io::Result<()> {
    match body.first_chunk::<4>().map(|code| i32::from_ne_bytes(*code)) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

fn push_attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    message.extend(len.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

fn parse_attributes(mut bytes: &[u8]) -> Attributes<'_> {
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

/// An unsigned number of any of netlink's sizes.
fn number(value: &[u8]) -> Option<u64> {
    if let Ok(bytes) = <[u8; 8]>::try_from(value) {
        return Some(u64::from_ne_bytes(bytes));
    }
    if let Ok(bytes) = <[u8; 4]>::try_from(value) {
        return Some(u32::from_ne_bytes(bytes).into());
    }
    let bytes = <[u8; 2]>::try_from(value).ok()?;
    Some(u16::from_ne_bytes(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let mut bytes = Vec::new();
        push_attribute(&mut bytes, 1, &7u32.to_ne_bytes());
        push_attribute(&mut bytes, 2, b"abc\0e");
        push_attribute(&mut bytes, 3, &4u64.to_ne_bytes());
        let attributes = parse_attributes(&bytes);
        assert_eq!(number(attributes[&1]), Some(7));
        assert_eq!(attributes[&2], b"abc\0e");
        assert_eq!(number(attributes[&3]), Some(4));
    }

    #[test]
    fn cut_messages_end_the_reading() {
        assert!(split_message(&[20, 0, 0, 0, 3, 0]).is_none());
        assert!(parse_attributes(&[200, 0, 1, 0, 9]).is_empty());
    }
}
