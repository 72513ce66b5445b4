//! The `redirector` program: the agent, and the commands that look at what it installed.

use std::io::IsTerminal;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

/// What is logged unless `RUST_LOG` says otherwise. The libraries for Kubernetes log each of their
/// attempts, whatever comes of it; the agent says it once.
const FILTER: &str = "info,kube_client=off";

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(FILTER));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // It would report a broken stderr on stderr.
        .log_internal_errors(false)
        .init();
    redirector::cli::main()
}
