//! Kernels from Debian's archive, unpacked and not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use super::directory;
use crate::process::{self, describe};

/// An unpacked kernel.
pub(super) struct Kernel {
    /// As `uname -r` says it.
    pub(super) release: String,
    /// Its image.
    pub(super) image: PathBuf,
    /// Where its modules are.
    pub(super) modules: PathBuf,
    /// Ours to write to.
    pub(super) directory: PathBuf,
}

/// The kernel of a series that was fetched before, or the newest that the archive has.
pub(super) fn fetch(series: &str) -> Result<Kernel> {
    let directory = directory().join(series);
    if let Some(kernel) = find(&directory)? {
        return Ok(kernel);
    }
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {directory:?}"))?;
    // The archive may have moved on since the lists were fetched, if they were at all.
    let package = match download(series, &directory) {
        Err(error) if process::is_root() => {
            println!("kernels: {error:#}");
            update()?;
            download(series, &directory)?
        }
        result => result?,
    };
    let archive = files(&directory)?
        .into_iter()
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("no package in {directory:?} after the download"))?;
    process::run(Command::new("dpkg").arg("-x").arg(&archive).arg(directory.join("root")))?;
    fs::remove_file(&archive).with_context(|| format!("cannot remove {archive:?}"))?;
    find(&directory)?.with_context(|| format!("{package} has no boot/vmlinuz-…"))
}

/// Fetches the newest package of a series and returns its name.
fn download(series: &str, directory: &Path) -> Result<String> {
    let known = known(series)?;
    let Some(package) = newest(&known, series) else {
        bail!(
            "the package sources of this machine have no kernel {series} (linux-image-{series}…-cloud-amd64): \
             run apt-get update, or add Debian 12's security or backports archive"
        );
    };
    let mut download = Command::new("apt-get");
    download.args(["download", package]).current_dir(directory);
    println!("kernels: running {}", describe(&download));
    process::run(&mut download)?;
    Ok(package.to_owned())
}

fn update() -> Result<()> {
    // Both machines may want it.
    static ONE: Mutex<()> = Mutex::new(());
    let _turn = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut update = Command::new("apt-get");
    update.args(["update", "--quiet", "-o", "DPkg::Lock::Timeout=300"]);
    println!("kernels: running {}", describe(&update));
    process::run(&mut update)
}

/// Names of packages, one a line.
fn known(series: &str) -> Result<String> {
    let prefix = format!("linux-image-{series}");
    process::output(Command::new("apt-cache").args(["pkgnames", &prefix]))
        .context("kernels come from Debian's archive")
}

fn find(directory: &Path) -> Result<Option<Kernel>> {
    let boot = directory.join("root/boot");
    if !boot.is_dir() {
        return Ok(None);
    }
    let image = files(&boot)?.into_iter().find_map(|image| {
        let release = image.file_name()?.to_str()?.strip_prefix("vmlinuz-")?.to_owned();
        Some((image, release))
    });
    Ok(image.map(|(image, release)| Kernel {
        modules: directory.join("root/lib/modules").join(&release),
        directory: directory.to_owned(),
        release,
        image,
    }))
}

/// The files of a directory, sorted.
pub(super) fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let read = || -> std::io::Result<Vec<PathBuf>> {
        fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect()
    };
    let mut files = read().with_context(|| format!("cannot read {directory:?}"))?;
    files.sort();
    Ok(files)
}

/// Of the packages, the newest signed kernel of the series: `linux-image-6.1.0-56-cloud-amd64`,
/// `linux-image-6.12.117+deb12-cloud-amd64`.
fn newest<'n>(names: &'n str, series: &str) -> Option<&'n str> {
    names
        .lines()
        .filter_map(|name| {
            let version = name.strip_prefix("linux-image-")?.strip_suffix("-cloud-amd64")?;
            let rest = version.strip_prefix(series)?.strip_prefix('.')?;
            let numbers: Vec<u32> = rest
                .split(|character: char| !character.is_ascii_digit())
                .filter_map(|number| number.parse().ok())
                .collect();
            Some((numbers, name))
        })
        .max()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_signed_kernel_of_the_series_is_taken() {
        let names = "linux-image-6.1.0-9-cloud-amd64\nlinux-image-6.1.0-56-cloud-amd64\n\
                     linux-image-6.1.0-57-cloud-amd64-unsigned\nlinux-image-6.12-cloud-amd64\n\
                     linux-image-6.12.9+deb12-cloud-amd64\nlinux-image-6.12.117+deb12-cloud-amd64\n\
                     linux-image-6.1.0-58-amd64";
        assert_eq!(newest(names, "6.1"), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(newest(names, "6.12"), Some("linux-image-6.12.117+deb12-cloud-amd64"));
        assert_eq!(newest(names, "6.6"), None);
    }
}
