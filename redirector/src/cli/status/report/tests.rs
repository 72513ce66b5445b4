use std::time::Duration;

use super::*;
use crate::cli::status::describe;
use crate::dataplane::pins::Hook;
use crate::dataplane::status::{InterfaceStatus, TcState, XdpState};

const NOW: u64 = 1_000_000;

fn account() -> Status {
    Status {
        pid: 7,
        version: "0.1.0".to_owned(),
        started_at: (NOW - 192) * 1000,
        config: Some(PathBuf::from("/etc/redirector.yaml")),
        node_name: "node-1".to_owned(),
        interfaces: vec![InterfaceStatus {
            name: "eth0".to_owned(),
            ifindex: 2,
            xdp: XdpState::Generic,
            xdp_reason: Some("the driver has no XDP".to_owned()),
            tc: TcState::Tcx,
            slot: 1,
            error: None,
        }],
        in_sync: true,
        last_sync: Some((NOW - 60) * 1000),
        snat_ports: (49152, 57343),
        ..Status::default()
    }
}

fn loaded() -> Loaded {
    let now = moment(NOW * 1000);
    let link = |hook, program_id| Attached {
        hook,
        interface: "eth0".to_owned(),
        ifindex: Some(2),
        program_id,
        program: "redirector".to_owned(),
        loaded_at: Some(now - Duration::from_secs(3600 * 30)),
    };
    Loaded {
        account: Some(account()),
        holder: Some(7),
        attached: vec![link(Hook::Xdp, 10), link(Hook::Ingress, 11)],
        attached_clients: Vec::new(),
        infos: BTreeMap::new(),
        direct: Direct { peers: 3, ..Direct::default() },
        fill: vec![Fill { name: "FLOWS", entries: 6, capacity: 200, bytes: Some(48 << 10) }],
        flows: BTreeMap::from([("established", 2), ("unreplied", 1)]),
        translation: PortUse {
            ports: 8192,
            used: 2,
            backend: Some("10.0.0.5:8080/tcp".to_owned()),
        },
        node: NodeConfig {
            snat_first: 49152,
            snat_count: 8192,
            lookup_ifindex: 1,
            ring_slots: 128,
            ..NodeConfig::default()
        },
        now,
    }
}

#[test]
fn all_is_well() {
    let expected = "\
Agent:       running (pid 7, version 0.1.0, up 3m12s)
Node:        node-1
Source:      /etc/redirector.yaml
Sync:        in sync (last written 60s ago)
Clients:     on this machine not served (--no-local-clients)
SNAT ports:  49152-57343, 2 of 8192 in use for 10.0.0.5:8080/tcp
Flows:       3 (2 established, 1 unreplied)
Half-open:   1 of at most 64
Conflicts:   none
DSR:         no service; 3 addresses of other nodes

INTERFACE  XDP      TC   PROGRAMS           AGE  NOTE
eth0       generic  tcx  xdp:10,ingress:11  30h  the driver has no XDP

MAP    ENTRIES  CAPACITY  FULL  MEMORY
FLOWS        6       200    3%   48KiB
";
    assert_eq!(describe(&report(loaded())), expected);
}

#[test]
fn a_killed_agent_is_not_taken_for_a_running_one() {
    let mut killed = loaded();
    killed.holder = None;
    let dead = report(killed.clone());
    assert_eq!(dead.agent.state, AgentState::Dead);
    assert!(describe(&dead).contains("in sync when the agent ended"));
    if let Some(account) = &mut killed.account {
        account.stopped = true;
    }
    assert_eq!(report(killed).agent.state, AgentState::Stopped);
}

#[test]
fn another_process_with_the_directory_has_not_said_what_stands_there() {
    let mut other = loaded();
    other.holder = Some(8);
    let agent = report(other).agent;
    assert_eq!((agent.pid, agent.version), (Some(8), None));
}

#[test]
fn a_wrong_file_is_plain_to_see() {
    let mut wrong = loaded();
    if let Some(account) = &mut wrong.account {
        account.config_error = Some("line 3: unknown key".to_owned());
        account.config_error_since = Some((NOW - 30) * 1000);
        account.in_sync = false;
        account.out_of_sync_since = Some((NOW - 20) * 1000);
        account.last_error = Some("map FLOWS is full".to_owned());
    }
    let text = describe(&report(wrong));
    assert!(text.contains("WRONG since 30s"), "{text}");
    assert!(text.contains("line 3: unknown key"), "{text}");
    assert!(text.contains("NOT in sync for 20s: map FLOWS is full"), "{text}");
}

#[test]
fn links_without_an_account_are_shown() {
    let mut orphan = loaded();
    orphan.account = None;
    orphan.attached.truncate(1);
    orphan.attached[0].ifindex = None;
    let report = report(orphan);
    assert_eq!(report.interfaces.len(), 1);
    assert_eq!(report.interfaces[0].xdp, "unknown");
    let gone = report.interfaces[0].error.as_deref();
    assert_eq!(gone, Some("the interface is gone"));
    assert!(!report.sync.in_sync);
}

#[test]
fn json_has_what_scripts_ask_for() {
    let json = serde_json::to_value(report(loaded())).expect("JSON");
    assert_eq!(json["agent"]["state"], "running");
    assert_eq!(json["sync"]["inSync"], true);
    assert_eq!(json["interfaces"][0]["programs"][0]["hook"], "xdp");
    assert_eq!(json["snatPorts"], serde_json::json!([49152, 57343]));
    assert_eq!(json["translation"]["used"], 2);
    assert_eq!(json["maps"][0]["capacity"], 200);
    assert_eq!(json["maps"][0]["bytes"], 48 << 10);
    assert_eq!(json["halfOpen"], serde_json::json!({"flows": 1, "budget": 64}));
}

#[test]
fn clients_on_this_machine_are_named() {
    use crate::dataplane::attached::AttachedClient;
    use crate::dataplane::pins::ClientHook;
    use crate::dataplane::status::ClientsStatus;
    let mut served = loaded();
    let client = |hook| AttachedClient {
        hook,
        is_alive: true,
        program_id: 20,
        program: "rd".to_owned(),
        loaded_at: None,
    };
    served.attached_clients = vec![client(ClientHook::Connect4), client(ClientHook::Connect6)];
    let account = served.account.as_mut().expect("an account");
    let cgroup = Some("/sys/fs/cgroup".into());
    account.clients = Some(ClientsStatus { cgroup, error: None });
    let text = describe(&report(served.clone()));
    let line = "on this machine served in /sys/fs/cgroup (connect4:20, connect6:20)";
    assert!(text.contains(line), "{text}");
    served.attached_clients[0].is_alive = false;
    let text = describe(&report(served));
    assert!(text.contains("NOT served: the control group is gone"), "{text}");
}
