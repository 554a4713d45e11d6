//! Renders one man page.

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::error::{Error, Result};
use crate::frontends::cli::man::text::{Part, Section, sections};

/// Section of the manual: commands for system administration (man(1)).
pub(crate) const SECTION: &str = "8";

/// Name of the page about `mount.TYPE` and `umount.TYPE`.
pub(crate) const HELPER_PAGE: &str = "mount.spc";

/// Man page.
pub(crate) struct Page {
    /// Name without the section, such as `spc-mount`.
    pub(crate) name: String,
    /// Source text for man(1).
    pub(crate) text: String,
}

/// Renders the page of a command. `also` has the names of pages for its section SEE ALSO.
pub(crate) fn page(command: Command, name: &str, also: &[String]) -> Result<Page> {
    let own = sections(name.trim_start_matches("spc-"));
    let has_commands = command.has_subcommands();
    let man = Man::new(command)
        .title(name.to_uppercase())
        .section(SECTION)
        .date(NONE)
        .source(source())
        .manual(MANUAL);
    let mut text = Vec::new();
    let mut render = || -> std::io::Result<()> {
        man.render_title(&mut text)?;
        man.render_name_section(&mut text)?;
        man.render_synopsis_section(&mut text)?;
        man.render_description_section(&mut text)?;
        man.render_options_section(&mut text)?;
        if has_commands {
            man.render_subcommands_section(&mut text)?;
        }
        Ok(())
    };
    render().map_err(|e| Error::system(format!("cannot make {name}")).because(e))?;
    let mut roff = Roff::new();
    for section in own {
        add(&mut roff, section);
    }
    see_also(&mut roff, also);
    text.extend(roff.to_roff().into_bytes());
    Ok(Page {
        name: name.to_owned(),
        text: String::from_utf8_lossy(&text).into_owned(),
    })
}

/// Empty macro argument, for pages without a date.
pub(crate) const NONE: &str = "\"\"";

/// Name of the manual in the header of a page.
pub(crate) const MANUAL: &str = "System Administration";

/// Returns name and version of the program, for the footer of a page.
pub(crate) fn source() -> String {
    format!("spc {}", env!("CARGO_PKG_VERSION"))
}

/// Adds a section.
pub(crate) fn add(roff: &mut Roff, section: &Section) {
    roff.control("SH", [section.heading]);
    for (at, part) in section.parts.iter().enumerate() {
        match part {
            Part::Text(text) => {
                if at > 0 {
                    roff.control("PP", []);
                }
                roff.text([roman(*text)]);
            }
            Part::Item(term, text) => {
                roff.control("TP", []);
                roff.text([bold(*term)]);
                roff.text([roman(*text)]);
            }
            Part::Lines(lines) => {
                if at > 0 {
                    roff.control("PP", []);
                }
                roff.control("nf", []);
                for line in lines.lines() {
                    roff.text([bold(line)]);
                }
                roff.control("fi", []);
            }
        }
    }
}

/// Adds the section SEE ALSO with references to pages.
pub(crate) fn see_also(roff: &mut Roff, names: &[String]) {
    roff.control("SH", ["SEE ALSO"]);
    let mut line = Vec::new();
    for (at, name) in names.iter().enumerate() {
        let comma = if at == 0 { "" } else { ", " };
        line.extend([roman(comma), bold(name), roman(format!("({SECTION})"))]);
    }
    roff.text(line);
}
