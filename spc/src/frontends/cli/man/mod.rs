//! Man pages and completions, generated from the definitions of the command line.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Arg, Command, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::error::{Error, Result};
use crate::frontends::cli::man::page::{HELPER_PAGE, Page, SECTION, page};
use crate::frontends::cli::output;
use crate::kinds;

mod mount_helper;
pub mod page;
mod text;

/// Commands that print texts about the program itself.
#[derive(Debug, Subcommand)]
pub enum ManRequest {
    /// Print a man page; `spc man mount | man -l -` shows it
    Man {
        /// Name of a command, or mount.spc for the page about mount.TYPE; without it, the page
        /// about spc
        page: Option<String>,
    },
    /// Print the completions for a shell
    Completions {
        /// Name of the shell
        shell: ShellName,
    },
    /// Write all man pages and completions into a tree, where distributions install them
    #[command(hide = true)]
    Pages {
        /// Directory that becomes /usr/share
        share: PathBuf,
    },
}

/// Parser of a file system type. Accepts any word, and suggests the types of the table of kinds.
#[derive(Clone)]
pub struct Types;

impl TypedValueParser for Types {
    type Value = String;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> std::result::Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let whole = kinds::names().filter(|name| !name.ends_with('*'));
        Some(Box::new(whole.map(PossibleValue::new)))
    }
}

/// Shell with completions.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ShellName {
    /// Install as /usr/share/bash-completion/completions/spc
    Bash,
    /// Install as _spc in a directory of $fpath
    Zsh,
    /// Install as /usr/share/fish/vendor_completions.d/spc.fish
    Fish,
}

impl ShellName {
    /// Path below `/usr/share` at which distributions install the completions.
    fn file(self) -> &'static str {
        match self {
            Self::Bash => "bash-completion/completions/spc",
            Self::Zsh => "zsh/vendor-completions/_spc",
            Self::Fish => "fish/vendor_completions.d/spc.fish",
        }
    }

    fn generate(self, mut command: Command) -> Vec<u8> {
        let shell = match self {
            Self::Bash => Shell::Bash,
            Self::Zsh => Shell::Zsh,
            Self::Fish => Shell::Fish,
        };
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command, "spc", &mut text);
        text
    }
}

/// Prints or writes the requested texts about `command`, the definition of the command line.
///
/// # Errors
/// The page does not exist, or a text cannot be written.
pub fn run(request: &ManRequest, command: Command) -> Result<()> {
    let command = visible(&command);
    match request {
        ManRequest::Man { page } => {
            let name = page.as_deref().map_or_else(|| "spc".into(), full_name);
            let pages = pages(command)?;
            match pages.iter().find(|page| page.name == name) {
                Some(page) => output::print(&page.text),
                None => {
                    let names = pages.iter().map(|page| page.name.as_str());
                    Err(Error::usage(format!("no man page: {name}")).hint(format!(
                        "the pages are {}",
                        names.collect::<Vec<_>>().join(", ")
                    )))
                }
            }
        }
        ManRequest::Completions { shell } => {
            let text = shell.generate(command);
            output::print(&String::from_utf8_lossy(&text))
        }
        ManRequest::Pages { share } => write(share, command),
    }
}

/// Returns the full name of a page, such as `spc-mount` for `mount`.
fn full_name(page: &str) -> String {
    match page {
        "spc" | HELPER_PAGE => page.to_owned(),
        _ if page.starts_with("spc-") => page.to_owned(),
        _ => format!("spc-{page}"),
    }
}

/// Writes all completions and pages below `share`, the later `/usr/share`.
fn write(share: &Path, command: Command) -> Result<()> {
    let shells = ShellName::value_variants().iter();
    let mut files: Vec<(String, Vec<u8>)> = shells
        .map(|shell| (shell.file().to_owned(), shell.generate(command.clone())))
        .collect();
    let pages = pages(command)?.into_iter();
    files.extend(pages.map(|page| {
        let file = format!("man/man{SECTION}/{}.{SECTION}", page.name);
        (file, page.text.into_bytes())
    }));
    for (file, text) in files {
        let path = share.join(file);
        path.parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(&path, text))
            .map_err(|e| Error::system(format!("cannot write {}", path.display())).because(e))?;
    }
    Ok(())
}

/// Copies a command without hidden arguments and subcommands, which clap's generators would show.
fn visible(command: &Command) -> Command {
    let mut tree = Command::new(command.get_name().to_owned())
        .args(command.get_arguments().filter(|arg| !arg.is_hide_set()))
        .subcommand_required(command.is_subcommand_required_set())
        .subcommand_help_heading("COMMANDS")
        .disable_help_subcommand(true)
        .visible_aliases(command.get_visible_aliases().map(str::to_owned))
        .subcommands(
            command
                .get_subcommands()
                .filter(|sub| !sub.is_hide_set())
                .map(visible),
        );
    if let Some(about) = command.get_about() {
        tree = tree.about(about.clone());
    }
    if let Some(about) = command.get_long_about() {
        tree = tree.long_about(about.clone());
    }
    if let Some(version) = command.get_version() {
        tree = tree.version(version.to_owned());
    }
    tree
}

/// Returns all pages, the program's own page first.
fn pages(mut command: Command) -> Result<Vec<Page>> {
    command.build();
    let mut pages = Vec::new();
    add_pages(command, "spc", "", &mut pages)?;
    pages.push(mount_helper::page()?);
    Ok(pages)
}

/// Adds the page of a command, and the pages of its subcommands.
fn add_pages(command: Command, name: &str, parent: &str, pages: &mut Vec<Page>) -> Result<()> {
    let below: Vec<(String, Command)> = command
        .get_subcommands()
        .map(|sub| (format!("{name}-{}", sub.get_name()), sub.clone()))
        .collect();
    let mut see_also: Vec<String> = below.iter().map(|(name, _)| name.clone()).collect();
    if !parent.is_empty() {
        see_also.push(parent.to_owned());
    }
    see_also.push(HELPER_PAGE.to_owned());
    pages.push(page(
        command.display_name(name.to_owned()),
        name,
        &see_also,
    )?);
    for (sub, command) in below {
        add_pages(command, &sub, name, pages)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::frontends::cli::Cli;

    #[test]
    fn every_visible_command_has_a_page() {
        let command = Cli::command();
        let pages = pages(visible(&command)).unwrap();
        let mut subcommands = 0;
        for sub in command.get_subcommands() {
            subcommands += 1;
            let name = format!("spc-{}", sub.get_name());
            let page = pages.iter().find(|page| page.name == name);
            assert_eq!(page.is_some(), !sub.is_hide_set(), "{name}");
            let Some(page) = page else { continue };
            for part in ["NAME", "SYNOPSIS", "DESCRIPTION", "SEE ALSO"] {
                assert!(
                    page.text.contains(&format!("\n.SH \"{part}\"\n"))
                        || page.text.contains(&format!("\n.SH {part}\n")),
                    "{name}: no {part}"
                );
            }
            let options = sub.get_arguments().filter(|arg| !arg.is_hide_set());
            for option in options.filter_map(|arg| arg.get_long()) {
                let option = option.replace('-', "\\-");
                assert!(
                    page.text.contains(&format!("\\-\\-{option}")),
                    "{name}: no {option}"
                );
            }
        }
        assert!(subcommands > 5);
        assert!(
            pages
                .iter()
                .any(|page| page.name == "mount.spc" && page.text.contains("glusterfs, nfs"))
        );
    }

    #[test]
    fn additional_sections_belong_to_existing_commands() {
        let command = visible(&Cli::command());
        for name in text::NAMES {
            assert!(
                *name == "spc" || command.find_subcommand(name).is_some(),
                "{name}"
            );
        }
    }

    #[test]
    fn completions_offer_commands_and_types_but_nothing_hidden() {
        for shell in ShellName::value_variants() {
            let text = String::from_utf8(shell.generate(visible(&Cli::command()))).unwrap();
            for word in ["umount", "over-system-directory", "glusterfs"] {
                assert!(text.contains(word), "{shell:?}: no {word}");
            }
            assert!(!text.contains("first-data"), "{shell:?}");
        }
    }
}
