use kube::core::Status;

use super::*;

fn answer(code: u16) -> kube::Error {
    let status = Status { code, ..Status::failure("no", "Reason") };
    kube::Error::Api(Box::new(status))
}

#[test]
fn what_an_answer_means_for_the_watch() {
    let started = |code| cure(&watcher::Error::WatchStartFailed(answer(code)));
    assert_eq!(started(410), Cure::Restart);
    assert_eq!(started(401), Cure::Restart);
    assert_eq!(started(422), Cure::Page);
    assert_eq!(started(400), Cure::Page);
    assert_eq!(started(500), Cure::Wait);
    let listed = |code| cure(&watcher::Error::InitialListFailed(answer(code)));
    assert_eq!((listed(401), listed(422)), (Cure::Restart, Cure::Wait));
    assert_eq!(cure(&watcher::Error::NoResourceVersion), Cure::Wait);
}

#[test]
fn a_server_that_refuses_is_not_away() {
    assert!(is_answer(&watcher::Error::WatchFailed(answer(403))));
    let broken = kube::Error::ReadEvents(std::io::Error::other("gone"));
    assert!(!is_answer(&watcher::Error::WatchFailed(broken)));
}
