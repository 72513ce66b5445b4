//! The program as its callers see it: exit codes, and what goes to which stream.

#![expect(clippy::expect_used, reason = "a test that cannot start the program has failed")]

use std::process::{Command, Output, Stdio};

fn redirector(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_redirector"));
    command.args(arguments).env_remove("REDIRECTOR_BPFFS").env_remove("RUST_LOG");
    command
}

fn run(arguments: &[&str]) -> Output {
    redirector(arguments).output().expect("the program starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

#[test]
fn what_fails_is_code_1_with_one_line_that_says_what_to_do() {
    let commands: [&[&str]; 9] = [
        &["status"],
        &["service", "list"],
        &["service", "get", "web"],
        &["flow", "list"],
        &["flow", "flush", "--all"],
        &["counters"],
        &["map", "list"],
        &["monitor"],
        &["capture", "-"],
    ];
    for command in commands {
        let output = run(&[command, &["--bpffs", "/nowhere"]].concat());
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        assert!(output.stdout.is_empty(), "{command:?}");
        assert_eq!(
            stderr(&output),
            "error: nothing is installed under /nowhere: start the agent with 'redirector run' \
             (or name the directory with --bpffs)\n",
            "{command:?}"
        );
    }
}

#[test]
fn the_directory_can_be_named_by_the_environment() {
    let output =
        redirector(&["status"]).env("REDIRECTOR_BPFFS", "/elsewhere").output().expect("starts");
    assert!(stderr(&output).contains("under /elsewhere"), "{}", stderr(&output));
}

#[test]
fn wrong_usage_is_code_2() {
    let commands: [&[&str]; 6] = [
        &[],
        &["flow", "flush"],
        &["map", "dump", "NOTHING"],
        &["publish"],
        &["publish", "0:80"],
        // Each is right by itself.
        &["publish", "80:8080", "80:9090"],
    ];
    for command in commands {
        let output = run(command);
        assert_eq!(output.status.code(), Some(2), "{command:?}");
        assert!(output.stdout.is_empty(), "{command:?}");
        assert!(!output.stderr.is_empty(), "{command:?}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let output = run(&["config", "check", "/nowhere/redirector.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = stderr(&output);
    assert!(stderr.starts_with("error: /nowhere/redirector.yaml: "), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[test]
fn detaching_what_is_not_there_is_no_failure() {
    let output = run(&["detach", "--bpffs", "/nowhere"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stderr(&output), "nothing is installed under /nowhere\n");
}

#[test]
fn help_manual_and_completions_go_to_stdout() {
    for command in [vec!["--help"], vec!["man"], vec!["completions", "bash"]] {
        let output = run(&command);
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        assert!(!output.stdout.is_empty(), "{command:?}");
        assert!(output.stderr.is_empty(), "{command:?}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = redirector(&["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(output.stderr.is_empty(), "{}", stderr(&output));
}
