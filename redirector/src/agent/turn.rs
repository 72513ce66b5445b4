//! Waiting while somebody else makes tables larger.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, sleep};

use super::events::Event;
use crate::dataplane::pins::Pins;
use crate::dataplane::resize::Turn;

/// How often it is asked whether it is our turn.
const INTERVAL: Duration = Duration::from_millis(20);

/// How long it is waited without a word.
const PATIENCE: Duration = Duration::from_secs(10);

/// What happens, in order; what happens while we wait for our turn is kept.
pub(super) struct Events {
    receiver: Receiver<Event>,
    kept: VecDeque<Event>,
}

impl Events {
    pub(super) fn new(receiver: Receiver<Event>) -> Self {
        Self { receiver, kept: VecDeque::new() }
    }

    /// The next one; `None` where there will be none.
    pub(super) async fn next(&mut self) -> Option<Event> {
        match self.kept.pop_front() {
            Some(event) => Some(event),
            None => self.receiver.recv().await,
        }
    }

    /// Waits until nobody makes tables larger; `None` where the agent is to stop meanwhile.
    ///
    /// # Errors
    ///
    /// If the directory of the maps cannot be locked.
    pub(super) async fn turn(&mut self, pins: &Pins) -> std::io::Result<Option<Turn>> {
        let mut patient_until = Some(Instant::now() + PATIENCE);
        loop {
            if let Some(turn) = Turn::try_take(pins)? {
                return Ok(Some(turn));
            }
            if patient_until.is_some_and(|until| until < Instant::now()) {
                patient_until = None;
                let holder = Turn::holder(pins)
                    .map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
                tracing::warn!(
                    "{holder} is making tables larger on {} for {} s already: nothing is changed \
                     until it has ended",
                    pins.dir().display(),
                    PATIENCE.as_secs()
                );
            }
            tokio::select! {
                () = sleep(INTERVAL) => {}
                event = self.receiver.recv() => match event {
                    None | Some(Event::Stop) => return Ok(None),
                    Some(event) if self.kept.contains(&event) => {}
                    Some(event) => self.kept.push_back(event),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn what_happens_meanwhile_is_kept() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let pins = Pins::new(dir.path());
        std::fs::create_dir_all(pins.maps()).expect("a directory");
        let (sender, receiver) = mpsc::channel(16);
        let mut events = Events::new(receiver);
        let other = Turn::take(&pins).expect("free");
        for event in [Event::HostChanged, Event::Tick, Event::HostChanged] {
            sender.send(event).await.expect("room");
        }
        let ending = tokio::spawn(async move {
            sleep(INTERVAL * 3).await;
            drop(other);
            sender
        });
        let turn = events.turn(&pins).await.expect("a lock").expect("nobody stops us");
        let sender = ending.await.expect("no panic");
        sender.send(Event::Reload).await.expect("room");
        for expected in [Event::HostChanged, Event::Tick, Event::Reload] {
            assert_eq!(events.next().await, Some(expected));
        }
        sender.send(Event::Stop).await.expect("room");
        assert!(events.turn(&pins).await.expect("a lock").is_none(), "{turn:?} is held");
    }
}
