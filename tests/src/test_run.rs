//! Programs that run without traffic: `BPF_PROG_TEST_RUN`.

use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::programs::{
    Program, SchedClassifier, TestRun as _, TestRunAttrs, TestRunOptions, TestRunResult, Xdp,
};

/// Larger than any packet that comes out.
const OUTPUT_LEN: usize = 16 * 1024;
/// Live frames that the kernel makes at once.
const BATCH: u32 = 64;

/// What a program makes of a packet, and the packet as it leaves the program, `repeat` times over.
///
/// # Errors
///
/// If the kernel refuses to run it.
pub fn run(
    program: &Program,
    packet: &[u8],
    context: &[u8],
    repeat: u32,
) -> Result<(TestRunResult, Vec<u8>)> {
    let mut output = vec![0; OUTPUT_LEN];
    let options = TestRunOptions {
        data_in: Some(packet),
        data_out: Some(&mut output),
        ctx_in: Some(context),
        repeat,
        ..TestRunOptions::default()
    };
    let result = if let Program::Xdp(program) = program {
        program.test_run(options)
    } else {
        <&SchedClassifier>::try_from(program)?.test_run(options)
    }
    .with_context(|| format!("BPF_PROG_TEST_RUN with {} bytes", packet.len()))?;
    output.truncate(usize::try_from(result.data_size_out)?);
    Ok((result, output))
}

/// Sends frames, as if each had come in by the interface; the program says where to. Returns the
/// time for each.
///
/// # Errors
///
/// If the kernel refuses to run the program.
pub fn send_live(program: &Xdp, frame: &[u8], ifindex: u32, count: u32) -> Result<Duration> {
    let context = xdp_context(ifindex, frame.len())?;
    let options = TestRunOptions {
        data_in: Some(frame),
        ctx_in: Some(&context),
        repeat: count,
        attrs: TestRunAttrs::new().xdp_live_frames(BATCH.min(count)),
        ..TestRunOptions::default()
    };
    let result = program.test_run(options).context("BPF_PROG_TEST_RUN with live frames")?;
    Ok(result.duration)
}

/// `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
///
/// # Errors
///
/// If there can be no such packet.
pub fn xdp_context(ifindex: u32, len: usize) -> Result<Vec<u8>> {
    let words = [0, u32::try_from(len)?, 0, ifindex, 0, 0];
    Ok(words.into_iter().flat_map(u32::to_ne_bytes).collect())
}

/// `struct __sk_buff`, of which only what the kernel lets one choose is not zero.
#[must_use]
pub fn skb_context(ifindex: u32, ingress_ifindex: u32, segment: u32) -> Vec<u8> {
    const LEN: usize = 192;
    const INGRESS_IFINDEX: usize = 36;
    const IFINDEX: usize = 40;
    const GSO_SIZE: usize = 176;
    let mut context = vec![0; LEN];
    for (at, word) in [(INGRESS_IFINDEX, ingress_ifindex), (IFINDEX, ifindex), (GSO_SIZE, segment)]
    {
        context[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }
    context
}
