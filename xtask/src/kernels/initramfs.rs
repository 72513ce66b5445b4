//! All that the virtual machine has: busybox, the tests, what they run, and modules.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::packages::{Kernel, files};
use super::plan::Test;
use crate::filesystem::{install, make_empty};
use crate::process::which;

/// What the tests run; busybox's own do less.
const PROGRAMS: [&str; 5] = ["ethtool", "ip", "nsenter", "setpriv", "tc"];

/// What Debian builds as modules.
const MODULES: [&str; 6] = ["veth", "sch_ingress", "cls_bpf", "8021q", "bonding", "bridge"];

/// Where the agent stands, which tests start.
const AGENT: &str = "usr/bin/redirector";

/// Before a test's output, and after it with its exit code.
pub(super) const BEGIN: &str = "@begin ";
pub(super) const END: &str = "@end ";

/// Makes the archive and returns its path.
pub(super) fn build(kernel: &Kernel, tests: &[Test], agent: Option<&Path>) -> Result<PathBuf> {
    let root = kernel.directory.join("initramfs");
    make_empty(&root)?;
    for directory in ["bin", "dev", "lib/modules", "proc", "run", "sys", "tests", "tmp", "usr/bin"]
    {
        let directory = root.join(directory);
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {directory:?}"))?;
    }
    install(&root, &find("busybox")?, "bin/busybox")?;
    for program in PROGRAMS {
        install(&root, &find(program)?, &format!("usr/bin/{program}"))?;
    }
    for test in tests {
        install(&root, &test.executable, &format!("tests/{}", test.name))?;
    }
    if let Some(agent) = agent {
        install(&root, agent, AGENT)?;
    }
    let modules = install_modules(&root, &kernel.modules)?;
    let init = root.join("init");
    fs::write(&init, script(&modules, tests)).with_context(|| format!("cannot write {init:?}"))?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    pack(&root, kernel.directory.join("initramfs.cpio"))
}

/// The machine's first process. The kernel's messages go to the first serial line, what tests
/// print to the second.
fn script(modules: &[String], tests: &[Test]) -> String {
    let mut script = "#!/bin/busybox sh\n\
        /bin/busybox --install -s /bin\n\
        export PATH=/usr/bin:/bin RUST_BACKTRACE=0\n"
        .to_owned();
    script += &format!("export {}=/{AGENT}\n", crate::build::AGENT);
    script += "\
        mount -t devtmpfs dev /dev\n\
        exec >/dev/ttyS1 2>&1\n\
        stty -F /dev/ttyS1 -opost\n\
        mount -t proc proc /proc\n\
        mount -t sysfs sys /sys\n\
        mount -t bpf bpf /sys/fs/bpf\n\
        mount -t cgroup2 cgroup /sys/fs/cgroup\n\
        mount -t tmpfs run /run\n\
        mount -t tmpfs tmp /tmp\n\
        ip link set lo up\n";
    for module in modules {
        script += &format!("insmod /lib/modules/{module}.ko\n");
    }
    for Test { name, only, .. } in tests {
        let only = only.join(" ");
        // One at a time: the machine has one processor. A test's own output ends with a newline,
        // but what is cut off need not.
        script += &format!(
            "echo '{BEGIN}{name}'\n/tests/{name} {only} --test-threads 1 --nocapture; code=$?\necho; echo \"{END}{name} $code\"\n"
        );
    }
    script + "poweroff -f\n"
}

fn find(program: &str) -> Result<PathBuf> {
    which(program).with_context(|| format!("there is no {program} on this machine"))
}

/// Copies modules and what they depend on, unpacked; returns them in the order of loading.
fn install_modules(root: &Path, modules: &Path) -> Result<Vec<String>> {
    let mut all = Vec::new();
    let mut pending = vec![modules.join("kernel")];
    while let Some(directory) = pending.pop() {
        for path in files(&directory)? {
            if path.is_dir() {
                pending.push(path);
            } else {
                all.push(path);
            }
        }
    }
    let mut loaded = Vec::new();
    let mut seen = BTreeSet::new();
    for module in MODULES {
        install_module(root, &all, module, &mut seen, &mut loaded)?;
    }
    Ok(loaded)
}

fn install_module(
    root: &Path,
    all: &[PathBuf],
    module: &str,
    seen: &mut BTreeSet<String>,
    loaded: &mut Vec<String>,
) -> Result<()> {
    if !seen.insert(module.to_owned()) {
        return Ok(());
    }
    let is_it = |path: &&PathBuf| {
        let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        file.split_once(".ko").is_some_and(|(name, _)| name.replace('-', "_") == module)
    };
    let path = all.iter().find(is_it).with_context(|| format!("the kernel has no {module}"))?;
    let bytes = if path.extension().is_some_and(|extension| extension == "xz") {
        let output = Command::new("xz").arg("-dc").arg(path).output().context("cannot run xz")?;
        if !output.status.success() {
            bail!("cannot unpack {path:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        output.stdout
    } else {
        fs::read(path).with_context(|| format!("cannot read {path:?}"))?
    };
    for dependency in dependencies(&bytes) {
        install_module(root, all, &dependency, seen, loaded)?;
    }
    let to = root.join(format!("lib/modules/{module}.ko"));
    fs::write(&to, bytes).with_context(|| format!("cannot write {to:?}"))?;
    loaded.push(module.to_owned());
    Ok(())
}

/// What a module's `.modinfo` section says it depends on.
fn dependencies(module: &[u8]) -> Vec<String> {
    module
        .split(|byte| *byte == 0)
        .filter_map(|text| text.strip_prefix(b"depends="))
        .flat_map(|list| list.split(|byte| *byte == b','))
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).replace('-', "_"))
        .collect()
}

fn pack(root: &Path, archive: PathBuf) -> Result<PathBuf> {
    let file = fs::File::create(&archive).with_context(|| format!("cannot create {archive:?}"))?;
    let mut list = Command::new("find")
        .arg(".")
        .current_dir(root)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start find")?;
    let names = list.stdout.take().context("find has no output")?;
    let status = Command::new("cpio")
        .args(["--create", "--format=newc", "--quiet", "--owner=+0:+0"])
        .current_dir(root)
        .stdin(names)
        .stdout(file)
        .status()
        .context("cannot start cpio")?;
    if !list.wait().context("cannot wait for find")?.success() || !status.success() {
        bail!("cannot pack {root:?} into {archive:?}");
    }
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_the_module() {
        let module = b"\x7fELF\0license=GPL\0depends=mrp,garp-x\0name=8021q\0";
        assert_eq!(dependencies(module), ["mrp", "garp_x"]);
        assert!(dependencies(b"\0depends=\0name=veth\0").is_empty());
    }
}
