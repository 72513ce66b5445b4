use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use kube::core::Status;
use serde_json::json;

use super::*;
use crate::k8s::index::Index;

fn answer(code: u16) -> kube::Error {
    let status = Status { code, ..Status::failure("no", "Reason") };
    kube::Error::Api(Box::new(status))
}

#[test]
fn what_helps() {
    let streamed = |code| Fault::Stream(answer(code)).cure(Kind::Pod);
    assert_eq!(streamed(401), Cure::Restart);
    assert_eq!(streamed(422), Cure::Page);
    assert_eq!(streamed(400), Cure::Page);
    assert_eq!(streamed(500), Cure::Wait);
    assert_eq!(streamed(403), Cure::Wait);
    let listed = |code, kind| Fault::List(answer(code)).cure(kind);
    assert_eq!((listed(401, Kind::Pod), listed(422, Kind::Pod)), (Cure::Restart, Cure::Wait));
    assert_eq!(
        (listed(403, Kind::Lease), listed(404, Kind::Lease)),
        (Cure::DoWithout, Cure::DoWithout)
    );
    assert_eq!((listed(401, Kind::Lease), listed(500, Kind::Lease)), (Cure::Restart, Cure::Wait));
    assert_eq!(Fault::NoVersion.cure(Kind::Pod), Cure::Wait);
    // From where it was, or from the beginning.
    let lasts = |code| Fault::Watch(answer(code)).is_lasting();
    assert_eq!([410, 400, 500, 403, 504].map(lasts), [true, true, false, false, false]);
    assert!(Fault::NoVersion.is_lasting() && !Fault::Short.is_lasting());
}

#[test]
fn what_is_said_of_an_answer() {
    assert_eq!(Fault::Watch(answer(403)).describe(), "no");
    let silent = Status { code: 503, ..Status::failure("", "ServiceUnavailable") };
    let silent = Fault::Watch(kube::Error::Api(Box::new(silent)));
    assert_eq!(silent.describe(), "503 ServiceUnavailable");
    assert!(Fault::Watch(answer(410)).is_too_old() && !silent.is_too_old());
}

#[test]
fn a_server_that_refuses_is_not_away() {
    assert!(Fault::Watch(answer(403)).is_answer());
    let broken = kube::Error::ReadEvents(std::io::Error::other("gone"));
    assert!(!Fault::Watch(broken).is_answer());
}

/// A server that answers a watch with the end of an empty list, and never again; it closes nothing.
/// Sends the path of every request. One that is mute answers nothing at all.
fn serve_silently(is_mute: Arc<AtomicBool>) -> (u16, mpsc::Receiver<String>) {
    const END: &str = concat!(
        r#"{"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":{"#,
        r#""resourceVersion":"7","annotations":{"k8s.io/initial-events-end":"true"}}}}"#,
        "\n"
    );
    const VERSION: &str = concat!(
        r#"{"major":"1","minor":"34","gitVersion":"","gitCommit":"","gitTreeState":"","#,
        r#""buildDate":"","goVersion":"","compiler":"","platform":""}"#
    );
    let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
    let port = listener.local_addr().expect("an address").port();
    let (sender, requests) = mpsc::channel();
    let answer = move |mut stream: TcpStream| -> std::io::Result<TcpStream> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let request = lines.next().transpose()?.unwrap_or_default();
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
        if is_mute.load(Ordering::Relaxed) {
        } else if request.contains("/version") {
            write!(stream, "{head}content-length: {}\r\n\r\n{VERSION}", VERSION.len())?;
        } else {
            write!(stream, "{head}transfer-encoding: chunked\r\n\r\n")?;
            write!(stream, "{:x}\r\n{END}\r\n", END.len())?;
        }
        // Whoever listens may have seen enough.
        let _ = sender.send(request);
        Ok(stream)
    };
    std::thread::spawn(move || {
        // Kept open.
        let mut streams = Vec::new();
        for stream in listener.incoming().flatten() {
            streams.extend(answer(stream));
        }
    });
    (port, requests)
}

/// A server that answers each request for pods with what `answer` makes of its line, and closes the
/// connection. Sends the line of every request.
fn serve(
    answer: impl Fn(&str) -> (&'static str, String) + Send + 'static,
) -> (u16, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
    let port = listener.local_addr().expect("an address").port();
    let (sender, requests) = mpsc::channel();
    let serve_one = move |mut stream: TcpStream| -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let request = lines.next().transpose()?.unwrap_or_default();
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        let (status, body) = answer(&request);
        let head = "content-type: application/json\r\nconnection: close\r\n\r\n";
        // Whoever listens may have seen enough.
        let _ = sender.send(request);
        write!(stream, "HTTP/1.1 {status}\r\n{head}{body}")
    };
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client may leave early.
            let _ = serve_one(stream);
        }
    });
    (port, requests)
}

fn pod_event(what: &str, name: &str, version: u32) -> String {
    let metadata =
        json!({"name": name, "namespace": "default", "resourceVersion": version.to_string()});
    let object = json!({"kind": "Pod", "apiVersion": "v1", "metadata": metadata});
    json!({"type": what, "object": object}).to_string() + "\n"
}

fn bookmark(version: u32) -> String {
    let annotations = json!({"k8s.io/initial-events-end": "true"});
    let metadata = json!({"resourceVersion": version.to_string(), "annotations": annotations});
    let object = json!({"kind": "Pod", "apiVersion": "v1", "metadata": metadata});
    json!({"type": "BOOKMARK", "object": object}).to_string() + "\n"
}

/// Names of the pods, once they were listed.
async fn listed_pods(cluster: &Cluster) -> Vec<String> {
    let listed = async {
        while cluster.with(|index| index.missing().any(|kind| kind == Kind::Pod)) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(30), listed).await.expect("in time");
    cluster.with(|index| index.pods().map(|pod| pod.name.name.clone()).collect())
}

/// Follows pods of a server; ends with the tasks.
fn follow_pods(port: u16, streams: bool) -> (Cluster, JoinSet<anyhow::Result<()>>) {
    let config = kube::Config::new(format!("http://127.0.0.1:{port}").parse().expect("a URI"));
    let cluster = Cluster::new(Index::new("here", None));
    let mut watch = Watch::<Pod> {
        access: Access::new(Some("/nonexistent".into())),
        cluster: cluster.clone(),
        kind: Kind::Pod,
        api: Api::all,
        selection: Selection::default(),
        read: |object| PodRecord::read(object).map(Record::Pod),
        streams,
        pause: Pause::default(),
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            watch.run(Client::try_from(config.clone())?).await;
            watch.pause.wait().await;
        }
    });
    (cluster, tasks)
}

/// The first two requests, however long they take to come, and those of some time after them.
async fn count(requests: mpsc::Receiver<String>, time: Duration) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let first_two = async {
        while all.len() < 2 {
            all.extend(requests.try_iter());
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(30), first_two).await.expect("in time");
    sleep(time).await;
    all.extend(requests.try_iter());
    all
}

/// A server begins to send what there was, and sends what happens meanwhile before it says that
/// this was all. Its list is as new as can be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_while_it_is_listed_is_gone() {
    let (port, requests) = serve(|request| {
        let listed = ["web", "goes", "comes-again"].map(|name| pod_event("ADDED", name, 5));
        let changed = [
            pod_event("DELETED", "goes", 7),
            pod_event("DELETED", "comes-again", 8),
            pod_event("ADDED", "comes-again", 9),
            pod_event("ADDED", "web", 5),
            bookmark(9),
        ];
        let begins = request.contains("sendInitialEvents");
        let body = if begins { listed.concat() + &changed.concat() } else { String::new() };
        ("200 OK", body)
    });
    let (cluster, _tasks) = follow_pods(port, true);
    assert_eq!(listed_pods(&cluster).await, ["comes-again", "web"]);
    let first = requests.recv().expect("a request");
    assert!(first.contains("resourceVersion=&") || first.contains("resourceVersion= "), "{first}");
}

/// A server that ends watches as soon as they begin is not asked without a pause, whether it lists
/// or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_that_end_at_once_are_begun_ever_more_seldom() {
    for lists in [true, false] {
        let (port, requests) = serve(move |request| {
            let begins = lists && request.contains("sendInitialEvents");
            ("200 OK", if begins { bookmark(7) } else { String::new() })
        });
        let (_cluster, _tasks) = follow_pods(port, true);
        // Pauses of 0.2, 0.4, 0.8, 1.6 s, half of that at least.
        let asked = count(requests, Duration::from_secs(3)).await;
        assert!(asked.len() <= 8, "{lists}: {asked:#?}");
        let listed = asked.iter().filter(|asked| asked.contains("sendInitialEvents")).count();
        assert!(!lists || listed == 1, "what is known is not listed again: {asked:#?}");
    }
}

/// A server that cannot list is asked ever more seldom for pages, too, and is away until it can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_that_fail_are_asked_for_ever_more_seldom() {
    let (port, requests) = serve(|_| ("500 Internal Server Error", String::new()));
    let (_cluster, _tasks) = follow_pods(port, false);
    let asked = count(requests, Duration::from_secs(3)).await;
    assert!(asked.len() <= 8, "{asked:#?}");

    // Nobody is there: until somebody is, that is what is said.
    let (cluster, _tasks) = follow_pods(1, false);
    let lost = async {
        while cluster.contact().lost.is_none() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(30), lost).await.expect("in time");
    let since = cluster.contact().lost.map(|(since, _)| since);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(cluster.contact().lost.map(|(since, _)| since), since);
    assert_eq!(cluster.contact().last, None);
}

/// A page that is gone from the server's memory: the list begins anew, and what came of the first
/// one counts no more. Other faults cost a page alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_that_are_gone_begin_the_list_anew() {
    let times = std::sync::atomic::AtomicUsize::new(0);
    let (port, requests) = serve(move |request| {
        let page = |name: &str, next: &str| {
            let metadata = json!({"name": name, "namespace": "default", "resourceVersion": "5"});
            let list = json!({"resourceVersion": "7", "continue": next});
            let items = [json!({"metadata": metadata})];
            let list =
                json!({"kind": "PodList", "apiVersion": "v1", "metadata": list, "items": items});
            ("200 OK", list.to_string())
        };
        let refuse = |code: u16| {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                "message": "no", "reason": "Expired", "code": code});
            status.to_string()
        };
        let time = times.fetch_add(1, Ordering::Relaxed);
        match time {
            0 => page("first", "one"),
            1 => ("500 Internal Server Error", refuse(500)),
            2 => ("410 Gone", refuse(410)),
            3 => page("second", "two"),
            4 => page("third", ""),
            _ => {
                assert!(request.contains("watch"), "{request}");
                ("200 OK", String::new())
            }
        }
    });
    let (cluster, _tasks) = follow_pods(port, false);
    assert_eq!(listed_pods(&cluster).await, ["second", "third"]);
    let asked: Vec<String> = requests.try_iter().collect();
    let resumed: Vec<bool> =
        asked.iter().take(5).map(|asked| asked.contains("continue=")).collect();
    assert_eq!(resumed, [false, true, true, false, true]);
}

/// A server that hangs, or a way to it that ended without a word, is noticed by its silence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_connection_is_given_up() {
    let is_mute = Arc::new(AtomicBool::new(false));
    let (port, requests) = serve_silently(is_mute.clone());
    let file = tempfile::NamedTempFile::new().expect("a file");
    let kubeconfig = format!(
        "{{apiVersion: v1, kind: Config, current-context: here,
         contexts: [{{name: here, context: {{cluster: here, user: here}}}}],
         clusters: [{{name: here, cluster: {{server: 'http://127.0.0.1:{port}'}}}}],
         users: [{{name: here, user: {{}}}}]}}"
    );
    std::fs::write(file.path(), kubeconfig).expect("written");
    let access = Access::new(Some(file.path().to_owned())).with_silence(Duration::from_secs(2));
    let cluster = Cluster::new(Index::new("here", None));
    let mut tasks = JoinSet::new();
    let all = Selection::default();
    follow::<Pod>(&mut tasks, &access, &cluster, Kind::Pod, Api::all, &all, |object| {
        PodRecord::read(object).map(Record::Pod)
    });
    let next_watch = |requests: mpsc::Receiver<String>| async move {
        tokio::task::spawn_blocking(move || {
            let mut watches = requests.iter().filter(|request| request.contains("watch"));
            (watches.next(), watches.next())
        })
        .await
        .expect("no panic")
    };
    let found = timeout(Duration::from_secs(30), next_watch(requests)).await.expect("in time");
    let (Some(first), Some(second)) = found else { panic!("the server ended") };
    assert!(first.contains("sendInitialEvents=true"), "{first}");
    // It goes on where it was. The server answers others: nothing is amiss.
    assert!(second.contains("resourceVersion=7"), "{second}");
    assert_eq!(cluster.contact().lost, None);
    is_mute.store(true, Ordering::Relaxed);
    let lost = async {
        while cluster.contact().lost.is_none() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(60), lost).await.expect("in time");
}
