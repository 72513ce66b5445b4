//! A virtual machine that boots, runs the tests and powers off.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::figures::Figure;
use super::initramfs::{BEGIN, END};
use super::packages::Kernel;
use super::plan::Test;
use crate::process::{describe, which};
use crate::test::summary::Summary;

/// Mebibytes of memory: the maps of a redirector take some 200.
const MEMORY: &str = "1536";

/// Lines of the kernel's messages that are shown when something went wrong.
const LAST_MESSAGES: usize = 40;

/// How the processor is provided.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Accelerator {
    /// Software emulation.
    Tcg,
    /// The machine's own processor.
    Kvm,
}

/// How the tests went.
#[derive(Default)]
pub(super) struct Outcome {
    /// What the verifier said, by program.
    pub(super) figures: BTreeMap<String, Figure>,
    /// Exit code and count of tests, by test program.
    finished: BTreeMap<String, (String, Summary)>,
    current: Summary,
    took: Duration,
}

/// Boots a kernel, shows what the tests print, and waits for the machine to power off.
pub(super) fn boot(
    series: &str,
    kernel: &Kernel,
    initramfs: &Path,
    accelerator: Accelerator,
    limit: Duration,
) -> Result<Outcome> {
    let messages = kernel.directory.join("console");
    let start = Instant::now();
    let mut command = qemu(kernel, initramfs, accelerator, &messages)?;
    let mut machine =
        Machine(command.spawn().with_context(|| format!("cannot start {}", describe(&command)))?);
    let lines = read_lines(&mut machine.0)?;
    let mut outcome = Outcome::default();
    loop {
        match lines.recv_timeout(limit.saturating_sub(start.elapsed())) {
            Ok(line) => {
                println!("{series:>5} │ {line}");
                outcome.add(&line);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                print_end(&messages);
                bail!(
                    "Linux {} did not end within {} s (--timeout): its last messages are above, \
                     all of them in {}",
                    kernel.release,
                    limit.as_secs(),
                    messages.display()
                );
            }
        }
    }
    let status = machine.0.wait().context("cannot wait for QEMU")?;
    if !status.success() || outcome.finished.is_empty() {
        print_end(&messages);
        bail!(
            "Linux {} ran no test ({}: {status}): its last messages are above, all of them in {}",
            kernel.release,
            describe(&command),
            messages.display()
        );
    }
    outcome.took = start.elapsed();
    Ok(outcome)
}

/// Stopped when dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // It has ended already, unless something went wrong; then there is nothing more to do.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn qemu(
    kernel: &Kernel,
    initramfs: &Path,
    accelerator: Accelerator,
    messages: &Path,
) -> Result<Command> {
    let program = which("qemu-system-x86_64").context("there is no qemu-system-x86_64")?;
    let (accelerator, processor) = match accelerator {
        Accelerator::Tcg => ("tcg", "max"),
        Accelerator::Kvm => ("kvm", "host"),
    };
    let mut command = Command::new(program);
    command
        .args(["-accel", accelerator, "-cpu", processor, "-smp", "1", "-m", MEMORY])
        .args(["-nodefaults", "-no-reboot", "-display", "none"])
        .args(["-chardev", &format!("file,id=messages,path={}", messages.display())])
        .args(["-serial", "chardev:messages", "-serial", "stdio"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs)
        // A panic ends the machine at once.
        .args(["-append", "console=ttyS0 panic=-1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    Ok(command)
}

fn read_lines(machine: &mut Child) -> Result<Receiver<String>> {
    let output = machine.stdout.take().context("QEMU has no output")?;
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n') {
            let Ok(line) = line else { return };
            let line = String::from_utf8_lossy(&line);
            if sender.send(line.trim_end_matches('\r').to_owned()).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

fn print_end(messages: &Path) {
    let text = fs::read(messages).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    for line in &lines[lines.len().saturating_sub(LAST_MESSAGES)..] {
        eprintln!("{line}");
    }
}

impl Outcome {
    fn add(&mut self, line: &str) {
        self.current.add(line);
        if line.starts_with(BEGIN) {
            self.current = Summary::default();
        } else if let Some((name, code)) =
            line.strip_prefix(END).and_then(|rest| rest.split_once(' '))
        {
            self.finished.insert(name.to_owned(), (code.to_owned(), self.current));
        } else if let Some((name, figure)) = Figure::read(line) {
            self.figures.insert(name, figure);
        }
    }

    /// What went wrong.
    pub(super) fn problems(&self, tests: &[Test]) -> impl Iterator<Item = String> {
        tests.iter().filter_map(|Test { name, .. }| match self.finished.get(*name) {
            None => Some(format!("{name} did not end")),
            Some((code, Summary { passed, failed, ignored })) => {
                let fine = code == "0" && *passed > 0 && *failed == 0 && *ignored == 0;
                (!fine).then(|| {
                    format!(
                        "{name}: exit code {code}, {passed} passed, {failed} failed, {ignored} ignored"
                    )
                })
            }
        })
    }

    /// Of all test programs.
    pub(super) fn sum(&self) -> Summary {
        let mut sum = Summary::default();
        for (_, Summary { passed, failed, ignored }) in self.finished.values() {
            sum.passed += passed;
            sum.failed += failed;
            sum.ignored += ignored;
        }
        sum
    }

    /// Rows of the table.
    pub(super) fn render(&self, series: &str) -> String {
        let mut rows = String::new();
        for (name, Figure { verified, stack }) in &self.figures {
            rows += &format!("{series:<7} {name:<15} {verified:>8} {stack:>6}\n");
        }
        let Summary { passed, failed, .. } = self.sum();
        rows + &format!(
            "{series:<7} {passed} tests passed, {failed} failed, {:.0} s\n",
            self.took.as_secs_f64()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(lines: &[&str]) -> Outcome {
        let mut outcome = Outcome::default();
        for line in lines {
            outcome.add(line);
        }
        outcome
    }

    fn tests() -> [Test; 1] {
        [Test { name: "verifier", executable: "verifier".into(), only: &[] }]
    }

    #[test]
    fn what_the_machine_prints_is_read() {
        let outcome = outcome(&[
            "@begin verifier",
            "test every_program_is_accepted ... verifier redirector_in 801993 240",
            "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
            "@end verifier 0",
        ]);
        assert_eq!(outcome.problems(&tests()).count(), 0);
        let figure = Figure { verified: 801_993, stack: 240 };
        assert_eq!(outcome.figures, [("redirector_in".to_owned(), figure)].into());
    }

    #[test]
    fn tests_that_fail_run_nothing_or_do_not_end_are_problems() {
        let all_ok = "test result: ok. 1 passed; 0 failed; 0 ignored";
        let none = "test result: ok. 0 passed; 0 failed; 0 ignored";
        for lines in [
            &["@begin verifier", all_ok][..],
            &["@begin verifier", all_ok, "@end verifier 101"],
            &["@begin verifier", none, "@end verifier 0"],
            &["@begin other", all_ok, "@begin verifier", "@end verifier 0"],
        ] {
            assert_eq!(outcome(lines).problems(&tests()).count(), 1, "{lines:?}");
        }
    }
}
