//! Man page mount.spc(8), about the names that mount(8) and umount(8) call.

use clap::CommandFactory;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::error::{Error, Result};
use crate::frontends::cli::man::page::{
    HELPER_PAGE, MANUAL, NONE, Page, SECTION, add, see_also, source,
};
use crate::frontends::cli::man::text::{HELPER_AFTER, HELPER_BEFORE};
use crate::frontends::mount_helper::{MountHelper, UmountHelper};
use crate::kinds;

/// Returns the page, generated from the definitions of both helpers.
pub fn page() -> Result<Page> {
    let mut roff = Roff::new();
    let title = HELPER_PAGE.to_uppercase();
    roff.control("TH", [&title, SECTION, NONE, &source(), MANUAL]);
    roff.control("SH", ["NAME"]);
    roff.text([roman(format!(
        "{HELPER_PAGE} - spc as called by mount(8) under the name mount.TYPE and by umount(8) as umount.TYPE"
    ))]);
    roff.control("SH", ["SYNOPSIS"]);
    let mut text = roff.render().into_bytes();
    let helpers = [MountHelper::command(), UmountHelper::command()];
    let fail = |e: std::io::Error| Error::system("cannot make a man page").because(e);
    for helper in helpers.clone() {
        let mut part = Vec::new();
        Man::new(helper)
            .render_synopsis_section(&mut part)
            .map_err(fail)?;
        text.extend(without_heading(&part));
        text.extend(b".br\n");
    }
    let mut roff = Roff::new();
    for section in HELPER_BEFORE {
        add(&mut roff, section);
    }
    roff.control("SH", ["TYPES"]);
    roff.text([roman(kinds::names().collect::<Vec<_>>().join(", "))]);
    text.extend(roff.to_roff().into_bytes());
    for helper in helpers {
        let heading = format!("OPTIONS OF {}", helper.get_name().to_uppercase());
        let mut part = Vec::new();
        Man::new(helper)
            .render_options_section(&mut part)
            .map_err(fail)?;
        let mut roff = Roff::new();
        roff.control("SH", [heading.as_str()]);
        text.extend(roff.to_roff().into_bytes());
        text.extend(without_heading(&part));
    }
    let mut roff = Roff::new();
    for section in HELPER_AFTER {
        add(&mut roff, section);
    }
    see_also(
        &mut roff,
        &["spc".into(), "spc-mount".into(), "mount".into()],
    );
    text.extend(roff.to_roff().into_bytes());
    Ok(Page {
        name: HELPER_PAGE.to_owned(),
        text: String::from_utf8_lossy(&text).into_owned(),
    })
}

/// Returns the lines of a section after its heading.
fn without_heading(section: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(section);
    let lines = text
        .lines()
        .skip_while(|line| !line.starts_with(".SH"))
        .skip(1);
    lines
        .flat_map(|line| [line.as_bytes(), b"\n"].concat())
        .collect()
}
