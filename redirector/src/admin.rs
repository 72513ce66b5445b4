//! The admin server: `/livez`, `/readyz` and `/metrics`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::agent::{Shared, Snapshot};
use crate::dataplane::pins::Pins;
use crate::metrics::{CONTENT_TYPE, Metrics};

/// Where the admin server listens unless `--admin-address` says otherwise.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:9961";

/// The admin server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {}: choose another with --admin-address", reason(.cause))]
pub struct ListenError {
    address: SocketAddr,
    // Not `source`: the message says it already.
    cause: io::Error,
}

/// The admin server, listening.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
}

impl Admin {
    /// Listens. To be called before anything is attached, so that an address in use changes
    /// nothing.
    ///
    /// # Errors
    ///
    /// If the address is in use, or not this host's.
    pub async fn bind(address: SocketAddr) -> Result<Self, ListenError> {
        match TcpListener::bind(address).await {
            Ok(listener) => Ok(Self { listener }),
            Err(cause) => Err(ListenError { address, cause }),
        }
    }

    /// Where it listens.
    ///
    /// # Errors
    ///
    /// If the system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until the future is dropped.
    ///
    /// # Errors
    ///
    /// If connections can no longer be accepted.
    pub async fn serve(self, pins: Pins, shared: Shared) -> io::Result<()> {
        axum::serve(self.listener, router(pins, shared)).await
    }
}

fn router(pins: Pins, shared: Shared) -> Router {
    let metrics = Arc::new(Metrics::new(pins, shared.clone()));
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(shared)
        .merge(Router::new().route("/metrics", get(scrape)).with_state(metrics))
}

async fn ready(State(shared): State<Shared>) -> (StatusCode, String) {
    readiness(&shared.snapshot())
}

async fn scrape(State(metrics): State<Arc<Metrics>>) -> Response {
    // Reading maps blocks, and must not hold up whoever asks whether we are alive.
    match tokio::task::spawn_blocking(move || metrics.scrape()).await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Ok(Err(error)) => failed(&error),
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn std::error::Error) -> Response {
    tracing::warn!(%error, "metrics cannot be read");
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
}

fn readiness(account: &Snapshot) -> (StatusCode, String) {
    if account.ready {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let status = &account.status;
    let mut reasons: Vec<String> = status
        .interfaces
        .iter()
        .filter_map(|interface| {
            let error = interface.error.as_ref()?;
            Some(format!("interface {}: {error}", interface.name))
        })
        .collect();
    if status.last_sync.is_none() {
        reasons.push("the maps have not yet been brought in line".to_owned());
    }
    if !account.waiting_for.is_empty() {
        let kinds = account.waiting_for.join(", ");
        reasons.push(format!("waiting for the API server's first lists of {kinds}"));
    }
    reasons.extend(status.last_error.iter().cloned());
    reasons.extend(status.config_error.iter().cloned());
    if reasons.is_empty() {
        reasons.push("programs are being attached".to_owned());
    }
    let text = reasons.iter().map(|reason| format!("{reason}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

fn reason(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::AddrInUse {
        "address in use: another process listens there".to_owned()
    } else {
        error.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::status::Status;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    fn shared() -> Shared {
        Shared::new(Status {
            pid: 7,
            version: "0.1.0".to_owned(),
            started_at: 1,
            node_name: "node".to_owned(),
            snat_ports: (49152, 57343),
            ..Status::default()
        })
    }

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("writes");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("reads");
        answer
    }

    #[tokio::test]
    async fn readiness_follows_the_agent() {
        let admin = Admin::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("listens");
        let address = admin.address().expect("an address");
        let shared = shared();
        let server = tokio::spawn(admin.serve(Pins::new("/nowhere"), shared.clone()));

        let answer = ask(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("not yet been brought in line"), "{answer}");
        assert!(ask(address, "/livez").await.starts_with("HTTP/1.1 200 "));

        shared.update(|account| account.ready = true);
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 200 "));

        let answer = ask(address, "/metrics").await;
        assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
        assert!(answer.contains("nothing is installed under /nowhere"), "{answer}");
        server.abort();
    }

    #[tokio::test]
    async fn an_address_in_use_says_what_to_do() {
        let first = Admin::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("listens");
        let address = first.address().expect("an address");
        let error = Admin::bind(address).await.expect_err("in use");
        assert_eq!(
            error.to_string(),
            format!(
                "cannot listen on {address}: address in use: another process listens there: \
                 choose another with --admin-address"
            )
        );
    }
}
