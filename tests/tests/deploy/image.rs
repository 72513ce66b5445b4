//! The container image, unpacked: what it holds, and that its program runs there.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::run;

/// The archive of an image, unpacked as an OCI layout.
struct Layout(TempDir);

impl Layout {
    fn open() -> Result<Self> {
        let archive = std::env::var_os("REDIRECTOR_IMAGE")
            .context("REDIRECTOR_IMAGE is not set: run `cargo xtask test --tier deploy`")?;
        let layout = Self(tempfile::tempdir()?);
        unpack(Path::new(&archive), layout.0.path())?;
        Ok(layout)
    }

    fn json(&self, file: &str) -> Result<Value> {
        let text = fs::read_to_string(self.0.path().join(file)).context(file.to_owned())?;
        serde_json::from_str(&text).context(file.to_owned())
    }

    /// Where a blob is, whose bytes are those that the descriptor means.
    fn blob(&self, descriptor: &Value) -> Result<PathBuf> {
        let digest = descriptor["digest"].as_str().context("no digest")?;
        let path = self.0.path().join("blobs").join(digest.replace(':', "/"));
        ensure!(format!("sha256:{}", sha256(&path)?) == digest, "{digest} is another file");
        ensure!(descriptor["size"] == fs::metadata(&path)?.len(), "{descriptor}");
        Ok(path)
    }

    fn blob_json(&self, descriptor: &Value) -> Result<Value> {
        Ok(serde_json::from_str(&fs::read_to_string(self.blob(descriptor)?)?)?)
    }

    fn manifest(&self) -> Result<Value> {
        ensure!(self.json("oci-layout")?["imageLayoutVersion"] == "1.0.0");
        self.blob_json(&self.json("index.json")?["manifests"][0])
    }

    fn root(&self) -> Result<TempDir> {
        let root = tempfile::tempdir()?;
        let manifest = self.manifest()?;
        for layer in manifest["layers"].as_array().context("no layers")? {
            unpack(&self.blob(layer)?, root.path())?;
        }
        Ok(root)
    }
}

fn unpack(archive: &Path, to: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    let (unpacked, _, complaint) =
        run(tar.arg("--extract").arg("--file").arg(archive).arg("--directory").arg(to))?;
    ensure!(unpacked, "{complaint}");
    Ok(())
}

fn sha256(file: &Path) -> Result<String> {
    let (_, sum, complaint) = run(Command::new("sha256sum").arg(file))?;
    Ok(sum.split_whitespace().next().with_context(|| complaint)?.to_owned())
}

/// Runs the image's program in the image's files.
fn in_image(root: &Path, arguments: &[&str]) -> Result<(bool, String, String)> {
    let mut command = Command::new("chroot");
    command.arg(root).args(["/redirector"]).args(arguments);
    // All that is found by its path is the image's own.
    run(command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"))
}

#[test]
fn the_archive_is_what_it_says() -> Result<()> {
    let layout = Layout::open()?;
    let manifest = layout.manifest()?;
    let config = layout.blob_json(&manifest["config"])?;
    ensure!(config["config"]["Entrypoint"][0] == "/redirector" && config["os"] == "linux");
    let mut layer = Command::new("gzip");
    let layer = layer.arg("-dc").arg(layout.blob(&manifest["layers"][0])?).output()?.stdout;
    let file = layout.0.path().join("layer.tar");
    fs::write(&file, layer)?;
    let diff = &config["rootfs"]["diff_ids"][0];
    ensure!(*diff == format!("sha256:{}", sha256(&file)?), "{diff} is another layer");
    // `docker load` goes by another list of the same files.
    let docker = &layout.json("manifest.json")?[0];
    let path = |descriptor: &Value| {
        descriptor["digest"].as_str().map(|digest| format!("blobs/{}", digest.replace(':', "/")))
    };
    ensure!(docker["Config"].as_str().map(str::to_owned) == path(&manifest["config"]), "{docker}");
    ensure!(docker["Layers"][0].as_str().map(str::to_owned) == path(&manifest["layers"][0]));
    Ok(())
}

#[test]
fn it_holds_the_program_and_its_libraries_only() -> Result<()> {
    let root = Layout::open()?.root()?;
    let mut files = BTreeMap::new();
    let mut pending = vec![root.path().to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            } else {
                let path = entry.path().strip_prefix(root.path())?.to_string_lossy().into_owned();
                files.insert(path, entry.metadata()?.len());
            }
        }
    }
    let expected = |path: &str| {
        let name = path.rsplit('/').next().unwrap_or_default();
        path == "redirector"
            || path.starts_with("etc/")
            || (path.starts_with("lib") || path.starts_with("usr/lib")) && name.contains(".so")
    };
    let strange: Vec<_> = files.keys().filter(|path| !expected(path)).collect();
    ensure!(strange.is_empty() && files.contains_key("redirector"), "{strange:?} of {files:?}");
    Ok(())
}

/// The smoke check: it starts, and knows its file, with nothing around it.
#[test]
fn the_program_runs_in_it() -> Result<()> {
    let root = Layout::open()?.root()?;
    let (ran, version, complaint) = in_image(root.path(), &["--version"])?;
    ensure!(ran && version.contains(env!("CARGO_PKG_VERSION")), "{version}{complaint}");
    let right = "publish: ['80:8080']\n";
    for (text, taken) in [(right, true), ("publish: ['80:0']\n", false)] {
        fs::write(root.path().join("file.yaml"), text)?;
        let (ran, said, complaint) = in_image(root.path(), &["config", "check", "/file.yaml"])?;
        ensure!(ran == taken, "{text}: {said}{complaint}");
    }
    Ok(())
}
