//! Errors with what caused them.

use std::error::Error;

/// An error and its causes in one line, each said once.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn each_cause_is_said_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("{0}")]
        struct Plain(&'static str, #[source] io::Error);
        let error = Plain("no answer", io::Error::other("the wire is cut"));
        assert_eq!(chain(&error), "no answer: the wire is cut");
        let error = Plain("no answer: cut", io::Error::other("cut"));
        assert_eq!(chain(&error), "no answer: cut");
    }
}
