//! `redirector config check`: whether a file would be taken, without taking it.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use super::render;
use crate::config::{self, Config, ConfigError};

/// Commands about configuration files.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a file without running: exit code 1 and every problem with its place if it is wrong
    #[command(after_help = "Example:\n  redirector config check /etc/redirector.yaml")]
    Check(CheckArgs),
}

/// Options of `redirector config check`.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// The file
    file: PathBuf,
}

/// Runs the command.
///
/// # Errors
///
/// If the file cannot be read or is wrong.
pub fn run(command: &ConfigCommand) -> Result<()> {
    match command {
        ConfigCommand::Check(args) => check(&args.file),
    }
}

fn check(file: &Path) -> Result<()> {
    match config::load(file) {
        Ok(config) => render::print(&format!("{}: {}\n", file.display(), summary(&config))),
        Err(error) => refuse(file, &error),
    }
}

/// Every problem on a line of its own, and then that there are some.
fn refuse(file: &Path, error: &ConfigError) -> Result<()> {
    if let [problem] = error.problems() {
        bail!("{problem}");
    }
    for problem in error.problems() {
        render::say(&problem.to_string());
    }
    bail!("{} has {} problems: correct what is named above", file.display(), error.problems().len())
}

fn summary(config: &Config) -> String {
    let number = |number: usize, thing: &str| {
        let plural = if number == 1 { "" } else { "s" };
        format!("{number} {thing}{plural}")
    };
    let frontends = config.services.iter().map(|it| it.frontends.len()).sum();
    let interfaces = config.interfaces.as_ref().map_or_else(
        || "every interface with a default route".to_owned(),
        |names| names.join(", "),
    );
    format!(
        "ok: {}, {}; interfaces: {interfaces}; XDP {}; SNAT ports {}-{}",
        number(config.services.len(), "service"),
        number(frontends, "frontend"),
        config.xdp_mode,
        config.snat_ports.start(),
        config.snat_ports.end(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_file_is_summed_up() {
        let config = config::parse("a.yaml", "publish: ['80:8080', '81:8081']").expect("good");
        assert_eq!(
            summary(&config),
            "ok: 2 services, 2 frontends; interfaces: every interface with a default route; \
             XDP auto; SNAT ports 49152-57343"
        );
    }

    #[test]
    fn one_problem_is_the_error_itself_and_several_are_counted() {
        let refusal = |text| {
            let error = config::parse("a.yaml", text).expect_err("wrong");
            let refusal = refuse(Path::new("a.yaml"), &error).expect_err("refused");
            refusal.to_string()
        };
        let one = refusal("publish: ['0:8080']");
        assert!(one.starts_with("a.yaml:1:"), "{one}");
        let several = refusal("publish: ['0:8080', 'x']");
        assert_eq!(several, "a.yaml has 2 problems: correct what is named above");
    }
}
