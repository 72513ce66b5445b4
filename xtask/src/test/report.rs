//! What was run and how it went.

use std::time::Duration;

use crate::lint::Finding;

/// How one thing went.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    passed: u32,
    failed: u32,
    note: String,
    /// What is told of failures.
    told: Vec<String>,
}

impl Outcome {
    /// A check that found nothing, or a build.
    pub(super) fn checked(finding: Finding) -> Self {
        let (passed, note) = match finding {
            Finding::Clean => (1, ""),
            Finding::CleanBut(note) => (1, note),
            Finding::NotRun(note) => (0, note),
        };
        Self { passed, failed: 0, note: note.into(), told: Vec::new() }
    }

    /// Something that could not be done, or a check that found something.
    pub(super) fn failed(note: String) -> Self {
        Self { passed: 0, failed: 1, note, told: Vec::new() }
    }

    /// Tests that ran.
    pub(super) fn tests(passed: u32, failed: u32) -> Self {
        Self { passed, failed, note: String::new(), told: Vec::new() }
    }

    /// The same, with what the tests that failed have printed.
    pub(super) fn telling(self, told: Vec<String>) -> Self {
        Self { told, ..self }
    }
}

/// Everything that was run, in order.
#[derive(Default)]
pub(super) struct Report {
    rows: Vec<(&'static str, Outcome, Duration)>,
}

impl Report {
    pub(super) fn push(&mut self, name: &'static str, outcome: Outcome, took: Duration) {
        self.rows.push((name, outcome, took));
    }

    /// Whether anything failed, or nothing was run at all.
    pub(super) fn failed(&self) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|(_, outcome, _)| outcome.failed > 0)
    }

    /// Prints what failed once more, a table, and the sum as the last line.
    pub(super) fn print(&self) {
        print!("\n{}", self.render());
    }

    fn render(&self) -> String {
        let mut text = String::new();
        for (name, outcome, _) in
            self.rows.iter().filter(|(_, outcome, _)| !outcome.told.is_empty())
        {
            text += &format!("── what failed in {name}\n{}\n\n", outcome.told.join("\n"));
        }
        text += &format!("{:<12} {:>7} {:>7} {:>8}\n", "TIER", "PASSED", "FAILED", "SECONDS");
        for (name, outcome, took) in &self.rows {
            let row = format!(
                "{name:<12} {:>7} {:>7} {:>8.1}  {}",
                outcome.passed,
                outcome.failed,
                took.as_secs_f64(),
                outcome.note
            );
            text.push_str(row.trim_end());
            text.push('\n');
        }
        let sum = |count: fn(&Outcome) -> u32| -> u32 {
            self.rows.iter().map(|(_, outcome, _)| count(outcome)).sum()
        };
        text + &format!(
            "{} passed, {} failed\n",
            sum(|outcome| outcome.passed),
            sum(|outcome| outcome.failed)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_sum() {
        let mut report = Report::default();
        report.push("format", Outcome::checked(Finding::Clean), Duration::from_secs(1));
        let told = vec!["---- a stdout ----".into(), "Error: no answer".into()];
        report.push("host", Outcome::tests(12, 1).telling(told), Duration::from_millis(2500));
        report.push("netns", Outcome::failed("needs root".into()), Duration::ZERO);
        assert_eq!(
            report.render(),
            "── what failed in host\n\
             ---- a stdout ----\n\
             Error: no answer\n\
             \n\
             TIER          PASSED  FAILED  SECONDS\n\
             format             1       0      1.0\n\
             host              12       1      2.5\n\
             netns              0       1      0.0  needs root\n\
             13 passed, 2 failed\n"
        );
        assert!(report.failed());
    }

    #[test]
    fn nothing_run_is_a_failure() {
        assert!(Report::default().failed());
    }
}
