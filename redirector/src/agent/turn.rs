//! Waiting while somebody else makes tables larger.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, sleep};

use super::events::Event;
use super::signals::Listener;
use crate::dataplane::pins::Pins;
use crate::dataplane::resize::Turn;

/// How often it is asked whether it is our turn.
const INTERVAL: Duration = Duration::from_millis(20);

/// How long it is waited without a word.
const PATIENCE: Duration = Duration::from_secs(10);

/// What happens, in order, but signals as soon as they are seen; what happens while we wait for our
/// turn is kept.
pub(super) struct Events {
    signals: Listener,
    receiver: Receiver<Event>,
    kept: VecDeque<Event>,
}

impl Events {
    pub(super) fn new(signals: Listener, receiver: Receiver<Event>) -> Self {
        Self { signals, receiver, kept: VecDeque::new() }
    }

    /// The next one. None is lost where this is given up on the way.
    ///
    /// # Errors
    ///
    /// If signals can no longer be heard.
    pub(super) async fn next(&mut self) -> std::io::Result<Event> {
        tokio::select! {
            biased;
            signal = self.signals.next() => signal,
            event = next(&mut self.kept, &mut self.receiver) => Ok(event),
        }
    }

    /// Whether a signal that was not heard of yet says that the agent is to end.
    ///
    /// # Errors
    ///
    /// If signals can no longer be heard.
    pub(super) fn are_over(&mut self) -> std::io::Result<bool> {
        while let Some(event) = self.signals.read()? {
            if event == Event::Stop {
                return Ok(true);
            }
            self.keep(event);
        }
        Ok(false)
    }

    /// Waits until nobody makes tables larger; `None` where the agent is to stop meanwhile.
    ///
    /// # Errors
    ///
    /// If the directory of the maps cannot be locked, or signals can no longer be heard.
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
                signal = self.signals.next() => {
                    let event = signal?;
                    if event == Event::Stop {
                        return Ok(None);
                    }
                    self.keep(event);
                }
                Some(event) = self.receiver.recv() => self.keep(event),
            }
        }
    }

    fn keep(&mut self, event: Event) {
        if !self.kept.contains(&event) {
            self.kept.push_back(event);
        }
    }
}

async fn next(kept: &mut VecDeque<Event>, receiver: &mut Receiver<Event>) -> Event {
    match kept.pop_front() {
        Some(event) => event,
        // Nobody is left who could tell of anything.
        None => receiver.recv().await.unwrap_or(Event::Stop),
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal, raise};
    use tokio::sync::mpsc;

    use super::super::signals::Signals;
    use super::*;

    #[tokio::test]
    async fn what_happens_meanwhile_is_kept() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let pins = Pins::new(dir.path());
        std::fs::create_dir_all(pins.maps()).expect("a directory");
        let (sender, receiver) = mpsc::channel(16);
        let signals = Signals::hold().and_then(Signals::listen).expect("signals");
        let mut events = Events::new(signals, receiver);
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
        sender.send(Event::FileChanged).await.expect("room");
        for expected in [Event::HostChanged, Event::Tick, Event::FileChanged] {
            assert_eq!(events.next().await.expect("an event"), expected);
        }
        // To this thread, which is the only one of the runtime, and holds signals.
        raise(Signal::SIGHUP).expect("sent");
        assert_eq!(events.next().await.expect("an event"), Event::Reload);
        raise(Signal::SIGTERM).expect("sent");
        assert!(events.turn(&pins).await.expect("a lock").is_none(), "{turn:?} is held");
    }
}
