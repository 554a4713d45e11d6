//! Renders one man page.

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::error::{Error, Result};
use crate::frontends::cli::man::text::{Part, Section, sections};

/// The manual's section: programs of administrators.
pub(crate) const SECTION: &str = "8";

/// The page about `mount.TYPE` and `umount.TYPE`.
pub(crate) const HELPER_PAGE: &str = "mount.spc";

pub(crate) struct Page {
    pub(crate) name: String,
    pub(crate) text: String,
}

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

/// An argument that is empty; a page of no date.
pub(crate) const NONE: &str = "\"\"";

pub(crate) const MANUAL: &str = "System Administration";

pub(crate) fn source() -> String {
    format!("spc {}", env!("CARGO_PKG_VERSION"))
}

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

pub(crate) fn see_also(roff: &mut Roff, names: &[String]) {
    roff.control("SH", ["SEE ALSO"]);
    let mut line = Vec::new();
    for (at, name) in names.iter().enumerate() {
        let comma = if at == 0 { "" } else { ", " };
        line.extend([roman(comma), bold(name), roman(format!("({SECTION})"))]);
    }
    roff.text(line);
}
