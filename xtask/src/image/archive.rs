//! The archive of an image: an OCI image layout (image-spec 1.0), and beside its index the
//! `manifest.json` by which `docker load` finds the same files. The same files give the same bytes.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::filesystem::make_empty;
use crate::process;

/// Packs the files of `root` as an image; `layout` is a directory to work in.
pub(super) fn write(root: &Path, name: &str, layout: &Path, output: &Path) -> Result<()> {
    let Some((_, tag)) = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) else {
        bail!("{name} is no name of an image with a tag, such as redirector:v1");
    };
    make_empty(&layout.join("blobs/sha256"))?;
    let unpacked = layout.join("layer.tar");
    pack(root, &unpacked, &["."])?;
    let diff = digest(&unpacked)?;
    // `-n`: neither name nor time of the file.
    let packed = layout.join("layer.tar.gz");
    let gzip = File::create(&packed).with_context(|| format!("cannot create {packed:?}"))?;
    process::run(Command::new("gzip").args(["-n", "-c"]).arg(&unpacked).stdout(gzip))?;
    fs::remove_file(&unpacked)?;
    let layer = add(layout, &packed, "application/vnd.oci.image.layer.v1.tar+gzip")?;

    let config = layout.join("config.json");
    fs::write(&config, configuration(&diff).to_string())?;
    let config = add(layout, &config, "application/vnd.oci.image.config.v1+json")?;

    let manifest = layout.join("manifest");
    let text = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [layer],
    });
    fs::write(&manifest, text.to_string())?;
    let mut manifest = add(layout, &manifest, "application/vnd.oci.image.manifest.v1+json")?;
    manifest["annotations"] = json!({
        "org.opencontainers.image.ref.name": tag,
        "io.containerd.image.name": name,
    });

    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    });
    fs::write(layout.join("index.json"), index.to_string())?;
    fs::write(layout.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
    let docker =
        json!([{ "Config": path(&config)?, "RepoTags": [name], "Layers": [path(&layer)?] }]);
    fs::write(layout.join("manifest.json"), docker.to_string())?;
    pack(layout, output, &["oci-layout", "index.json", "manifest.json", "blobs"])
}

/// How the program is started.
fn configuration(diff: &str) -> Value {
    json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {
            "Entrypoint": ["/redirector"],
            "Cmd": ["--help"],
            "Env": ["PATH=/"],
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": "redirector",
                "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
            },
        },
        "rootfs": { "type": "layers", "diff_ids": [diff] },
    })
}

/// Moves a file among the blobs, and describes it.
fn add(layout: &Path, file: &Path, kind: &str) -> Result<Value> {
    let digest = digest(file)?;
    let size = fs::metadata(file)?.len();
    let descriptor = json!({ "mediaType": kind, "digest": digest, "size": size });
    let to = layout.join(path(&descriptor)?);
    fs::rename(file, &to).with_context(|| format!("cannot move {file:?} to {to:?}"))?;
    Ok(descriptor)
}

/// Where a blob stands in the layout.
fn path(descriptor: &Value) -> Result<String> {
    let digest = descriptor["digest"].as_str().context("a blob without a digest")?;
    Ok(format!("blobs/{}", digest.replace(':', "/")))
}

fn digest(file: &Path) -> Result<String> {
    let output = process::output(Command::new("sha256sum").arg(file))?;
    let sum = output.split_whitespace().next().context("sha256sum printed nothing")?;
    Ok(format!("sha256:{sum}"))
}

fn pack(directory: &Path, archive: &Path, what: &[&str]) -> Result<()> {
    process::run(
        Command::new("tar")
            .args(["--create", "--format=ustar", "--sort=name", "--mtime=@0"])
            .args(["--owner=0", "--group=0", "--numeric-owner", "--mode=u+rw,go+rX,go-w"])
            .arg("--file")
            .arg(archive)
            .arg("--directory")
            .arg(directory)
            .args(what),
    )
}
