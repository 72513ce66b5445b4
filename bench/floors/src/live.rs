//! Programs for live frames: a generator, the least that can forward, and ends that count.
//!
//! The generator and the ends cost the same whatever forwards between them.

use aya_ebpf::bindings::{TC_ACT_SHOT, xdp_action};
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::{Array, DevMap, HashMap};
use aya_ebpf::programs::{TcContext, XdpContext};

use crate::frame::Frame;
use crate::layout::{CAPTURE, ECHO, End, Seen, Way};
use crate::maps::TARGET;
use crate::vary::vary;

/// What arrives where: the server's end, the client's end.
#[map]
static ENDS: Array<End> = Array::with_max_entries(2, 0);
/// Packets that are as they should be, by the last byte of the address that is looked at; one row of
/// 256 for each end.
#[map]
static SEEN: Array<Seen> = Array::with_max_entries(2, 0);
/// Where plain forwarding sends what comes in by an interface.
#[map]
static WAYS: HashMap<u32, Way> = HashMap::with_max_entries(4, 0);
#[map]
static PORTS_OUT: DevMap = DevMap::with_max_entries(64, 0);

const SERVER: u32 = 0;
const CLIENT: u32 = 1;

/// Makes the next flow's packet and sends it out of the client's interface.
#[xdp(frags)]
pub fn l_generate(ctx: XdpContext) -> u32 {
    // SAFETY: the context is valid while the program runs.
    let (start, end) = unsafe { ((*ctx.ctx).data as usize, (*ctx.ctx).data_end as usize) };
    match (vary(start, end), TARGET.get(0)) {
        // SAFETY: takes integers.
        (Some(()), Some(target)) => unsafe { bpf_redirect(target.ifindex, 0) as u32 },
        _ => xdp_action::XDP_ABORTED,
    }
}

/// Forwards by the interface alone. What is not for the node's own hardware address, such as
/// neighbours' questions, is the kernel's.
#[xdp(frags)]
pub fn l_forward(ctx: XdpContext) -> u32 {
    let frame = Frame::new(&ctx);
    // SAFETY: the context is valid while the program runs.
    let ifindex = unsafe { (*ctx.ctx).ingress_ifindex };
    // SAFETY: nobody writes while packets come.
    let way = unsafe { WAYS.get(&ifindex) };
    match (frame.link_destination(), way) {
        (Some(to), Some(way)) if to == way.own => {
            if frame.write_link(way.link).is_none() {
                return xdp_action::XDP_ABORTED;
            }
            match PORTS_OUT.redirect(way.slot & 63, 0) {
                Ok(verdict) | Err(verdict) => verdict,
            }
        }
        _ => xdp_action::XDP_PASS,
    }
}

/// The server's end: counts, and sends back if it is told to.
#[xdp(frags)]
pub fn l_server(ctx: XdpContext) -> u32 {
    let frame = Frame::new(&ctx);
    match (arrived(&frame, SERVER), frame.turn_round()) {
        (Some(true), Some(())) => xdp_action::XDP_TX,
        _ => xdp_action::XDP_DROP,
    }
}

/// The same behind a kernel that forwards, which has made an skb of the frame: nothing is spent on
/// making a frame of it again.
#[classifier]
pub fn l_server_tc(ctx: TcContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let (start, end, ifindex) = unsafe {
        let skb = ctx.skb.skb;
        ((*skb).data as usize, (*skb).data_end as usize, (*skb).ifindex)
    };
    let frame = Frame::bounds(start, end);
    match (arrived(&frame, SERVER), frame.turn_round()) {
        // SAFETY: takes integers.
        (Some(true), Some(())) => unsafe { bpf_redirect(ifindex, 0) as i32 },
        _ => TC_ACT_SHOT,
    }
}

/// The client's end: counts what comes back.
#[xdp(frags)]
pub fn l_client(ctx: XdpContext) -> u32 {
    let _ = arrived(&Frame::new(&ctx), CLIENT);
    xdp_action::XDP_DROP
}

/// Counts a packet that is as it should be; whether it is to be sent back.
#[inline(always)]
fn arrived(frame: &Frame, end: u32) -> Option<bool> {
    let expected = ENDS.get(end)?;
    let (address, port) = frame.udp_end(expected.at_source != 0)?;
    let seen = SEEN.get_ptr_mut(end)?;
    // SAFETY: a map's element; the benchmark runs packets on one CPU, one after the other.
    let seen = unsafe { &mut *seen };
    let mut differs = 0;
    for (i, word) in address.iter().enumerate() {
        differs |= (word ^ expected.address[i]) & expected.mask[i];
    }
    let port = u16::from_be(port).wrapping_sub(expected.first_port as u16);
    if differs != 0 || u32::from(port) >= expected.ports {
        seen.wrong += 1;
        return None;
    }
    seen.right[(address[3] >> 24) as usize & 255] += 1;
    if expected.flags & CAPTURE != 0 {
        frame.copy(&mut seen.frame, &mut seen.len);
    }
    Some(expected.flags & ECHO != 0)
}
