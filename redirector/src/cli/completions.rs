//! `redirector completions` and `redirector man`: made from the command line's own definition.

use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, render};

/// Options of `redirector completions`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  redirector completions bash > /etc/bash_completion.d/redirector
  redirector completions zsh > \"${fpath[1]}/_redirector\"
  redirector completions fish > ~/.config/fish/completions/redirector.fish")]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the completion script.
///
/// # Errors
///
/// If stdout cannot be written.
pub fn print_completions(args: &CompletionsArgs) -> Result<()> {
    // The generator panics where its writer fails; memory does not fail.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "redirector", &mut script);
    render::print(&String::from_utf8_lossy(&script))
}

/// Prints the manual page: every command, one after the other.
///
/// # Errors
///
/// If stdout cannot be written.
pub fn print_manual() -> Result<()> {
    let mut command = Cli::command();
    command.build();
    render::print(&String::from_utf8_lossy(&manual(&command)?))
}

fn manual(command: &clap::Command) -> std::io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let man = clap_mangen::Man::new(command.clone());
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_extra_section(&mut page)?;
    describe(command, "", &mut page)?;
    man.render_version_section(&mut page)?;
    Ok(page)
}

/// One section for each command that does something, below the nouns.
fn describe(command: &clap::Command, prefix: &str, page: &mut Vec<u8>) -> std::io::Result<()> {
    use std::io::Write;

    for command in command.get_subcommands() {
        if command.is_hide_set() || command.get_name() == "help" {
            continue;
        }
        let name = format!("{prefix}{}", command.get_name());
        if command.has_subcommands() {
            describe(command, &format!("{name} "), page)?;
            continue;
        }
        writeln!(page, ".SH \"{}\"", name.to_uppercase())?;
        let man = clap_mangen::Man::new(command.clone());
        for render in [
            clap_mangen::Man::render_synopsis_section,
            clap_mangen::Man::render_description_section,
            clap_mangen::Man::render_options_section,
            clap_mangen::Man::render_extra_section,
        ] {
            let mut section = Vec::new();
            render(&man, &mut section)?;
            page.extend(below(&String::from_utf8_lossy(&section)).bytes());
        }
    }
    Ok(())
}

/// A rendered section with its headings one level lower.
fn below(section: &str) -> String {
    section
        .split_inclusive('\n')
        .map(|line| match line.strip_prefix(".SH ") {
            Some(rest) => format!(".SS {rest}"),
            None => line.to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_describes_every_command() {
        let mut command = Cli::command();
        command.build();
        let page = String::from_utf8(manual(&command).expect("rendered")).expect("UTF-8");
        for name in ["SERVICE LIST", "FLOW FLUSH", "MAP DUMP", "COUNTERS"] {
            assert!(page.contains(&format!(".SH \"{name}\"")), "{name}\n{page}");
        }
        assert!(!page.contains("HELP"));
    }
}
