//! `BPF_PROG_LOAD` with the verifier's log, which aya keeps only where a program is refused.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};

use anyhow::{Result, bail};
use aya_obj::ProgramSection;
use aya_obj::generated::{bpf_attach_type, bpf_insn, bpf_prog_type};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LOG_STATS: u32 = 4;
const BPF_LOG_LEVEL1: u32 = 1;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
/// Holds the last instructions of any path.
const LOG_LEN: usize = 64 << 20;

/// What a program is loaded as.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    program: bpf_prog_type,
    flags: u32,
    /// Zero where the kernel does not ask.
    attach: u32,
}

impl Kind {
    /// What the object says of a program.
    pub(crate) fn of(section: &ProgramSection) -> Result<Self> {
        let kind = |program, flags, attach: Option<bpf_attach_type>| Self {
            program,
            flags,
            attach: attach.map_or(0, |attach| attach as u32),
        };
        #[expect(clippy::wildcard_enum_match_arm, reason = "aya's enum; the rest we do not use")]
        Ok(match section {
            ProgramSection::Xdp { frags, .. } => kind(
                bpf_prog_type::BPF_PROG_TYPE_XDP,
                if *frags { BPF_F_XDP_HAS_FRAGS } else { 0 },
                Some(bpf_attach_type::BPF_XDP),
            ),
            ProgramSection::SchedClassifier => {
                kind(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, 0, None)
            }
            ProgramSection::CgroupSockAddr { attach_type } => {
                kind(bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR, 0, Some((*attach_type).into()))
            }
            other => bail!("a kind of program that this test does not know: {other:?}"),
        })
    }
}

/// `union bpf_attr` for `BPF_PROG_LOAD`, as far as `expected_attach_type`.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    expected_attach_type: u32,
}

/// Loads a program and lets it go; what the verifier said comes with the answer. Of a program that
/// it accepts, that is the statistics only.
pub(crate) fn load(kind: Kind, instructions: &[bpf_insn]) -> Result<(io::Result<()>, String)> {
    let (answer, log) = attempt(kind, instructions, BPF_LOG_STATS, 64 << 10)?;
    if answer.is_ok() {
        return Ok((answer, log));
    }
    attempt(kind, instructions, BPF_LOG_LEVEL1, LOG_LEN)
}

fn attempt(
    kind: Kind,
    instructions: &[bpf_insn],
    log_level: u32,
    log_len: usize,
) -> Result<(io::Result<()>, String)> {
    let mut log = vec![0_u8; log_len];
    let attr = LoadAttr {
        kind: kind.program as u32,
        instruction_count: u32::try_from(instructions.len())?,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level,
        log_size: u32::try_from(log.len())?,
        log: log.as_mut_ptr() as u64,
        flags: kind.flags,
        expected_attach_type: kind.attach,
        ..LoadAttr::default()
    };
    // SAFETY: the attributes are as long as we say, and what they point to lives until the end of
    // the call; the log is ours to be written.
    let answer = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attr, size_of::<LoadAttr>())
    };
    let answer = if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        let descriptor = i32::try_from(answer)?;
        // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
        drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
        Ok(())
    };
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    Ok((answer, String::from_utf8_lossy(&log[..end]).into_owned()))
}
