//! Servers that are listed in a file.

use std::io::Read;
use std::path::Path;

use crate::error::{Cause, Error, Result};
use crate::helper::option_files;
use crate::host::Host;
use crate::kinds;
use crate::kinds::servers::{self, SERVERS};
use crate::mount::Request;

/// Largest file of servers, in bytes.
const MAX_SIZE: u64 = 64 * 1024;

/// Adds the servers from the file that an option names to the source of a request.
///
/// # Errors
/// The file cannot be read, is larger than 64 KiB, or is not a list of servers.
pub fn expand(mut request: Request, host: &Host) -> Result<Request> {
    let Some(file) = request.options.value(SERVERS) else {
        return Ok(request);
    };
    let file = file.strip_prefix('@').unwrap_or(file).to_owned();
    let fail = |cause: Cause| {
        Error::usage(format!("cannot read servers from {file}"))
            .because(cause)
            .hint(
                "the file must have one server per line; a file of the host is named as /host/PATH",
            )
    };
    let opened = option_files::open(Path::new(&file), host)?;
    let mut text = String::new();
    opened
        .and_then(|opened| {
            if !opened.metadata()?.is_file() {
                return Err(std::io::ErrorKind::InvalidInput.into());
            }
            opened.take(MAX_SIZE + 1).read_to_string(&mut text)
        })
        .map_err(|e| fail(e.into()))?;
    if text.len() as u64 > MAX_SIZE {
        return Err(fail(
            format!("it is larger than {} KiB", MAX_SIZE / 1024).into(),
        ));
    }
    let listed = servers::parse_file(&text).map_err(|error| fail(error.summary().into()))?;
    request.source = kinds::with_servers(&request.fs_type, &request.source, &listed)?;
    request.options = request.options.without(&[SERVERS]);
    Ok(request)
}
