//! Watching the file.
//!
//! It is its directory that is watched: editors and Kubernetes do not write into a file but put
//! another in its place, where Kubernetes does so by turning a symbolic link of the directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// A new file is often written in several steps.
const SETTLE: Duration = Duration::from_millis(100);

/// Tells when something happens next to the file.
pub(super) struct FileWatch {
    _watcher: RecommendedWatcher,
    events: UnboundedReceiver<()>,
}

impl FileWatch {
    pub(super) fn new(path: &Path) -> notify::Result<Self> {
        let (sender, events) = unbounded_channel();
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                let is_reading = event.is_ok_and(|event| event.kind.is_access());
                if !is_reading {
                    // Nobody listens any more when the agent ends.
                    let _ = sender.send(());
                }
            })?;
        for dir in directories(path) {
            watcher.watch(&dir, RecursiveMode::NonRecursive)?;
        }
        Ok(Self { _watcher: watcher, events })
    }

    pub(super) async fn changed(&mut self) -> anyhow::Result<()> {
        let event = self.events.recv().await;
        event.ok_or_else(|| anyhow::anyhow!("the watch on the file ended"))?;
        tokio::time::sleep(SETTLE).await;
        while self.events.try_recv().is_ok() {}
        Ok(())
    }
}

/// The directory in which the file is named, and the one in which it is.
fn directories(path: &Path) -> Vec<PathBuf> {
    let parent = |path: &Path| match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut all = vec![parent(path)];
    if let Ok(real) = path.canonicalize() {
        all.push(parent(&real));
    }
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    async fn assert_seen(watch: &mut FileWatch) {
        let seen = tokio::time::timeout(Duration::from_secs(10), watch.changed()).await;
        assert!(seen.is_ok_and(|seen| seen.is_ok()), "the change was not seen");
    }

    #[tokio::test]
    async fn writes_and_renames_are_seen() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("file.yaml");
        fs::write(&path, "a").expect("written");
        let mut watch = FileWatch::new(&path).expect("watched");
        fs::write(&path, "b").expect("written");
        assert_seen(&mut watch).await;
        fs::write(dir.path().join("new"), "c").expect("written");
        fs::rename(dir.path().join("new"), &path).expect("renamed");
        assert_seen(&mut watch).await;
    }

    #[tokio::test]
    async fn a_turned_link_is_seen() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let at = |name: &str| dir.path().join(name);
        for (version, text) in [("v1", "a"), ("v2", "b")] {
            fs::create_dir(at(version)).expect("made");
            fs::write(at(version).join("file.yaml"), text).expect("written");
        }
        std::os::unix::fs::symlink("v1", at("..data")).expect("linked");
        std::os::unix::fs::symlink("..data/file.yaml", at("file.yaml")).expect("linked");
        let mut watch = FileWatch::new(&at("file.yaml")).expect("watched");
        std::os::unix::fs::symlink("v2", at("..data_tmp")).expect("linked");
        fs::rename(at("..data_tmp"), at("..data")).expect("renamed");
        assert_seen(&mut watch).await;
        assert_eq!(fs::read_to_string(at("file.yaml")).expect("read"), "b");
    }
}
