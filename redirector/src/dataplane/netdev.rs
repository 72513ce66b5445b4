//! Which interfaces can send frames for XDP: the kernel's `netdev` family of generic netlink
//! (kernel 6.3), spoken directly because it is two small questions.

use std::collections::BTreeMap;
use std::io;

use rtnetlink::sys::protocols::NETLINK_GENERIC;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, Socket, TokioSocket};

use super::netlink_raw::{
    self, ACK, Attributes, DUMP, Question, REQUEST, parse_attributes, push_attribute,
};

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;

const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

/// The driver runs XDP programs.
const FEATURE_BASIC: u64 = 1;
/// Packets in several buffers too.
const FEATURE_RX_SG: u64 = 32;
/// The driver has `ndo_xdp_xmit`, and it works at the moment.
const FEATURE_NDO_XMIT: u64 = 4;

/// Bytes of `struct genlmsghdr`.
const GENERIC_HEADER: usize = 4;

/// What a driver can do with XDP now: bits of the kernel's `enum netdev_xdp_act`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpFeatures(pub u64);

impl XdpFeatures {
    /// Whether it runs XDP programs.
    #[must_use]
    pub const fn has_xdp(self) -> bool {
        self.0 & FEATURE_BASIC != 0
    }

    /// Whether frames can be sent out of it from XDP.
    #[must_use]
    pub const fn has_transmit(self) -> bool {
        self.0 & FEATURE_NDO_XMIT != 0
    }

    /// Whether its programs see packets in several buffers.
    #[must_use]
    pub const fn has_fragments(self) -> bool {
        self.0 & FEATURE_RX_SG != 0
    }
}

/// For each interface index, whether frames can be sent out of it from XDP now; `None` on kernels
/// that don't tell.
///
/// # Errors
///
/// If the kernel cannot be asked.
pub fn read_xdp_transmit() -> io::Result<Option<BTreeMap<u32, bool>>> {
    let features = read_xdp_features()?;
    Ok(features.map(|all| {
        all.into_iter().map(|(index, features)| (index, features.has_transmit())).collect()
    }))
}

/// What each interface's driver can do, by index; `None` on kernels that don't tell.
///
/// # Errors
///
/// If the kernel cannot be asked.
pub fn read_xdp_features() -> io::Result<Option<BTreeMap<u32, XdpFeatures>>> {
    let socket = netlink_raw::open(NETLINK_GENERIC)?;
    let Some(Family { id: family, .. }) = find_family(&socket)? else {
        return Ok(None);
    };
    let mut all = BTreeMap::new();
    let devices = question(family, REQUEST | DUMP, NETDEV_CMD_DEV_GET, &[]);
    ask(&socket, &devices, |attributes| {
        let get = |kind| attributes.get(&kind).and_then(|value| number(value));
        let index = get(NETDEV_A_DEV_IFINDEX).and_then(|index| u32::try_from(index).ok());
        if let (Some(index), Some(features)) = (index, get(NETDEV_A_DEV_XDP_FEATURES)) {
            all.insert(index, XdpFeatures(features));
        }
    })?;
    Ok(Some(all))
}

/// Hears of interfaces that become able, or unable, to send frames for XDP.
pub struct FeatureChanges {
    socket: TokioSocket,
}

impl FeatureChanges {
    /// Begins to listen; `None` on kernels that don't tell.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub fn new() -> io::Result<Option<Self>> {
        let family = find_family(&netlink_raw::open(NETLINK_GENERIC)?)?;
        let Some(group) = family.and_then(|family| family.changes) else {
            return Ok(None);
        };
        let mut socket = TokioSocket::new(NETLINK_GENERIC)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_mut().add_membership(group)?;
        Ok(Some(Self { socket }))
    }

    /// Waits for the next change. Several may be told of as one.
    ///
    /// # Errors
    ///
    /// If the socket fails.
    pub async fn changed(&mut self) -> io::Result<()> {
        match self.socket.recv_from_full().await {
            // More was told than there was room for: a change all the same.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            outcome => outcome.map(drop),
        }
    }
}

/// The family's number, and that of the group that hears of changes.
struct Family {
    id: u16,
    changes: Option<u32>,
}

fn find_family(socket: &Socket) -> io::Result<Option<Family>> {
    let mut name = Vec::new();
    push_attribute(&mut name, CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    let question = question(GENL_ID_CTRL, REQUEST | ACK, CTRL_CMD_GETFAMILY, &name);
    let mut family = None;
    let asked = ask(socket, &question, |attributes| {
        let id = attributes.get(&CTRL_ATTR_FAMILY_ID).and_then(|id| number(id));
        let groups = attributes.get(&CTRL_ATTR_MCAST_GROUPS).copied().unwrap_or(&[]);
        let changes = parse_attributes(groups).into_values().find_map(group_of_changes);
        if let Some(id) = id.and_then(|id| u16::try_from(id).ok()) {
            family = Some(Family { id, changes });
        }
    });
    match asked {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        asked => asked.map(|()| family),
    }
}

fn group_of_changes(group: &[u8]) -> Option<u32> {
    let group = parse_attributes(group);
    if *group.get(&CTRL_ATTR_MCAST_GRP_NAME)? != b"mgmt\0" {
        return None;
    }
    u32::try_from(number(group.get(&CTRL_ATTR_MCAST_GRP_ID)?)?).ok()
}

fn question(family: u16, flags: u16, command: u8, attributes: &[u8]) -> Question {
    let mut body = vec![command, 1, 0, 0];
    body.extend(attributes);
    Question { kind: family, flags, body }
}

fn ask(
    socket: &Socket,
    question: &Question,
    mut each: impl FnMut(&Attributes<'_>),
) -> io::Result<()> {
    netlink_raw::ask(socket, question, |body| {
        each(&parse_attributes(body.get(GENERIC_HEADER..).unwrap_or(&[])));
    })
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
    fn nothing_is_sent_out_of_the_loopback_device() {
        if let Some(transmit) = read_xdp_transmit().expect("read") {
            assert_eq!(transmit.get(&1), Some(&false));
        }
    }

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
}
