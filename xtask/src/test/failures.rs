//! What test programs say of the tests that failed, kept until the end: behind them come tiers with
//! thousands of lines.

/// Lines of one test that are repeated: its last, where the reason is.
const LINES: usize = 40;

/// What stands before what a test has printed: `---- name stdout ----`.
const HEAD: &str = "---- ";

/// Behind it is where in the code, in a hundred lines.
const BACKTRACE: &str = "stack backtrace:";

/// The parts of a test program's output that are about failures.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Failures {
    told: Vec<String>,
    /// Of the test that is being told of.
    lines: Vec<String>,
    is_telling: bool,
    is_in_backtrace: bool,
}

impl Failures {
    /// Takes a line of the output. What is wanted stands between `failures:` and `failures:`.
    pub(super) fn add(&mut self, line: &str) {
        if line == "failures:" {
            self.end_test();
            self.is_telling = !self.is_telling;
        } else if line.starts_with("test result: ") {
            self.end_test();
            self.is_telling = false;
        } else if self.is_telling && !line.is_empty() {
            if line.starts_with(HEAD) {
                self.end_test();
            }
            self.is_in_backtrace |= line.eq_ignore_ascii_case(BACKTRACE);
            if !self.is_in_backtrace {
                self.lines.push(line.to_owned());
            }
        }
    }

    /// The end of one test's output.
    fn end_test(&mut self) {
        self.is_in_backtrace = false;
        let mut lines = std::mem::take(&mut self.lines).into_iter();
        let left = lines.len().saturating_sub(1 + LINES);
        self.told.extend(lines.next());
        if left > 0 {
            self.told.push(format!("… {left} lines left out: see above"));
        }
        self.told.extend(lines.skip(left));
    }

    /// All that was told.
    pub(super) fn into_lines(self) -> Vec<String> {
        self.told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(output: &str) -> Vec<String> {
        let mut failures = Failures::default();
        output.lines().for_each(|line| failures.add(line));
        failures.into_lines()
    }

    #[test]
    fn what_failed_tests_have_printed() {
        let output = "\
running 3 tests
test a ... ok
test b ... FAILED
test c ... FAILED

failures:

---- b stdout ----
Error: no answer

Caused by:
    timed out

Stack backtrace:
   0: somewhere
             at some.rs:1:2

---- c stdout ----
Error: no route

failures:
    b
    c

test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.10s

running 1 test
test d ... ok
";
        let expected = [
            "---- b stdout ----",
            "Error: no answer",
            "Caused by:",
            "    timed out",
            "---- c stdout ----",
            "Error: no route",
        ];
        assert_eq!(told(output), expected);
    }

    #[test]
    fn of_much_the_end() {
        let many: Vec<String> = (0..100).map(|number| format!("line {number}")).collect();
        let output =
            format!("failures:\n---- a stdout ----\n{}\nfailures:\n    a\n", many.join("\n"));
        let told = told(&output);
        assert_eq!(told.len(), 2 + LINES);
        assert_eq!(told[1], "… 60 lines left out: see above");
        assert_eq!(told.last().map(String::as_str), Some("line 99"));
    }
}
