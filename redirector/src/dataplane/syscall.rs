//! What aya does not offer: asking a pinned link what it is on, giving it another program, taking
//! it off at once, and waiting until no program runs that began earlier.

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// Of <asm-generic/socket.h> (Linux 5.14).
const SO_NETNS_COOKIE: libc::c_int = 71;

#[repr(C)]
#[derive(Default)]
struct PathAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    link_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct UpdateAttr {
    link_fd: u32,
    program_fd: u32,
    flags: u32,
    old_program_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The beginning of the kernel's `struct bpf_link_info`; for XDP and tcx links the interface is
/// the first word of its union, for links on control groups their number the first two.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    /// Kernel number of the link's type.
    pub(crate) kind: u32,
    /// The link.
    pub(crate) id: u32,
    /// The program that it runs.
    pub(crate) program: u32,
    padding: u32,
    /// The interface; 0 once it is gone.
    pub(crate) ifindex: u32,
    rest: [u32; 11],
}

impl LinkInfo {
    /// The control group; 0 once it is gone.
    pub(crate) fn cgroup(&self) -> u64 {
        let [a, b, c, d] = self.ifindex.to_ne_bytes();
        let [e, f, g, h] = self.rest[0].to_ne_bytes();
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
    }
}

/// Opens what is pinned at `path`.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = PathAttr { pathname: path.as_ptr() as u64, ..PathAttr::default() };
    let fd = bpf(BPF_OBJ_GET, &mut attr)?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What the kernel knows of a link.
pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    let mut attr = InfoAttr {
        bpf_fd: raw(link),
        info_len: u32::try_from(size_of::<LinkInfo>()).unwrap_or_default(),
        info: (&raw mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

/// Makes a link run another program, in one step.
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr =
        UpdateAttr { link_fd: raw(link), program_fd: raw(program), ..UpdateAttr::default() };
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Takes a link off its interface, before this returns.
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkAttr { link_fd: raw(link) };
    bpf(BPF_LINK_DETACH, &mut attr).map(drop)
}

/// Waits until every program that was running when this was called has ended, so that what no
/// map names any more is not being read either.
pub(crate) fn wait_for_programs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: no pointers are passed. The command waits for an RCU grace period, and programs
    // run inside RCU read-side sections.
    let done = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if done != 0 {
        // Refused on kernels with `nohz_full`; a program runs for microseconds.
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// The number by which programs know this process's network namespace.
pub(crate) fn netns_cookie() -> io::Result<u64> {
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    let mut cookie = 0_u64;
    let mut len = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or_default();
    // SAFETY: the option is a number of eight bytes, and `len` says that there is room for it.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    // An open descriptor is never negative.
    u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX)
}

fn bpf<A>(command: libc::c_int, attr: &mut A) -> io::Result<libc::c_int> {
    // SAFETY: `attr` is one of the attribute structures above, whose pointers the callers keep
    // alive for the call and whose lengths they state.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<A>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // A descriptor or zero.
    Ok(libc::c_int::try_from(result).unwrap_or_default())
}
