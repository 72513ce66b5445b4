//! `BPF_PROG_LOAD` with the verifier's log, which aya keeps only where a program is refused.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail};
use aya_obj::generated::{bpf_attach_type, bpf_prog_type};
use aya_obj::{Function, ProgramSection};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_BTF_LOAD: libc::c_int = 18;
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
    types: u32,
    function_size: u32,
    functions: u64,
    function_count: u32,
    line_size: u32,
    lines: u64,
    line_count: u32,
    padding: u32,
}

/// `union bpf_attr` for `BPF_BTF_LOAD`.
#[repr(C)]
#[derive(Default)]
struct TypesAttr {
    types: u64,
    log: u64,
    size: u32,
    log_size: u32,
    log_level: u32,
    padding: u32,
}

/// Loads the object's types. Without them the verifier takes exported functions for others, and
/// walks them again wherever they are called.
pub(crate) fn load_types(types: &[u8]) -> Result<OwnedFd> {
    let attr = TypesAttr {
        types: types.as_ptr() as u64,
        size: u32::try_from(types.len())?,
        ..TypesAttr::default()
    };
    // SAFETY: the attributes are as long as we say, and the types live until the end of the call.
    let answer = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_BTF_LOAD, &raw const attr, size_of::<TypesAttr>())
    };
    if answer < 0 {
        return Err(io::Error::last_os_error()).context("loading the object's types");
    }
    // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(answer)?) })
}

/// Loads a program and lets it go; what the verifier said comes with the answer. Of a program that
/// it accepts, that is the statistics only.
pub(crate) fn load(
    kind: Kind,
    function: &Function,
    types: &OwnedFd,
) -> Result<(io::Result<()>, String)> {
    let (answer, log) = attempt(kind, function, types, BPF_LOG_STATS, 64 << 10)?;
    if answer.is_ok() {
        return Ok((answer, log));
    }
    attempt(kind, function, types, BPF_LOG_LEVEL1, LOG_LEN)
}

fn attempt(
    kind: Kind,
    function: &Function,
    types: &OwnedFd,
    log_level: u32,
    log_len: usize,
) -> Result<(io::Result<()>, String)> {
    let mut log = vec![0_u8; log_len];
    let instructions = &function.instructions;
    let functions = function.func_info.func_info_bytes();
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
        types: u32::try_from(types.as_raw_fd())?,
        function_size: u32::try_from(function.func_info_rec_size)?,
        functions: functions.as_ptr() as u64,
        function_count: u32::try_from(function.func_info.len())?,
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
