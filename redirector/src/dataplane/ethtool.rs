//! What drivers say of their interfaces, by the old `ethtool` calls, which every driver knows.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

// Numbers of <linux/ethtool.h>.
const GDRVINFO: u32 = 0x03;
const GCHANNELS: u32 = 0x3c;
const GRXCSUM: u32 = 0x14;
const GTXCSUM: u32 = 0x16;
const GTSO: u32 = 0x1e;
const GGSO: u32 = 0x23;
const GFLAGS: u32 = 0x25;
const GGRO: u32 = 0x2b;
const FLAG_LRO: u32 = 1 << 15;

/// What a driver says of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Driver {
    /// Name; empty where there is none.
    pub name: String,
    /// Largest IP packet that goes out, in bytes.
    pub mtu: u32,
    /// Queues for receiving, where the driver tells.
    pub receive_queues: Option<u32>,
    /// Queues for sending.
    pub send_queues: Option<u32>,
    /// Work that it takes off the kernel, by ethtool's names.
    pub offloads: Vec<&'static str>,
}

/// Asks the driver of an interface.
///
/// # Errors
///
/// If there is no such interface.
pub fn read(interface: &str) -> io::Result<Driver> {
    let socket = UnixDatagram::unbound()?;
    let ask = Ask { socket: &socket, interface };
    let mut offloads = Vec::new();
    let values = [("rx", GRXCSUM), ("tx", GTXCSUM), ("tso", GTSO), ("gso", GGSO), ("gro", GGRO)];
    for (name, command) in values {
        if ask.value(command).is_ok_and(|value| value != 0) {
            offloads.push(name);
        }
    }
    if ask.value(GFLAGS).is_ok_and(|flags| flags & FLAG_LRO != 0) {
        offloads.push("lro");
    }
    let channels = ask.channels().ok();
    Ok(Driver {
        name: ask.driver().unwrap_or_default(),
        mtu: ask.mtu()?,
        receive_queues: channels.map(|(receive, _)| receive),
        send_queues: channels.map(|(_, send)| send),
        offloads,
    })
}

#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    /// Limits of the four below.
    limits: [u32; 4],
    receive: u32,
    send: u32,
    other: u32,
    combined: u32,
}

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

/// `struct ifreq`: a name, and what the call takes.
#[repr(C)]
struct Request<T> {
    name: [u8; libc::IFNAMSIZ],
    argument: T,
    padding: [u8; 16],
}

struct Ask<'a> {
    socket: &'a UnixDatagram,
    interface: &'a str,
}

impl Ask<'_> {
    fn value(&self, command: u32) -> io::Result<u32> {
        let mut value = Value { command, data: 0 };
        self.ethtool(&mut value)?;
        Ok(value.data)
    }

    fn channels(&self) -> io::Result<(u32, u32)> {
        let mut channels = Channels { command: GCHANNELS, ..Channels::default() };
        self.ethtool(&mut channels)?;
        let Channels { receive, send, combined, .. } = channels;
        Ok((receive.saturating_add(combined), send.saturating_add(combined)))
    }

    fn driver(&self) -> io::Result<String> {
        let mut info = DriverInfo { command: GDRVINFO, driver: [0; 32], rest: [0; 160] };
        self.ethtool(&mut info)?;
        let end = info.driver.iter().position(|byte| *byte == 0).unwrap_or(info.driver.len());
        Ok(String::from_utf8_lossy(&info.driver[..end]).into_owned())
    }

    fn mtu(&self) -> io::Result<u32> {
        let mut request = self.request(0_i32)?;
        self.call(libc::SIOCGIFMTU, &raw mut request)?;
        Ok(u32::try_from(request.argument).unwrap_or_default())
    }

    fn ethtool<T>(&self, argument: &mut T) -> io::Result<()> {
        let mut request = self.request(std::ptr::from_mut(argument))?;
        self.call(libc::SIOCETHTOOL, &raw mut request)
    }

    fn request<T>(&self, argument: T) -> io::Result<Request<T>> {
        let mut name = [0; libc::IFNAMSIZ];
        let bytes = self.interface.as_bytes();
        // The name ends with a zero.
        name.get_mut(..bytes.len())
            .filter(|_| bytes.len() < libc::IFNAMSIZ)
            .ok_or(io::ErrorKind::NotFound)?
            .copy_from_slice(bytes);
        Ok(Request { name, argument, padding: [0; 16] })
    }

    fn call<T>(&self, number: libc::Ioctl, request: *mut Request<T>) -> io::Result<()> {
        // SAFETY: the request is at least as long as `struct ifreq`; where it points to a structure
        // of ethtool's, that is as long as its command says and lives until the call ends.
        let answer = unsafe { libc::ioctl(self.socket.as_raw_fd(), number, request) };
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_is_described() {
        let driver = read("lo").expect("there is one");
        assert!(driver.mtu >= 1280, "{driver:?}");
        for name in ["", "absent", "a-name-that-no-interface-has"] {
            read(name).expect_err(name);
        }
    }
}
