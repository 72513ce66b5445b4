//! Bodies of answers: in one piece, in many, or without end.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use hyper::body::{Body, Bytes, Frame};
use tokio::{sync::mpsc, time::sleep};

use super::faults::Pace;

/// What comes of an answer, piece by piece.
#[derive(Debug)]
pub(super) struct Answer {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
}

/// The server's end of an answer.
#[derive(Debug)]
pub(super) struct Sender {
    pieces: mpsc::Sender<io::Result<Bytes>>,
}

/// The client does not want more.
#[derive(Debug)]
pub(super) struct Left;

impl Answer {
    /// An answer that is yet to be written.
    pub(super) fn new() -> (Sender, Self) {
        let (sender, pieces) = mpsc::channel(16);
        (Sender { pieces: sender }, Self { pieces })
    }
}

impl Sender {
    /// Sends bytes, at this pace.
    pub(super) async fn send(&self, bytes: Vec<u8>, pace: Option<Pace>) -> Result<(), Left> {
        let Some(pace) = pace else {
            return self.piece(bytes).await;
        };
        for piece in bytes.chunks(pace.bytes.max(1)) {
            self.piece(piece.to_vec()).await?;
            sleep(pace.pause).await;
        }
        Ok(())
    }

    async fn piece(&self, bytes: Vec<u8>) -> Result<(), Left> {
        self.pieces.send(Ok(bytes.into())).await.map_err(|_| Left)
    }

    /// Breaks the connection; the client sees that something is missing.
    pub(super) async fn cut(self) {
        // If it is still there.
        let _ = self.pieces.send(Err(io::Error::from(io::ErrorKind::ConnectionAborted))).await;
    }

    /// Returns when the client is gone.
    pub(super) async fn left(&self) {
        self.pieces.closed().await;
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let pieces = &mut self.get_mut().pieces;
        pieces.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}
