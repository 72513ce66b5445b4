//! The file through which clients find the server.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::tls::Certificates;

/// How a client says who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// By a bearer token in the kubeconfig.
    Token,
    /// By a bearer token in a file that the kubeconfig names.
    TokenFile,
    /// By a certificate.
    Certificate,
    /// Not at all.
    None,
}

/// Writes a kubeconfig and what it names into a directory; returns its path.
pub(super) fn write(
    dir: &Path,
    server: SocketAddr,
    certificates: &Certificates,
    credentials: Credentials,
    token: &str,
) -> Result<PathBuf> {
    let put = |name: &str, content: &str| {
        let path = dir.join(name);
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        Ok::<_, anyhow::Error>(path)
    };
    let authority = put("ca.crt", &certificates.authority)?;
    let user = match credentials {
        Credentials::Token => json!({"token": token}),
        Credentials::TokenFile => json!({"tokenFile": put("token", token)?}),
        Credentials::Certificate => json!({
            "client-certificate": put("client.crt", &certificates.client)?,
            "client-key": put("client.key", &certificates.client_key)?,
        }),
        Credentials::None => Value::Object(serde_json::Map::new()),
    };
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{
            "name": "test",
            "cluster": {"server": format!("https://{server}"), "certificate-authority": authority},
        }],
        "users": [{"name": "test", "user": user}],
    });
    // JSON is YAML.
    put(&format!("kubeconfig-{credentials:?}"), &format!("{config:#}\n"))
}
