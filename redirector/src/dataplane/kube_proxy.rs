//! Whether kube-proxy's rules are in this network namespace.
//!
//! A packet that was handed to a socket still passes netfilter on its way up. Rules of kube-proxy
//! for the same node port may send it elsewhere, and what carries a socket cannot be forwarded: it
//! would be lost. A packet that we translate meets no such rule.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use super::netlink_raw::{self, DUMP, Question, REQUEST};

const NETLINK_NETFILTER: isize = 12;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN`.
const GET_CHAIN: u16 = 10 << 8 | 4;

/// A chain that kube-proxy has in every mode with iptables' commands, also beside IPVS.
const CHAIN: &[u8] = b"KUBE-SERVICES\0";
/// The table of its own that it has with nftables.
const TABLE: &[u8] = b"kube-proxy\0";

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`, of either family.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// Bytes of `struct ipt_getinfo`, of `struct ipt_get_entries` without entries, and where each has
/// its size.
const INFO_LEN: usize = 84;
const INFO_SIZE: usize = 80;
const ENTRIES_LEN: usize = 40;
const ENTRIES_SIZE: usize = 32;

/// Whether kube-proxy's rules are there, by whichever means they were written.
///
/// # Errors
///
/// If the kernel does not say.
pub fn has_rules() -> io::Result<bool> {
    Ok(is_in_nftables()?
        || is_in_iptables("ip", libc::AF_INET)?
        || is_in_iptables("ip6", libc::AF_INET6)?)
}

fn is_in_nftables() -> io::Result<bool> {
    let socket = netlink_raw::open(NETLINK_NETFILTER)?;
    // `struct nfgenmsg`: any family.
    let question = Question { kind: GET_CHAIN, flags: REQUEST | DUMP, body: vec![0; 4] };
    let mut found = false;
    let answer = netlink_raw::ask(&socket, &question, |chain| {
        found |= contains(chain, CHAIN) || contains(chain, TABLE);
    });
    match answer {
        Ok(()) => Ok(found),
        // The kernel has no nftables, or has them not loaded.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Looks into the `nat` table of the older iptables, if it is there: asking for it would make it.
fn is_in_iptables(family: &str, domain: libc::c_int) -> io::Result<bool> {
    let path = format!("/proc/thread-self/net/{family}_tables_names");
    match std::fs::read_to_string(path) {
        Ok(names) if names.lines().any(|name| name == "nat") => {}
        Ok(_) => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    let level = if domain == libc::AF_INET { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 };
    // SAFETY: takes integers.
    let socket =
        unsafe { libc::socket(domain, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else has.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let mut info = vec![0; INFO_LEN];
    ask(&socket, level, GET_INFO, &mut info)?;
    let size = info[INFO_SIZE..].first_chunk::<4>().copied().unwrap_or_default();
    let mut entries = vec![0; ENTRIES_LEN + u32::from_ne_bytes(size) as usize];
    entries[ENTRIES_SIZE..][..4].copy_from_slice(&size);
    match ask(&socket, level, GET_ENTRIES, &mut entries) {
        Ok(()) => Ok(contains(&entries, CHAIN)),
        // It changed in between: the next look will tell.
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Asks about the table `nat`, whose name stands first in question and answer.
fn ask(
    socket: &OwnedFd,
    level: libc::c_int,
    option: libc::c_int,
    answer: &mut [u8],
) -> io::Result<()> {
    answer[..3].copy_from_slice(b"nat");
    let mut len = libc::socklen_t::try_from(answer.len())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the answer is as long as said.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            answer.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}
