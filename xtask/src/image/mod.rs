//! `cargo xtask image`: a container image with the program and nothing else.

mod archive;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::cargo::target_dir;
use crate::filesystem::{install, make_empty};
use crate::{build, setup};

/// Where programs stand in the image; deploy/kubectl-redirector knows it, too.
const PROGRAM: &str = "redirector";

/// Looked up by the C library: names of hosts, and of root.
const FILES: [(&str, &str); 3] = [
    ("etc/passwd", "root:x:0:0:root:/:/redirector\n"),
    ("etc/group", "root:x:0:\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
];

/// Makes a container image from scratch: the release binary, its shared libraries, no shell.
///
/// The archive is both an OCI layout and what `docker load` takes:
/// `podman load --input FILE`, `ctr images import FILE`, `buildah pull oci-archive:FILE`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The program [default: a release build]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// The image's name, with its tag
    #[arg(long, value_name = "NAME:TAG", default_value = concat!("redirector:", env!("CARGO_PKG_VERSION")))]
    name: String,
    /// The archive [default: target/image/redirector.tar]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let binary = match &arguments.binary {
        Some(binary) => binary.clone(),
        None => {
            setup::complete()?;
            build::release()?
        }
    };
    let archive = make(&binary, &arguments.name, arguments.output.clone())?;
    println!("{}", archive.display());
    Ok(())
}

/// The image that tests look at.
pub(crate) fn of(binary: &Path) -> Result<PathBuf> {
    make(binary, concat!("redirector:", env!("CARGO_PKG_VERSION")), None)
}

fn make(binary: &Path, name: &str, output: Option<PathBuf>) -> Result<PathBuf> {
    let directory = target_dir().join("image");
    let output = output.unwrap_or_else(|| directory.join("redirector.tar"));
    let root = directory.join("root");
    make_empty(&root)?;
    fill(&root, binary)?;
    archive::write(&root, name, &directory.join("layout"), &output)?;
    Ok(output)
}

/// The image's files; deploy/Dockerfile takes them from there.
fn fill(root: &Path, binary: &Path) -> Result<()> {
    install(root, binary, PROGRAM)?;
    fs::set_permissions(root.join(PROGRAM), fs::Permissions::from_mode(0o755))?;
    for (path, text) in FILES {
        let path = root.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, text).with_context(|| format!("cannot write {path:?}"))?;
    }
    Ok(())
}
