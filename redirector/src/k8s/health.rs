//! Health checks: those of load balancers, on a port for each Service, and those of the node.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::object::ObjectName;

/// Header that says how many endpoints there are.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// What a load balancer is told of one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Which.
    pub service: ObjectName,
    /// Ready endpoints on this node.
    pub local: usize,
}

/// Whether this node should get traffic at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether the agent does its work.
    pub is_healthy: bool,
    /// Why no more traffic should be sent to the node.
    pub leaving: Option<&'static str>,
    /// When this was found.
    pub at: Timestamp,
}

impl Default for Health {
    fn default() -> Self {
        Self { is_healthy: false, leaving: None, at: Timestamp::UNIX_EPOCH }
    }
}

#[derive(Debug, Default)]
struct Answers {
    checks: BTreeMap<u16, Check>,
    health: Health,
}

/// What all servers answer. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    state: Arc<Mutex<Answers>>,
}

impl Answer {
    /// Says how the node is.
    pub fn set_health(&self, health: Health) {
        self.lock().health = health;
    }

    fn lock(&self) -> MutexGuard<'_, Answers> {
        // A panic while it was held left at worst an old answer.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The servers of load balancers' checks.
#[derive(Debug, Default)]
pub struct CheckServers {
    answer: Answer,
    servers: BTreeMap<u16, Server>,
}

/// One that ends with its handle.
#[derive(Debug)]
struct Server(JoinHandle<()>);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl CheckServers {
    /// None yet; they will answer from here.
    #[must_use]
    pub fn new(answer: Answer) -> Self {
        Self { answer, servers: BTreeMap::new() }
    }

    /// Serves these checks, and no others. Returns the ports that cannot be had, and why.
    pub async fn serve(&mut self, checks: BTreeMap<u16, Check>) -> BTreeMap<u16, String> {
        let over =
            |port: &u16, server: &mut Server| !checks.contains_key(port) || server.0.is_finished();
        for (_, mut server) in self.servers.extract_if(.., over) {
            server.0.abort();
            // Only then its port is free, which may be wanted again at once.
            let _ = (&mut server.0).await;
        }
        let ports: Vec<u16> = checks.keys().copied().collect();
        self.answer.lock().checks = checks;
        let mut refused = BTreeMap::new();
        for port in ports {
            if self.servers.contains_key(&port) {
                continue;
            }
            match listen(port).await {
                Ok(listener) => {
                    let router = checks_router(self.answer.clone(), port);
                    let server = tokio::spawn(async move {
                        if let Err(error) = axum::serve(listener, router).await {
                            tracing::warn!(%error, port, "a health check server ended");
                        }
                    });
                    self.servers.insert(port, Server(server));
                }
                Err(error) => {
                    refused.insert(port, error.to_string());
                }
            }
        }
        refused
    }
}

/// Listens on every address of both families, or of IPv4 where there is no other.
async fn listen(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) =>
        {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        listener => listener,
    }
}

fn checks_router(answer: Answer, port: u16) -> Router {
    Router::new().fallback(get(check)).with_state((answer, port))
}

async fn check(State((answer, port)): State<(Answer, u16)>) -> Response {
    let answers = answer.lock();
    let Some(Check { service, local }) = answers.checks.get(&port) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let is_healthy = answers.health.is_healthy;
    let status =
        if *local > 0 && is_healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "service": {"namespace": service.namespace, "name": service.name},
        "localEndpoints": local,
        "serviceProxyHealthy": is_healthy,
    });
    (status, json_headers(), [(WEIGHT, local.to_string())], body.to_string()).into_response()
}

const fn json_headers() -> [(HeaderName, &'static str); 2] {
    [(header::CONTENT_TYPE, "application/json"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")]
}

/// The server of the node's own health, as the node's usual proxy has it.
#[derive(Debug)]
pub struct NodeServer {
    listener: TcpListener,
}

impl NodeServer {
    /// Listens.
    ///
    /// # Errors
    ///
    /// If the address cannot be had.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await? })
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
    pub async fn serve(self, answer: Answer) -> io::Result<()> {
        let router = Router::new()
            .route("/healthz", get(async |State(answer): State<Answer>| node(&answer, true)))
            .route("/livez", get(async |State(answer): State<Answer>| node(&answer, false)))
            .with_state(answer);
        axum::serve(self.listener, router).await
    }
}

/// Whether the agent lives, or whether the node should get traffic.
fn node(answer: &Answer, asks_for_traffic: bool) -> Response {
    let Health { is_healthy, leaving, at } = answer.lock().health.clone();
    let is_eligible = leaving.is_none();
    let is_good = is_healthy && (is_eligible || !asks_for_traffic);
    let status = if is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "lastUpdated": at.to_string(),
        "currentTime": Timestamp::now().to_string(),
        "nodeEligible": is_eligible,
    });
    (status, json_headers(), body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn ask(port: u16, path: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("writes");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("reads");
        answer
    }

    async fn free_port() -> u16 {
        let listener = TcpListener::bind("[::]:0").await.expect("listens");
        listener.local_addr().expect("an address").port()
    }

    fn checks(port: u16, local: usize) -> BTreeMap<u16, Check> {
        BTreeMap::from([(port, Check { service: ObjectName::new("ns", "svc"), local })])
    }

    fn healthy(leaving: Option<&'static str>) -> Health {
        Health { is_healthy: true, leaving, at: Timestamp::UNIX_EPOCH }
    }

    #[tokio::test]
    async fn load_balancers_are_told_of_local_endpoints() {
        let answer = Answer::default();
        answer.set_health(healthy(None));
        let mut servers = CheckServers::new(answer.clone());
        let mut port = free_port().await;
        // Somebody else may have been faster.
        while !servers.serve(checks(port, 2)).await.is_empty() {
            port = free_port().await;
        }
        let said = ask(port, "/any/path").await;
        assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
        assert!(said.contains("content-type: application/json\r\n"), "{said}");
        assert!(said.contains("x-content-type-options: nosniff\r\n"), "{said}");
        assert!(said.contains("x-load-balancing-endpoint-weight: 2\r\n"), "{said}");
        let body = said.split("\r\n\r\n").nth(1).expect("a body");
        let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
        let wanted = json!({
            "service": {"namespace": "ns", "name": "svc"},
            "localEndpoints": 2,
            "serviceProxyHealthy": true,
        });
        assert_eq!(body, wanted);

        servers.serve(checks(port, 0)).await;
        assert!(ask(port, "/").await.starts_with("HTTP/1.1 503 "));
        servers.serve(checks(port, 1)).await;
        answer.set_health(Health::default());
        assert!(ask(port, "/").await.starts_with("HTTP/1.1 503 "));
        servers.serve(BTreeMap::new()).await;
        tokio::task::yield_now().await;
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err());
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_tried_again() {
        let taken = TcpListener::bind("[::]:0").await.expect("listens");
        let port = taken.local_addr().expect("an address").port();
        let mut servers = CheckServers::default();
        assert!(servers.serve(checks(port, 1)).await.contains_key(&port));
        drop(taken);
        assert!(servers.serve(checks(port, 1)).await.is_empty());
    }

    #[tokio::test]
    async fn a_node_that_leaves_lives_but_wants_no_traffic() {
        let answer = Answer::default();
        let server = NodeServer::bind(([127, 0, 0, 1], 0).into()).await.expect("listens");
        let port = server.address().expect("an address").port();
        let server = tokio::spawn(server.serve(answer.clone()));
        for (health, healthz, livez) in [
            (Health::default(), 503, 503),
            (healthy(None), 200, 200),
            (healthy(Some("x")), 503, 200),
        ] {
            answer.set_health(health);
            for (path, code) in [("/healthz", healthz), ("/livez", livez)] {
                let said = ask(port, path).await;
                assert!(said.starts_with(&format!("HTTP/1.1 {code} ")), "{path}: {said}");
            }
        }
        server.abort();
    }
}
