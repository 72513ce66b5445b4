//! Loading the programs, and making or opening the maps that they share.

use std::io;
use std::path::PathBuf;

use aya::maps::{MapError, MapInfo, MapType};
use aya::programs::{CgroupSockAddr, Program, ProgramError, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader};
use redirector_common::map_name::MapName;
use redirector_common::node::{
    CounterBlock, MAX_IFINDEX, MAX_SLOTS, MAX_SNAT_ENTRIES, PORT_BLOCKS, PortBlock, SysctlKey,
    SysctlValue, Text,
};
use redirector_common::service::MaglevLine;
use redirector_common::{
    Address, Affinity, AffinityKey, Backend, CacheSet, Endpoint, FirstFragment, Flow, FragmentKey,
    Frontend, FrontendKey, Interface, NodeConfig, Peer, RingSlot, Service, ServiceInfo, SlotKey,
    SlotValue, SnatAddressKey, SocketKey, SourceRange, SteeredKey, Taker, TakerKey, Tuple, Watch,
    cache, event, ring,
};

use super::pins::{ClientHook, Hook, Pins};
use super::sizes::Sizes;

/// The programs, compiled for BPF; empty where there was no compiler for it.
pub static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/redirector-ebpf"));

/// Why the programs or maps could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Built without a compiler for BPF.
    #[error(
        "this binary was built without its eBPF programs: run `cargo xtask setup`, then build again"
    )]
    NoPrograms,
    /// A map could not be made.
    #[error("cannot create map {name} with {entries} entries: {source}: {}", hint(.source))]
    CreateMap {
        /// The map.
        name: String,
        /// Its size.
        entries: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// What is pinned is not what the programs expect.
    #[error(
        "{} is not the map that this version of redirector makes ({found}, not {expected}): \
         `redirector detach` removes it", .path.display()
    )]
    Incompatible {
        /// The pin.
        path: PathBuf,
        /// What it is.
        found: Spec,
        /// What it should be.
        expected: Spec,
    },
    /// A pinned map could not be opened.
    #[error("cannot open pinned map {}: {source}", .path.display())]
    OpenMap {
        /// The pin.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The verifier or the kernel refuses a program.
    #[error("the kernel refuses program {name}: {reason}")]
    Program {
        /// The program.
        name: &'static str,
        /// The last of what it said.
        reason: String,
    },
    /// Anything else that is wrong with the object.
    #[error("cannot load the eBPF programs: {0}")]
    Object(EbpfError),
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "run as root, or raise the limit of locked memory (ulimit -l unlimited)"
        }
        Some(libc::ENOMEM | libc::E2BIG) => {
            "give the host or its memory control group more memory, or raise the limit of locked \
             memory (ulimit -l unlimited)"
        }
        _ => "the kernel's log may say more (dmesg)",
    }
}

/// The loaded programs.
pub struct Programs {
    ebpf: Ebpf,
}

impl Programs {
    /// Opens the maps that are pinned, makes and pins those that are not, and loads the programs.
    /// Nothing is attached yet.
    ///
    /// # Errors
    ///
    /// If a pin is incompatible, a map cannot be made, or the kernel refuses a program.
    pub fn load(pins: &Pins, sizes: &Sizes) -> Result<Self, LoadError> {
        Self::load_with(sizes, |name| pins.map(name))
    }

    /// The same, where maps are pinned elsewhere.
    ///
    /// # Errors
    ///
    /// As [`Self::load`].
    pub fn load_with(sizes: &Sizes, pin: impl Fn(MapName) -> PathBuf) -> Result<Self, LoadError> {
        if OBJECT.is_empty() {
            return Err(LoadError::NoPrograms);
        }
        let mut loader = EbpfLoader::new();
        for name in MapName::ALL.iter().copied() {
            let expected = Spec::of(name, sizes);
            check_pin(pin(name), expected)?;
            loader.map_max_entries(name.name(), expected.entries);
            loader.map_pin_path(name.name(), pin(name));
        }
        let mut programs =
            Self { ebpf: loader.load(OBJECT).map_err(|error| describe_load(error, sizes))? };
        let refused = |role: Role| {
            move |error: ProgramError| LoadError::Program {
                name: role.name(),
                reason: describe_program(&error),
            }
        };
        for role in [Role::Driver, Role::Generic] {
            programs.xdp(role)?.load().map_err(refused(role))?;
        }
        for role in [Role::Ingress, Role::Egress] {
            programs.classifier(role)?.load().map_err(refused(role))?;
        }
        Ok(programs)
    }

    /// An XDP program.
    ///
    /// # Errors
    ///
    /// If the object has none for this.
    pub fn xdp(&mut self, role: Role) -> Result<&mut Xdp, LoadError> {
        let program = self.program(role)?;
        program.try_into().map_err(|error| wrong_kind(role, &error))
    }

    /// A TC program.
    ///
    /// # Errors
    ///
    /// If the object has none for this.
    pub fn classifier(&mut self, role: Role) -> Result<&mut SchedClassifier, LoadError> {
        let program = self.program(role)?;
        program.try_into().map_err(|error| wrong_kind(role, &error))
    }

    /// A program for sockets, loaded now if it is not yet: nobody else needs a kernel that has
    /// them.
    ///
    /// # Errors
    ///
    /// If the object has none for this, or the kernel refuses it.
    pub fn client(&mut self, hook: ClientHook) -> Result<&mut CgroupSockAddr, LoadError> {
        let name = hook.program();
        let program: &mut CgroupSockAddr =
            self.named(name)?.try_into().map_err(|error: ProgramError| LoadError::Program {
                name,
                reason: error.to_string(),
            })?;
        if program.fd().is_err() {
            program
                .load()
                .map_err(|error| LoadError::Program { name, reason: describe_program(&error) })?;
        }
        Ok(program)
    }

    fn program(&mut self, role: Role) -> Result<&mut Program, LoadError> {
        self.named(role.name())
    }

    fn named(&mut self, name: &'static str) -> Result<&mut Program, LoadError> {
        self.ebpf.program_mut(name).ok_or_else(|| LoadError::Program {
            name,
            reason: "the object does not contain it".to_owned(),
        })
    }
}

/// What a program is attached as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// XDP in the driver.
    Driver,
    /// XDP in the kernel's generic form.
    Generic,
    /// TC ingress.
    Ingress,
    /// TC egress.
    Egress,
}

impl Role {
    /// Of the program at a TC hook; XDP's is a matter of mode.
    #[must_use]
    pub const fn at(hook: Hook) -> Self {
        match hook {
            Hook::Egress => Self::Egress,
            Hook::Ingress | Hook::Xdp => Self::Ingress,
        }
    }

    /// Name of the program in the object file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Driver => "redirector_xdp",
            Self::Generic => "redirector_gen",
            Self::Ingress => "redirector_in",
            Self::Egress => "redirector_out",
        }
    }
}

fn wrong_kind(role: Role, error: &ProgramError) -> LoadError {
    LoadError::Program { name: role.name(), reason: error.to_string() }
}

/// What a map is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spec {
    kind: MapType,
    key: usize,
    value: usize,
    entries: u32,
}

impl Spec {
    /// What the programs expect of `name`.
    fn of(name: MapName, sizes: &Sizes) -> Self {
        match name {
            MapName::Ports => Self::array::<PortBlock>(PORT_BLOCKS),
            MapName::Frontends => Self::hash::<FrontendKey, Frontend>(sizes.frontends),
            MapName::Services => Self::array::<Service>(sizes.services),
            MapName::Maglev => Self::array::<MaglevLine>(sizes.maglev_lines),
            MapName::Backends => Self::array::<Backend>(sizes.backends),
            MapName::Flows => Self::hash::<Tuple, Flow>(sizes.flows),
            MapName::FlowRing => Self::array::<RingSlot>(ring::slots(sizes.flows)),
            MapName::FlowCache => {
                Self::array::<CacheSet>(sizes.cache_sets.saturating_mul(sizes.cpus).max(1))
            }
            MapName::Epochs => Self::array::<u32>(cache::EPOCHS),
            MapName::Interfaces => Self::array::<Interface>(MAX_IFINDEX),
            MapName::SnatAddresses => Self::hash::<SnatAddressKey, Address>(MAX_SNAT_ENTRIES),
            MapName::Node => Self::array::<NodeConfig>(1),
            MapName::Counters => {
                Self { kind: MapType::PerCpuArray, ..Self::array::<CounterBlock>(MAX_SLOTS) }
            }
            MapName::Slots => Self::hash::<SlotKey, SlotValue>(sizes.slots),
            MapName::ServiceInfo => Self::hash::<u32, ServiceInfo>(sizes.services),
            MapName::Status => Self::array::<Text>(1),
            MapName::Sysctls => Self::hash::<SysctlKey, SysctlValue>(64),
            MapName::Fragments => Self {
                kind: MapType::LruHash,
                ..Self::hash::<FragmentKey, FirstFragment>(sizes.fragments)
            },
            MapName::SourceRanges => Self {
                kind: MapType::LpmTrie,
                ..Self::hash::<SourceRange, u32>(sizes.source_ranges)
            },
            MapName::Affinity => Self {
                kind: MapType::LruHash,
                ..Self::hash::<AffinityKey, Affinity>(sizes.affinity)
            },
            MapName::Takers => Self::hash::<TakerKey, Taker>(sizes.takers),
            MapName::Vips => Self::hash::<Address, u32>(sizes.vips),
            MapName::Peers => Self::hash::<Address, Peer>(sizes.peers),
            MapName::Steered => {
                Self { kind: MapType::LruHash, ..Self::hash::<SteeredKey, u64>(sizes.steered) }
            }
            MapName::Watch => Self::array::<Watch>(1),
            MapName::Events => {
                Self { kind: MapType::RingBuf, key: 0, value: 0, entries: event::RING_BYTES }
            }
            MapName::EventsLost => Self { kind: MapType::PerCpuArray, ..Self::array::<u64>(1) },
            MapName::Sockets => {
                Self { kind: MapType::LruHash, ..Self::hash::<SocketKey, Endpoint>(sizes.sockets) }
            }
        }
    }

    fn array<V>(entries: u32) -> Self {
        Self { kind: MapType::Array, key: size_of::<u32>(), value: size_of::<V>(), entries }
    }

    fn hash<K, V>(entries: u32) -> Self {
        Self { kind: MapType::Hash, key: size_of::<K>(), value: size_of::<V>(), entries }
    }

    /// Whether programs can use the one for the other: all but the size, which only limits.
    fn is_compatible(&self, other: &Self) -> bool {
        (self.kind, self.key, self.value) == (other.kind, other.key, other.value)
    }
}

impl std::fmt::Display for Spec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, key, value, .. } = self;
        write!(f, "{kind:?} with keys of {key} and values of {value} bytes")
    }
}

fn check_pin(path: PathBuf, expected: Spec) -> Result<(), LoadError> {
    let found = match MapInfo::from_pin(&path) {
        Ok(info) => info,
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            return Ok(());
        }
        Err(error) => {
            let source = super::table::io_error(error);
            return Err(LoadError::OpenMap { path, source });
        }
    };
    let found = Spec {
        kind: found.map_type().unwrap_or(MapType::Unspecified),
        key: found.key_size() as usize,
        value: found.value_size() as usize,
        entries: found.max_entries(),
    };
    if found.is_compatible(&expected) {
        return Ok(());
    }
    Err(LoadError::Incompatible { path, found, expected })
}

fn describe_load(error: EbpfError, sizes: &Sizes) -> LoadError {
    if let EbpfError::MapError(MapError::CreateError { name, io_error }) = error {
        let known = MapName::ALL.iter().find(|known| known.name() == name);
        return LoadError::CreateMap {
            entries: known.map_or(1, |known| Spec::of(*known, sizes).entries),
            name,
            source: io_error,
        };
    }
    LoadError::Object(error)
}

/// One line: what the verifier said last, and the kernel's error.
fn describe_program(error: &ProgramError) -> String {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        return error.to_string();
    };
    let log = verifier_log.to_string();
    let last =
        log.lines().rev().map(str::trim).find(|line| !line.is_empty() && !is_statistics(line));
    match last {
        Some(line) => format!("{line} ({io_error})"),
        None => io_error.to_string(),
    }
}

fn is_statistics(line: &str) -> bool {
    ["processed ", "verification time ", "stack depth "]
        .iter()
        .any(|prefix| line.starts_with(prefix))
}
