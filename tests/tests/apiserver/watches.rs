//! Watches: their beginnings, their events, their ends.

use std::{pin::pin, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, ResourceExt as _,
    api::{WatchEvent, WatchParams},
    runtime::{WatchStreamExt as _, watcher},
};
use redirector_tests::apiserver::{Order, Pace};

use crate::{Fixture, fixture, node, pod};

const PATIENCE: Duration = Duration::from_secs(30);

type Event = kube::Result<WatchEvent<Pod>>;

async fn next<T>(stream: &mut (impl Stream<Item = T> + Unpin)) -> Result<T> {
    let event = tokio::time::timeout(PATIENCE, stream.next()).await.context("nothing came")?;
    event.context("the watch ended")
}

/// `+x`, `~x`, `-x`, `=` (a bookmark), `!410`: what happened to which object.
fn describe(event: Event) -> Result<String> {
    Ok(match event? {
        WatchEvent::Added(pod) => format!("+{}", pod.name_any()),
        WatchEvent::Modified(pod) => format!("~{}", pod.name_any()),
        WatchEvent::Deleted(pod) => format!("-{}", pod.name_any()),
        WatchEvent::Bookmark(mark) => {
            let end = mark.metadata.annotations.contains_key("k8s.io/initial-events-end");
            if end { "=end".into() } else { "=".into() }
        }
        WatchEvent::Error(status) => format!("!{}", status.code),
    })
}

async fn expect(stream: &mut (impl Stream<Item = Event> + Unpin), expected: &[&str]) -> Result<()> {
    for expected in expected {
        let found = describe(next(stream).await?)?;
        ensure!(found == *expected, "{found}, not {expected}");
    }
    Ok(())
}

fn pods(at: &Fixture) -> Api<Pod> {
    Api::all(at.client.clone())
}

/// Without bookmarks, which would come in between.
fn quiet() -> WatchParams {
    WatchParams { bookmarks: false, ..WatchParams::default() }
}

#[tokio::test]
async fn watches_follow_changes() -> Result<()> {
    let at = fixture().await?;
    let store = at.server.store();
    store.put(&pod("a", "x", "n1"))?;
    let from = store.revision().to_string();
    let mut stream = pin!(pods(&at).watch(&quiet(), &from).await?);
    store.put(&pod("a", "y", "n1"))?;
    store.put(&pod("a", "y", "n2"))?;
    store.put(&pod("a", "y", "n2"))?;
    store.remove::<Pod>("a", "x")?;
    expect(&mut stream, &["+y", "~y", "-x"]).await?;
    // From the beginning: first what there is.
    let mut again = pin!(pods(&at).watch(&quiet(), "0").await?);
    store.put(&pod("a", "z", "n2"))?;
    expect(&mut again, &["+y", "+z"]).await?;
    // And from in between, what has happened since.
    let mut late = pin!(pods(&at).watch(&quiet(), &from).await?);
    expect(&mut late, &["+y", "~y", "-x", "+z"]).await
}

/// An object that is no longer selected is gone for that watch, and the reverse.
#[tokio::test]
async fn selectors_turn_changes_into_arrivals_and_departures() -> Result<()> {
    let at = fixture().await?;
    let store = at.server.store();
    let on_node = quiet().fields("spec.nodeName=n1");
    let from = store.revision().to_string();
    let mut stream = pin!(pods(&at).watch(&on_node, &from).await?);
    for node in ["n2", "n1", "n1", "n2", "n1"] {
        let mut pod = pod("a", "x", node);
        pod.labels_mut().insert("revision".into(), store.revision().to_string());
        store.put(&pod)?;
    }
    store.remove::<Pod>("a", "x")?;
    expect(&mut stream, &["+x", "~x", "-x", "+x", "-x"]).await
}

#[tokio::test]
async fn streaming_lists_end_with_a_bookmark() -> Result<()> {
    let at = fixture().await?;
    let store = at.server.store();
    at.server.faults().set_bookmarks(PATIENCE * 10);
    store.put(&pod("a", "x", "n1"))?;
    store.put(&pod("a", "y", "n1"))?;
    let params = WatchParams::default().initial_events();
    let mut stream = pin!(pods(&at).watch(&params, "0").await?);
    expect(&mut stream, &["+x", "+y", "=end"]).await?;
    at.server.faults().order(Order::Bookmark, Some("pods"));
    expect(&mut stream, &["="]).await?;
    store.put(&pod("a", "z", "n1"))?;
    expect(&mut stream, &["+z"]).await?;
    at.server.faults().set_streaming_lists(false);
    let refused = pods(&at).watch(&params, "0").await.err();
    ensure!(
        matches!(&refused, Some(kube::Error::Api(status)) if status.code == 422),
        "{refused:?}"
    );
    Ok(())
}

#[tokio::test]
async fn bookmarks_come_by_themselves() -> Result<()> {
    let at = fixture().await?;
    at.server.faults().set_bookmarks(Duration::from_millis(20));
    let mut stream = pin!(pods(&at).watch(&WatchParams::default(), "0").await?);
    at.server.store().skip(100);
    let wanted = at.server.store().revision().to_string();
    loop {
        let event = next(&mut stream).await??;
        let WatchEvent::Bookmark(mark) = event else {
            bail!("{event:?}");
        };
        if mark.metadata.resource_version == wanted {
            return Ok(());
        }
    }
}

#[tokio::test]
async fn the_past_is_gone() -> Result<()> {
    let at = fixture().await?;
    let store = at.server.store();
    let from = store.revision().to_string();
    let mut open = pin!(pods(&at).watch(&quiet(), &from).await?);
    store.put(&pod("a", "x", "n1"))?;
    expect(&mut open, &["+x"]).await?;
    store.compact();
    let mut late = pin!(pods(&at).watch(&quiet(), &from).await?);
    expect(&mut late, &["!410"]).await?;
    // Who has kept up goes on, until told that even this is gone.
    store.put(&pod("a", "y", "n1"))?;
    expect(&mut open, &["+y"]).await?;
    at.server.faults().order(Order::Expire, None);
    expect(&mut open, &["!410"]).await?;
    ensure!(open.next().await.is_none());
    Ok(())
}

#[tokio::test]
async fn watches_end_in_their_ways() -> Result<()> {
    let at = fixture().await?;
    let mut orderly = pin!(pods(&at).watch(&quiet().timeout(1), "0").await?);
    ensure!(orderly.next().await.is_none(), "after its time");
    let mut ended = pin!(pods(&at).watch(&quiet(), "0").await?);
    at.server.faults().order(Order::End, None);
    ensure!(ended.next().await.is_none(), "when told");
    let mut cut = pin!(pods(&at).watch(&quiet(), "0").await?);
    at.server.faults().order(Order::Cut, None);
    // The client library makes no difference between these; but half a line is no event.
    ensure!(!matches!(cut.next().await, Some(Ok(_))), "in the middle");
    Ok(())
}

/// The watcher that the agent uses, through everything that may happen to it.
#[tokio::test]
async fn the_librarys_watcher_keeps_up() -> Result<()> {
    for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let mut at = fixture().await?;
        let nodes: Api<Node> = Api::all(at.client.clone());
        let patient = watcher::Config { page_size: Some(2), ..config };
        let backoff = std::iter::repeat(Duration::from_millis(10));
        let mut seen = pin!(watcher(nodes, patient).backoff(Backoff(backoff)).touched_objects());
        at.server.store().put(&node("first"))?;
        at.server.store().put(&node("second"))?;
        at.server.store().put(&node("third"))?;
        for disturbance in 0..6 {
            match disturbance {
                0 => {}
                1 => at.server.faults().order(Order::Cut, None),
                2 => at.server.faults().order(Order::Expire, None),
                3 => {
                    at.server.stop();
                    at.server.start(None)?;
                }
                4 => {
                    at.server.store().compact();
                    at.server.faults().order(Order::End, None);
                }
                _ => {
                    let pause = Duration::from_millis(1);
                    at.server.faults().slow(Pace { bytes: 16, pause });
                    at.server.faults().order(Order::Cut, None);
                }
            }
            let name = format!("after{disturbance}");
            at.server.store().put(&node(&name))?;
            loop {
                match next(&mut seen).await? {
                    Ok(node) if node.name_any() == name => break,
                    // Errors are what this is about; the watcher goes on.
                    Ok(_) | Err(_) => {}
                }
            }
        }
    }
    Ok(())
}

/// As patient as tests are.
struct Backoff<I>(I);

impl<I: Iterator<Item = Duration>> Iterator for Backoff<I> {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next()
    }
}

impl<I: Iterator<Item = Duration> + Send + Sync + Unpin> kube::runtime::utils::Backoff
    for Backoff<I>
{
    fn reset(&mut self) {}
}
