//! Certificates, made for one server and gone with it.

use std::{net::IpAddr, sync::Arc};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    RootCertStore, ServerConfig, crypto::ring, pki_types::PrivateKeyDer,
    server::WebPkiClientVerifier,
};

/// An authority, a server's certificate and a client's, as PEM and as the server needs them.
#[derive(Debug)]
pub(super) struct Certificates {
    pub(super) authority: String,
    pub(super) client: String,
    pub(super) client_key: String,
    pub(super) server: Arc<ServerConfig>,
}

impl Certificates {
    /// For a server at these addresses.
    pub(super) fn new(addresses: &[IpAddr]) -> Result<Self> {
        let authority = authority().context("making an authority")?;
        let names = addresses.iter().map(ToString::to_string);
        let names: Vec<String> = names.chain(["kubernetes.default.svc".to_owned()]).collect();
        let (server, server_key) =
            issue(&authority, names, "kube-apiserver", ExtendedKeyUsagePurpose::ServerAuth)
                .context("making the server's certificate")?;
        let (client, client_key) =
            issue(&authority, Vec::new(), "redirector", ExtendedKeyUsagePurpose::ClientAuth)
                .context("making a client's certificate")?;
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate.der().clone())?;
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .allow_unauthenticated()
                .build()?;
        let key = PrivateKeyDer::Pkcs8(server_key.serialize_der().into());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![server.der().clone()], key)?;
        Ok(Self {
            authority: authority.certificate.pem(),
            client: client.pem(),
            client_key: client_key.serialize_pem(),
            server: Arc::new(config),
        })
    }
}

struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

fn authority() -> Result<Authority> {
    let mut params = params(Vec::new(), "kubernetes")?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok(Authority { certificate, issuer: Issuer::new(params, key) })
}

fn issue(
    authority: &Authority,
    names: Vec<String>,
    who: &str,
    purpose: ExtendedKeyUsagePurpose,
) -> Result<(rcgen::Certificate, KeyPair)> {
    let mut params = params(names, who)?;
    params.extended_key_usages = vec![purpose];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    Ok((params.signed_by(&key, &authority.issuer)?, key))
}

fn params(names: Vec<String>, who: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, who);
    Ok(params)
}
