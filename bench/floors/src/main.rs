//! Programs that do less than redirector's: what the parts of a data path cost here at the least.
//!
//! Each adds a step to the ones before it. They handle IPv4 without options only, but the first
//! three; what they would need to be right in all cases is left out on purpose.
#![no_std]
#![no_main]
// Inline assembly for BPF, for one optimisation barrier; see `frame`.
#![feature(asm_experimental_arch)]
#![expect(unreachable_pub, missing_docs, reason = "made by aya's attribute macros")]
#![expect(
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::needless_borrows_for_generic_args,
    reason = "helpers return verdicts as signed numbers, keys are borrowed for their bytes"
)]
#![expect(clippy::needless_pass_by_value, reason = "aya hands programs their context by value")]

mod cache;
mod candidate;
mod frame;
#[expect(dead_code, reason = "the benchmark uses the rest")]
mod layout;
mod live;
mod lookup;
mod maps;
mod path;
mod step;
mod tc;
mod vary;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

use crate::frame::Frame;

/// Nothing.
#[xdp(frags)]
pub fn f_return(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Finds the headers of either family.
#[xdp(frags)]
pub fn f_parse(ctx: XdpContext) -> u32 {
    match Frame::new(&ctx).parse_any() {
        Some(ports) if ports != 0 => xdp_action::XDP_PASS,
        _ => xdp_action::XDP_ABORTED,
    }
}

/// Finds the headers and sends the frame back.
#[xdp(frags)]
pub fn f_parse_tx(ctx: XdpContext) -> u32 {
    let frame = Frame::new(&ctx);
    match frame.parse_any() {
        Some(ports) if ports != 0 => frame.send_back(),
        _ => xdp_action::XDP_ABORTED,
    }
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never reached: an endless loop, so that the verifier refuses a program that could panic.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
