//! Reports the mutations of the product that no test notices: `mutants [FILTER]`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;

fn main() -> Result<ExitCode> {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| checkout.join("target"));
    let filter = std::env::args().nth(1).unwrap_or_default();
    let survivors = lab::mutants::run(&checkout, &target, &filter)?;
    Ok(ExitCode::from(u8::from(survivors > 0)))
}
