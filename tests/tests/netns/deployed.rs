//! The agent as deploy/ runs it: in a container's file system, with what is mounted there, and
//! with these capabilities only.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use redirector_tests::{
    agent::{ADMIN, Lab, get},
    cli::program,
    deployed,
    namespace::run,
    site::{CONFIG, check_answers, serve_names},
};
use tempfile::TempDir;

/// Mounts what a container runtime mounts, and the manifest's volumes; then becomes the agent.
const CONTAINER: &str = r#"
set -e
root=$1 bpffs=$2 config=$3
shift 3
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount --bind "$bpffs" "$root/host/sys/fs/bpf"
mount --bind /proc/sys/net "$root/host/proc/sys/net"
mount --bind "$config" "$root/etc/redirector"
mount -o remount,bind,ro "$root"
exec chroot "$root" /setpriv "$@"
"#;

/// Metrics that only an agent in a cluster has.
const OF_CLUSTERS: [&str; 1] = ["redirector_network_programming_duration_seconds"];

/// The files of a container: two programs and their libraries.
fn container() -> Result<TempDir> {
    let root = tempfile::tempdir()?;
    for directory in ["proc", "sys", "etc/redirector", "host/sys/fs/bpf", "host/proc/sys/net"] {
        fs::create_dir_all(root.path().join(directory))?;
    }
    install(root.path(), &program()?, "redirector")?;
    install(root.path(), Path::new("/usr/bin/setpriv"), "setpriv")?;
    Ok(root)
}

fn install(root: &Path, program: &Path, name: &str) -> Result<()> {
    fs::copy(program, root.join(name)).with_context(|| format!("copying {program:?}"))?;
    let libraries = run("ldd", [program])?;
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let to: PathBuf = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().context("no directory")?)?;
        fs::copy(library, to)?;
    }
    Ok(())
}

fn start(lab: &mut Lab, root: &Path) -> Result<()> {
    let config = lab.config_path();
    let mut command: Command = lab.net.node1.command("unshare");
    command.args(["--mount", "sh", "-c", CONTAINER, "sh"]).arg(root).arg(lab.bpffs.root());
    command.arg(config.parent().context("no directory")?);
    command.args(deployed::confinement()?).args(["--", "/redirector", "run"]);
    command.args(["--config=/etc/redirector/redirector.yaml"]);
    command.args(["--interface", "eth0", "--interface", "eth1"]);
    command.envs(deployed::environment()?);
    // Control groups are the whole machine's; other tests give agents one of their own.
    command.env("REDIRECTOR_NO_LOCAL_CLIENTS", "true");
    lab.start_command(command)?;
    lab.wait_ready()
}

#[test]
fn in_a_container() -> Result<()> {
    const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";
    let root = container()?;
    Lab::run(|lab| {
        lab.write_config(CONFIG)?;
        let before = lab.net.node1.sysctl(RESERVED)?;
        start(lab, root.path())?;
        ensure!(lab.net.node1.sysctl(RESERVED)? != before, "no ports are reserved");
        {
            let _servers = serve_names(lab)?;
            check_answers(lab)?;
        }
        // An update: the next agent takes over what is pinned.
        lab.kill()?;
        start(lab, root.path())?;
        let _servers = serve_names(lab)?;
        check_answers(lab)?;
        lab.stop()?;
        lab.cli().text(&["detach"])?;
        ensure!(lab.net.node1.sysctl(RESERVED)? == before, "ports stay reserved");
        Ok(())
    })
}

#[test]
fn the_dashboard_asks_for_metrics_that_there_are() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let (_, text) = get(&lab.net.node1, ADMIN, "/metrics")?;
        let known: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
            .collect();
        for name in deployed::dashboard_metrics()? {
            let family = ["_total", "_bucket", "_info"]
                .into_iter()
                .fold(name.as_str(), |name, suffix| name.strip_suffix(suffix).unwrap_or(name));
            ensure!(
                known.contains(&family) || OF_CLUSTERS.contains(&family),
                "no metric {name}: there are {known:?}"
            );
        }
        Ok(())
    })
}
