//! Programs whose verification was interrupted.

use std::io::ErrorKind;

use aya::programs::ProgramError;

/// How often a program is loaded. libbpf gives up after five, which is soon for one whose
/// verification takes long, where signals come as often as a profiler's.
const ATTEMPTS: usize = 50;

/// Has a program loaded, and again where the verifier broke off because a signal was pending
/// (`EAGAIN`), which has nothing to do with the program.
///
/// # Errors
///
/// Those of `load`.
pub fn verify(load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    attempt(load, |error| {
        matches!(error, ProgramError::LoadError { io_error, .. }
            if io_error.kind() == ErrorKind::WouldBlock)
    })
}

fn attempt<E>(
    mut load: impl FnMut() -> Result<(), E>,
    is_interruption: impl Fn(&E) -> bool,
) -> Result<(), E> {
    for _ in 1..ATTEMPTS {
        match load() {
            Err(error) if is_interruption(&error) => {}
            outcome => return outcome,
        }
    }
    load()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often is tried what fails so often with this error, and whether it is done then.
    fn attempts(error: &str, failures: usize) -> (usize, bool) {
        let mut attempts = 0;
        let load = || {
            attempts += 1;
            if attempts > failures { Ok(()) } else { Err(error) }
        };
        let outcome = attempt(load, |error| *error == "interrupted");
        (attempts, outcome.is_ok())
    }

    #[test]
    fn interruptions_are_no_refusals() {
        assert_eq!(attempts("interrupted", 0), (1, true));
        assert_eq!(attempts("interrupted", ATTEMPTS - 1), (ATTEMPTS, true));
        assert_eq!(attempts("interrupted", ATTEMPTS), (ATTEMPTS, false));
        assert_eq!(attempts("refused", 1), (1, false));
    }
}
