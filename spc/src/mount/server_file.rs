//! Servers that a file names.

use std::io::Read;
use std::path::Path;

use crate::error::{Cause, Error, Result};
use crate::helper::option_files;
use crate::host::Host;
use crate::kinds;
use crate::kinds::servers::{self, SERVERS};
use crate::mount::Request;

/// The biggest file of servers.
const BIGGEST: u64 = 64 * 1024;

/// A request whose source names its servers itself: those in a file, as they are now, are put into it.
///
/// # Errors
/// The file cannot be read, or holds something else.
pub fn named(mut request: Request, host: &Host) -> Result<Request> {
    let Some(file) = request.options.value(SERVERS) else {
        return Ok(request);
    };
    let file = file.strip_prefix('@').unwrap_or(file).to_owned();
    let fail = |cause: Cause| {
        Error::usage(format!("cannot read servers from {file}"))
            .because(cause)
            .hint("a file has a server on each line; of the host's files, name those below /host")
    };
    let opened = option_files::open(Path::new(&file), host)?;
    let mut text = String::new();
    opened
        .and_then(|opened| {
            if !opened.metadata()?.is_file() {
                return Err(std::io::ErrorKind::InvalidInput.into());
            }
            opened.take(BIGGEST + 1).read_to_string(&mut text)
        })
        .map_err(|e| fail(e.into()))?;
    if text.len() as u64 > BIGGEST {
        return Err(fail(
            format!("it is bigger than {} KiB", BIGGEST / 1024).into(),
        ));
    }
    let more = servers::in_file(&text).map_err(|error| fail(error.summary().into()))?;
    request.source = kinds::with_servers(&request.fs_type, &request.source, &more)?;
    request.options = request.options.without(&[SERVERS]);
    Ok(request)
}
