//! What stands in `SERVICE_INFO`: a service as people know it.
//!
//! The data path never reads it. The agent reads it at start, to give services the ids they
//! had; the commands read it to name what the other maps know only by number.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use redirector_common::service::SERVICE_INFO_LEN;
use redirector_common::{
    Address, Family, FrontendKey, Port, Protocol, ServiceId, ServiceInfo, SourceRange,
};
use serde::{Deserialize, Serialize};

use super::table::{HashTable, Table, TableError};
use crate::model::{Algorithm, Forwarding, ServiceKey, TrafficPolicy};

/// One service of one address family. Keys are short where they can be: the text has room for
/// [`SERVICE_INFO_LEN`] bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Identity.
    #[serde(flatten)]
    pub key: ServiceKey,
    /// Which of the service's two tables this is.
    #[serde(with = "family")]
    pub family: Family,
    /// Which backends this node may choose.
    #[serde(default)]
    pub policy: TrafficPolicy,
    /// How packets reach a backend elsewhere.
    #[serde(default)]
    pub forwarding: Forwarding,
    /// Session affinity by client address, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<u32>,
    /// With whom that is shared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// How a backend is chosen for a new flow.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// Frontends that the service wants and another service has.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "frontends")]
    pub conflicts: Vec<FrontendKey>,
    /// Further conflicts, for which there was no room.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted: usize,
}

/// An entry of the map as the agent keeps it: without the room that the map has for longer ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoText(Box<[u8]>);

impl From<&ServiceInfo> for InfoText {
    fn from(value: &ServiceInfo) -> Self {
        Self(value.json().into())
    }
}

impl From<&InfoText> for ServiceInfo {
    fn from(text: &InfoText) -> Self {
        // Every text is from a value or was seen to fit into one.
        Self::new(&text.0).unwrap_or(Self::EMPTY)
    }
}

/// The `SERVICE_INFO` map.
pub struct InfoTable(HashTable<ServiceId, ServiceInfo>);

impl InfoTable {
    /// The map, opened.
    #[must_use]
    pub const fn new(map: HashTable<ServiceId, ServiceInfo>) -> Self {
        Self(map)
    }
}

impl Table<ServiceId, InfoText> for InfoTable {
    fn entries(&self) -> Result<BTreeMap<ServiceId, InfoText>, TableError> {
        let mut all = BTreeMap::new();
        let text = |(id, value): (ServiceId, ServiceInfo)| (id, InfoText::from(&value));
        self.0.read(|entries| all.extend(entries.map(text)))?;
        Ok(all)
    }

    fn set(&mut self, id: &ServiceId, text: &InfoText) -> Result<(), TableError> {
        self.0.set(id, &text.into())
    }

    fn set_all(&mut self, entries: &[(ServiceId, InfoText)]) -> Result<usize, TableError> {
        let entries: Vec<(ServiceId, ServiceInfo)> =
            entries.iter().map(|(id, text)| (*id, text.into())).collect();
        self.0.set_all(&entries)
    }

    fn remove(&mut self, id: &ServiceId) -> Result<(), TableError> {
        self.0.remove(id)
    }
}

/// The service's name alone is longer than the map has room for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "service {name}: its name, namespace and policy take {found} bytes of the {SERVICE_INFO_LEN} \
     that there is room for: choose a shorter name"
)]
pub struct TooLong {
    name: String,
    found: usize,
}

impl Info {
    /// The map's text; conflicts are left out from the end where there is no room for all.
    ///
    /// # Errors
    ///
    /// If it does not fit even without conflicts.
    pub fn encode(mut self) -> Result<InfoText, TooLong> {
        loop {
            // Serialising strings and numbers to memory does not fail.
            let json = serde_json::to_vec(&self).unwrap_or_default();
            if json.len() <= SERVICE_INFO_LEN {
                return Ok(InfoText(json.into()));
            }
            if self.conflicts.pop().is_none() {
                return Err(TooLong { name: self.key.name, found: json.len() });
            }
            self.omitted += 1;
        }
    }

    /// From the map's text.
    ///
    /// # Errors
    ///
    /// If the map holds something else.
    pub fn decode(text: &InfoText) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(&text.0)
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde's skip_serializing_if passes a reference"
)]
const fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// `192.0.2.1:80/tcp`, `[2001:db8::1]:53/udp`; of clients on the node itself `localhost4:80/tcp`,
/// `localhost6:80/tcp`.
#[must_use]
pub fn format_frontend(key: &FrontendKey) -> String {
    let protocol = match key.protocol() {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    if key.is_localhost() {
        let family = match key.address.family() {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        return format!("localhost{family}:{}/{protocol}", key.port);
    }
    let address = SocketAddr::new(IpAddr::from(key.address), key.port.number());
    format!("{address}/{protocol}")
}

/// `198.51.100.0/24`, `2001:db8::/32`.
#[must_use]
pub fn format_range(range: &SourceRange) -> String {
    format!("{}/{}", range.bits.address, range.prefix())
}

/// The reverse of [`format_frontend`].
#[must_use]
pub fn parse_frontend(text: &str) -> Option<FrontendKey> {
    let (address, protocol) = text.rsplit_once('/')?;
    let address: SocketAddr = address.parse().ok()?;
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    Some(FrontendKey::new(Address::from(address.ip()), Port::new(address.port()), protocol))
}

/// Families by the words people use.
mod family {
    use redirector_common::Family;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(family: &Family, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(match family {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        })
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Family, D::Error> {
        match String::deserialize(from)?.as_str() {
            "ipv4" => Ok(Family::V4),
            "ipv6" => Ok(Family::V6),
            other => Err(D::Error::unknown_variant(other, &["ipv4", "ipv6"])),
        }
    }
}

/// Frontends as text.
mod frontends {
    use redirector_common::FrontendKey;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(keys: &[FrontendKey], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(keys.iter().map(super::format_frontend))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<FrontendKey>, D::Error> {
        Vec::<String>::deserialize(from)?
            .iter()
            .map(|text| {
                super::parse_frontend(text)
                    .ok_or_else(|| D::Error::custom(format!("not a frontend: {text}")))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Source;

    fn info(name: &str, conflicts: usize) -> Info {
        Info {
            key: ServiceKey { source: Source::Static, namespace: None, name: name.to_owned() },
            family: Family::V6,
            policy: TrafficPolicy::Local,
            forwarding: Forwarding::Snat,
            affinity: Some(10800),
            group: Some("namespace/web:http".to_owned()),
            algorithm: Algorithm::Random,
            conflicts: (0..conflicts)
                .filter_map(|i| parse_frontend(&format!("[2001:db8::1]:{}/udp", i + 1)))
                .collect(),
            omitted: 0,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let info = info("web", 3);
        assert_eq!(info.conflicts.len(), 3);
        let text = info.clone().encode().expect("fits");
        assert_eq!(Info::decode(&text).expect("decodes"), info);
        assert_eq!(InfoText::from(&ServiceInfo::from(&text)), text);
    }

    #[test]
    fn conflicts_that_do_not_fit_are_counted() {
        let read = Info::decode(&info("web", 100).encode().expect("fits")).expect("decodes");
        assert!(!read.conflicts.is_empty());
        assert_eq!(read.conflicts.len() + read.omitted, 100);
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused() {
        let error = info(&"x".repeat(600), 2).encode().expect_err("too long");
        assert!(error.to_string().contains("choose a shorter name"), "{error}");
    }
}
