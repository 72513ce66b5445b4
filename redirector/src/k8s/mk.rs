//! Builders of objects for tests: JSON as the API server sends it, read as a watch reads it.

use serde_json::{Value, json};

use super::index::Index;
use super::lease::LeaseRecord;
use super::lenient::Lenient;
use super::node::NodeRecord;
use super::object::ObjectName;
use super::pod::PodRecord;
use super::record::{Kind, Record};
use super::service::ServiceRecord;
use super::slice::SliceRecord;

/// The node that tests are on.
pub(crate) const NODE: &str = "here";

/// A Service `default/web` with these fields of its spec.
pub(crate) fn mk_service(spec: &Value) -> Value {
    let mut object = json!({
        "metadata": {"namespace": "default", "name": "web", "uid": "u"},
        "spec": {"clusterIP": "10.96.0.1", "type": "NodePort", "ports": [
            {"port": 80, "nodePort": 30080},
        ]},
    });
    merge(&mut object["spec"], spec);
    object
}

/// A slice of `default/web` with port 8080 and these endpoints.
pub(crate) fn mk_slice(name: &str, endpoints: &Value) -> Value {
    let first = endpoints[0]["addresses"][0].as_str().unwrap_or("10.0.0.1");
    json!({
        "metadata": {
            "namespace": "default",
            "name": name,
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": if first.contains(':') { "IPv6" } else { "IPv4" },
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

/// An endpoint on another node, ready, with these fields besides.
pub(crate) fn mk_endpoint(address: &str, fields: &Value) -> Value {
    let mut endpoint = json!({"addresses": [address], "nodeName": "elsewhere"});
    merge(&mut endpoint, fields);
    endpoint
}

/// A pod `default/web` of this node in the host's network.
pub(crate) fn mk_pod(publish: Option<&str>, spec: &Value) -> Value {
    let mut object = json!({
        "metadata": {"namespace": "default", "name": "web", "uid": "p", "annotations": {}},
        "spec": {"nodeName": NODE, "hostNetwork": true, "containers": []},
        "status": {"phase": "Running"},
    });
    if let Some(publish) = publish {
        object["metadata"]["annotations"] = json!({(super::PUBLISH): publish});
    }
    merge(&mut object["spec"], spec);
    object
}

/// Sets the fields of `changes`; null removes one.
pub(crate) fn merge(object: &mut Value, changes: &Value) {
    for (key, value) in changes.as_object().into_iter().flatten() {
        if value.is_null() {
            object.as_object_mut().map(|object| object.remove(key));
        } else {
            object[key] = value.clone();
        }
    }
}

/// Reads an object, as a watch does: what records are made of must outlive the pruning.
pub(crate) fn read(kind: Kind, object: Value) -> Record {
    fn typed<K: serde::de::DeserializeOwned>(object: Value) -> K {
        let object: Lenient<K> = serde_json::from_value(object).expect("an object");
        object.object.expect("an object of its kind")
    }
    match kind {
        Kind::Service => ServiceRecord::read(typed(object)).map(Record::Service),
        Kind::Slice => SliceRecord::read(typed(object)).map(Record::Slice),
        Kind::Node => NodeRecord::read(typed(object)).map(Record::Node),
        Kind::Pod => PodRecord::read(typed(object)).map(Record::Pod),
        Kind::Lease => LeaseRecord::read(typed(object)).map(Record::Lease),
    }
    .expect("readable")
}

/// The name of every object made here.
pub(crate) fn web() -> ObjectName {
    ObjectName::new("default", "web")
}

/// An index with one Service and its slices.
pub(crate) fn mk_index(service: Value, slices: impl IntoIterator<Item = Value>) -> Index {
    let mut index = Index::new(NODE, None);
    index.apply(read(Kind::Service, service));
    for slice in slices {
        index.apply(read(Kind::Slice, slice));
    }
    index
}
