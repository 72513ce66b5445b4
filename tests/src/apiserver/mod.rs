//! An API server: as much of Kubernetes' as an agent on a node uses.
//!
//! It speaks HTTP over TLS, so that the agent runs against it as against a real one: lists with
//! pages, watches with bookmarks, streaming lists, selectors, patches, events, leases. Where it
//! differs from Kubernetes, Kubernetes is right. What a real server does on bad days, it does on
//! demand: see [`Faults`]. Tests write objects straight into its store; there is no scheduler, no
//! kubelet and no controller.
//!
//! A request's life: `request` (what is asked) → `access` (whether it may) → `faults` →
//! `list`, `watch` or `write` → `store` → `answer`.

mod access;
mod answer;
mod error;
mod event;
mod faults;
mod http;
mod kubeconfig;
mod list;
mod object;
mod patch;
mod request;
mod resource;
mod selector;
mod store;
mod tls;
mod watch;
mod write;

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::Arc,
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use crate::{
    namespace::{Namespace, prefix},
    wait::until_free,
};
use tls::Certificates;

pub use access::{Access, Asked};
pub use error::ApiError;
pub use faults::{Failure, Faults, Order, Pace, Requests};
pub use kubeconfig::Credentials;
pub use object::Key;
pub use resource::Resource;
pub use store::Store;

/// The bearer token that is good at first.
pub const TOKEN: &str = "an.unguessable.token";

/// A server, with the objects that it serves. Stopping it keeps them, as a real one's are kept
/// in etcd.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    files: TempDir,
    running: Option<Running>,
}

/// A thread that serves until it is told to stop. A thread, so that tests may be asynchronous
/// themselves: within one runtime no other can be ended.
#[derive(Debug)]
struct Running {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

/// What connections share.
#[derive(Debug)]
struct Shared {
    store: Arc<Store>,
    faults: Arc<Faults>,
    access: Access,
    certificates: Certificates,
}

impl ApiServer {
    /// A server that does not listen yet.
    ///
    /// # Errors
    ///
    /// If certificates or files can't be made.
    pub fn new(address: SocketAddr) -> Result<Self> {
        let shared = Shared {
            store: Arc::default(),
            faults: Arc::default(),
            access: Access::default(),
            certificates: Certificates::new(&[address.ip()])?,
        };
        shared.access.set_tokens([TOKEN.to_owned()]);
        let files = tempfile::Builder::new().prefix(&(prefix() + "api-")).tempdir()?;
        Ok(Self { shared: Arc::new(shared), address, files, running: None })
    }

    /// Listens on its address, here or on a host.
    ///
    /// # Errors
    ///
    /// If it can't, or does so already.
    pub fn start(&mut self, host: Option<&Namespace>) -> Result<()> {
        ensure!(self.running.is_none(), "the API server runs already");
        let address = self.address;
        let bind = move || {
            let listener = until_free(|| TcpListener::bind(address));
            let listener = listener.with_context(|| format!("listening on {address}"))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        // A listener, and what it accepts, stays in the namespace in which it was made.
        let listener = match host {
            Some(host) => host.enter(bind)?,
            None => bind()?,
        };
        self.address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let shared = self.shared.clone();
        let thread = thread::Builder::new().name("apiserver".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    Err(error) = serve(shared, listener) => eprintln!("API server: {error:#}"),
                    // Told to, or nobody is left who could.
                    _ = stopped => {}
                }
            });
        })?;
        self.running = Some(Running { stop, thread });
        Ok(())
    }

    /// Stops listening and breaks all connections.
    pub fn stop(&mut self) {
        if let Some(Running { stop, thread }) = self.running.take() {
            // It may have ended by itself, and has said why.
            let _ = stop.send(());
            let _ = thread.join();
        }
    }

    /// A kubeconfig for it.
    ///
    /// # Errors
    ///
    /// If it can't be written.
    pub fn kubeconfig(&self, credentials: Credentials) -> Result<PathBuf> {
        let certificates = &self.shared.certificates;
        kubeconfig::write(self.files.path(), self.address, certificates, credentials, TOKEN)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its objects.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.shared.store
    }

    /// What goes wrong.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Who may do what.
    #[must_use]
    pub fn access(&self) -> &Access {
        &self.shared.access
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn serve(shared: Arc<Shared>, listener: TcpListener) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let tls = TlsAcceptor::from(shared.certificates.server.clone());
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // The client has left already.
            continue;
        };
        stream.set_nodelay(true)?;
        let (shared, tls) = (shared.clone(), tls.clone());
        tokio::spawn(async move {
            let stream = tls.accept(stream).await?;
            let has_certificate = stream.get_ref().1.peer_certificates().is_some();
            let answer =
                service_fn(move |request| http::handle(shared.clone(), has_certificate, request));
            // Clients break connections as they like.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            Ok::<_, std::io::Error>(())
        });
    }
}

/// What tests write, past the wire and past what is checked there.
impl Store {
    /// Makes an object, or replaces all of it, including its status.
    ///
    /// # Errors
    ///
    /// If it has no name, or is of a kind that is not served.
    pub fn put<T: k8s_openapi::Resource + Serialize>(&self, object: &T) -> Result<()> {
        let resource = resource_of::<T>()?;
        let object = serde_json::to_value(object)?;
        self.inject(resource, object)
    }

    /// As [`Self::put`], with anything that has a name: an older server's object, or a broken
    /// controller's.
    ///
    /// # Errors
    ///
    /// If it has no name.
    pub fn inject(&self, resource: &Resource, mut object: Value) -> Result<()> {
        let key = Key::of(&object).context("an object without a name")?;
        let map = object::map(&mut object);
        map.remove("kind");
        map.remove("apiVersion");
        let result = self.modify(resource, &key, |old| {
            let Some(old) = old else {
                let created = object::text(&object, "/metadata/creationTimestamp").to_owned();
                let mut object = write::born(object);
                if !created.is_empty() {
                    object::metadata(&mut object)
                        .insert("creationTimestamp".into(), created.into());
                }
                return Ok(Some(object));
            };
            for field in ["uid", "creationTimestamp", "resourceVersion", "generation"] {
                let kept = old["metadata"][field].clone();
                object::metadata(&mut object).entry(field).or_insert(kept);
            }
            Ok(Some(object))
        });
        result.map(drop).map_err(|error| anyhow!("{}", error.message))
    }

    /// Takes an object away at once.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn remove<T: k8s_openapi::Resource>(&self, namespace: &str, name: &str) -> Result<()> {
        let key = Key { namespace: namespace.to_owned(), name: name.to_owned() };
        let result = self.modify(resource_of::<T>()?, &key, |_| Ok(None));
        result.map(drop).map_err(|error| anyhow!("{}", error.message))
    }

    /// All objects of a kind that are what their kind says.
    ///
    /// # Errors
    ///
    /// If the kind is not served.
    pub fn all<T: k8s_openapi::Resource + DeserializeOwned>(&self) -> Result<Vec<T>> {
        let (objects, _) =
            self.list(resource_of::<T>()?, None).map_err(|error| anyhow!("{}", error.message))?;
        let parse = |object: Arc<Value>| T::deserialize(&*object).ok();
        Ok(objects.into_values().filter_map(parse).collect())
    }

    /// One object.
    ///
    /// # Errors
    ///
    /// If it is not what its kind says.
    pub fn find<T: k8s_openapi::Resource + DeserializeOwned>(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<T>> {
        let key = Key { namespace: namespace.to_owned(), name: name.to_owned() };
        let found = self.get(resource_of::<T>()?, &key);
        found.map(|object| Ok(T::deserialize(&*object)?)).transpose()
    }
}

fn resource_of<T: k8s_openapi::Resource>() -> Result<&'static Resource> {
    Resource::of::<T>().with_context(|| format!("{} is not served", T::KIND))
}
