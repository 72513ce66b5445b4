//! What the agent says of itself in the `STATUS` map, for commands that run without it.

use std::path::PathBuf;

use redirector_common::node::TEXT_LEN;
use serde::{Deserialize, Serialize};

/// The agent's own account. Times are milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Process id.
    pub pid: u32,
    /// Version of the program.
    pub version: String,
    /// When the agent started.
    pub started_at: u64,
    /// Whether it ended in an orderly way; one that was killed says nothing.
    #[serde(default)]
    pub stopped: bool,
    /// The file, where there is one.
    pub config: Option<PathBuf>,
    /// Whether the Kubernetes API is asked.
    #[serde(default)]
    pub kubernetes: bool,
    /// Name of the node.
    pub node_name: String,
    /// Interfaces that programs are attached to, or should be.
    pub interfaces: Vec<InterfaceStatus>,
    /// Programs for clients on this machine; `None`: not asked for.
    #[serde(default)]
    pub clients: Option<ClientsStatus>,
    /// Whether the maps hold what they should.
    pub in_sync: bool,
    /// Since when they do not.
    pub out_of_sync_since: Option<u64>,
    /// When they were last brought in line.
    pub last_sync: Option<u64>,
    /// Why they are not in line, or what else went wrong last.
    pub last_error: Option<String>,
    /// What is wrong with the file; the state before it is kept.
    pub config_error: Option<String>,
    /// Since when.
    pub config_error_since: Option<u64>,
    /// First and last port of the translation block.
    pub snat_ports: (u16, u16),
    /// Frontends that more than one service claims.
    #[serde(default)]
    pub conflicts: usize,
    /// The other nodes of the cluster; `None`: nobody is asked.
    #[serde(default)]
    pub peers: Option<PeersStatus>,
}

/// What is known of the other nodes of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeersStatus {
    /// How many there are.
    pub known: usize,
    /// How many of them take flows that are handed over.
    pub taking: usize,
    /// Why they, or this node, are not known to do so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What is attached for clients on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientsStatus {
    /// The control group whose sockets they are; `None` where there is none.
    pub cgroup: Option<PathBuf>,
    /// Why they are not attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What is attached to an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Its index; 0 while it does not exist.
    pub ifindex: u32,
    /// How XDP runs there.
    pub xdp: XdpState,
    /// Why not in a better way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xdp_reason: Option<String>,
    /// How the TC programs are attached.
    pub tc: TcState,
    /// Slot of its counters.
    pub slot: u16,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How XDP runs on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpState {
    /// In the driver.
    Native,
    /// In the kernel, behind the driver.
    Generic,
    /// Not at all: TC does everything.
    Off,
}

impl XdpState {
    /// The word in listings and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Off => "off",
        }
    }
}

/// How the TC programs are attached to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TcState {
    /// As links (kernel 6.6).
    Tcx,
    /// As filters of a clsact qdisc.
    Clsact,
    /// Not at all.
    Off,
}

impl TcState {
    /// The word in listings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::Off => "off",
        }
    }
}

impl Status {
    /// The text for the map. Long errors are cut: a text that is cut is not JSON.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut status = self.clone();
        for limit in [2000, 500, 100, 0] {
            status.cut(limit);
            let json = serde_json::to_string(&status).unwrap_or_default();
            if json.len() <= TEXT_LEN {
                return json;
            }
        }
        // What is left that can be long is the list of interfaces.
        loop {
            let json = serde_json::to_string(&status).unwrap_or_default();
            if json.len() <= TEXT_LEN || status.interfaces.pop().is_none() {
                return json;
            }
        }
    }

    /// From the text in the map.
    ///
    /// # Errors
    ///
    /// If it is not the JSON of a status.
    pub fn decode(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    fn cut(&mut self, limit: usize) {
        let texts = [&mut self.last_error, &mut self.config_error];
        let interfaces = self
            .interfaces
            .iter_mut()
            .flat_map(|interface| [&mut interface.error, &mut interface.xdp_reason]);
        let clients = self.clients.iter_mut().map(|clients| &mut clients.error);
        let peers = self.peers.iter_mut().map(|peers| &mut peers.error);
        for text in texts.into_iter().chain(interfaces).chain(clients).chain(peers).flatten() {
            if text.len() > limit {
                text.truncate(text.floor_char_boundary(limit));
                text.push('…');
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(interfaces: usize, error: &str) -> Status {
        let interface = InterfaceStatus {
            name: "eth0".to_owned(),
            ifindex: 2,
            xdp: XdpState::Generic,
            xdp_reason: Some(error.to_owned()),
            tc: TcState::Tcx,
            slot: 1,
            error: None,
        };
        Status {
            pid: 1,
            version: "0.1.0".to_owned(),
            started_at: 1,
            config: Some(PathBuf::from("/etc/redirector.yaml")),
            kubernetes: true,
            node_name: "node".to_owned(),
            interfaces: vec![interface; interfaces],
            clients: Some(ClientsStatus { cgroup: None, error: Some(error.to_owned()) }),
            in_sync: true,
            last_sync: Some(2),
            last_error: Some(error.to_owned()),
            snat_ports: (49152, 57343),
            peers: Some(PeersStatus { known: 2, taking: 1, error: Some(error.to_owned()) }),
            ..Status::default()
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let status = status(2, "no");
        assert_eq!(Status::decode(&status.encode()).expect("decodes"), status);
    }

    #[test]
    fn whatever_happens_the_text_fits_and_is_json() {
        for (interfaces, length) in [(1, 100_000), (63, 1000), (1000, 10)] {
            let text = status(interfaces, &"é".repeat(length)).encode();
            assert!(text.len() <= TEXT_LEN);
            assert!(Status::decode(&text).is_ok());
        }
    }
}
