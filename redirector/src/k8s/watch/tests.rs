use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use kube::core::Status;

use super::*;
use crate::k8s::index::Index;

fn answer(code: u16) -> kube::Error {
    let status = Status { code, ..Status::failure("no", "Reason") };
    kube::Error::Api(Box::new(status))
}

#[test]
fn what_an_answer_means_for_the_watch() {
    let started = |code| cure(&watcher::Error::WatchStartFailed(answer(code)), Kind::Pod);
    assert_eq!(started(410), Cure::Restart);
    assert_eq!(started(401), Cure::Restart);
    assert_eq!(started(422), Cure::Page);
    assert_eq!(started(400), Cure::Page);
    assert_eq!(started(500), Cure::Wait);
    assert_eq!(started(403), Cure::Wait);
    let listed = |code, kind| cure(&watcher::Error::InitialListFailed(answer(code)), kind);
    assert_eq!((listed(401, Kind::Pod), listed(422, Kind::Pod)), (Cure::Restart, Cure::Wait));
    assert_eq!(
        (listed(403, Kind::Lease), listed(404, Kind::Lease)),
        (Cure::DoWithout, Cure::DoWithout)
    );
    assert_eq!((listed(401, Kind::Lease), listed(500, Kind::Lease)), (Cure::Restart, Cure::Wait));
    assert_eq!(cure(&watcher::Error::NoResourceVersion, Kind::Pod), Cure::Wait);
}

#[test]
fn what_is_said_of_an_answer() {
    assert_eq!(describe(&watcher::Error::WatchFailed(answer(403))), "no");
    let silent = Status { code: 503, ..Status::failure("", "ServiceUnavailable") };
    let silent = watcher::Error::WatchError(Box::new(silent));
    assert_eq!(describe(&silent), "503 ServiceUnavailable");
    assert!(is_too_old(&watcher::Error::WatchFailed(answer(410))) && !is_too_old(&silent));
}

#[test]
fn a_server_that_refuses_is_not_away() {
    assert!(is_answer(&watcher::Error::WatchFailed(answer(403))));
    let broken = kube::Error::ReadEvents(std::io::Error::other("gone"));
    assert!(!is_answer(&watcher::Error::WatchFailed(broken)));
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
    let config = watcher::Config::default();
    follow::<Pod>(&mut tasks, &access, &cluster, Kind::Pod, Api::all, &config, |object| {
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
