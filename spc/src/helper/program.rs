//! Finding a helper program, and how it is linked.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::error::{Cause, Error, Reason, Result};
use crate::host::confinement::{self, PROGRAM_DIRS};
use crate::kinds;

/// Linkage of a program, which decides whether the shim can be preloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Linkage {
    /// Started by this ELF interpreter, which preloads the shim.
    Dynamic(PathBuf),
    /// Statically linked: no library can be preloaded.
    Static,
}

/// Program file in the container.
#[derive(Clone, Debug)]
pub struct Program {
    /// Path of the program.
    pub path: PathBuf,
    /// Linkage of the program; for a script, of its interpreter.
    pub linkage: Linkage,
}

/// Finds the first of these programs that the container has.
///
/// # Errors
/// The container has none of them, or the program found cannot be executed.
pub(crate) fn find(names: &[String], fs_type: &str) -> Result<Program> {
    match confinement::find_program(names) {
        Some(path) => Ok(Program {
            linkage: linkage(&path, 4)?,
            path,
        }),
        None => {
            let names = names.join(", ");
            let known: Vec<_> = kinds::names().collect();
            Err(Error::mount(format!(
                "cannot mount type {fs_type}: this container has no program {names}"
            ))
            .reason_is(Reason::System)
            .hint(format!(
                "install it in the image, or check the type; types that spc knows: {}",
                known.join(", ")
            )))
        }
    }
}

/// Returns the linkage of a program, or of the interpreter in its `#!` line (execve(2)).
///
/// `depth` limits the number of interpreters that are followed.
fn linkage(path: &Path, depth: u8) -> Result<Linkage> {
    let fail = |cause: Cause| {
        Error::mount(format!("cannot run {}", path.display()))
            .because(cause)
            .hint("reinstall the helper in the image")
    };
    let mut file = BufReader::new(File::open(path).map_err(|e| fail(e.into()))?);
    let head = file.fill_buf().map_err(|e| fail(e.into()))?;
    if head.starts_with(b"#!") {
        if depth == 0 {
            return Err(fail("too many nested interpreters".into()));
        }
        let mut line = Vec::new();
        file.take(256)
            .read_until(b'\n', &mut line)
            .map_err(|e| fail(e.into()))?;
        let line = String::from_utf8_lossy(&line[2..]).into_owned();
        let mut words = line.split_whitespace();
        let interpreter = words.next().unwrap_or_default();
        // env(1) searches for the interpreter by name.
        let name = if interpreter.ends_with("/env") {
            words.next()
        } else {
            None
        };
        let next = match name {
            Some(name) => PROGRAM_DIRS
                .iter()
                .map(|dir| Path::new(dir).join(name))
                .find(|p| p.is_file()),
            None => Some(PathBuf::from(interpreter)),
        };
        return match next.filter(|p| p.is_file()) {
            Some(next) => linkage(&next, depth - 1),
            None => Err(fail(
                format!("its interpreter is missing: {interpreter}").into(),
            )),
        };
    }
    let file = file.into_inner();
    let mut elf = elf::ElfStream::<elf::endian::AnyEndian, _>::open_stream(file)
        .map_err(|_| fail("neither an ELF program nor a script".into()))?;
    let interp = elf
        .segments()
        .iter()
        .find(|s| s.p_type == elf::abi::PT_INTERP)
        .copied();
    let Some(interp) = interp else {
        return Ok(Linkage::Static);
    };
    let data = elf
        .segment_data(&interp)
        .map_err(|e| fail(e.to_string().into()))?;
    let text: Vec<u8> = data.iter().copied().take_while(|b| *b != 0).collect();
    Ok(Linkage::Dynamic(PathBuf::from(
        String::from_utf8_lossy(&text).into_owned(),
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linkage_of_a_script_is_that_of_its_interpreter() {
        assert!(matches!(
            linkage(Path::new("/bin/sh"), 4).unwrap(),
            Linkage::Dynamic(_)
        ));
        let dir = std::env::temp_dir().join(format!("spc-program-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let script = dir.join("helper");
        std::fs::write(&script, "#! /usr/bin/env sh\n").unwrap();
        assert!(matches!(linkage(&script, 4).unwrap(), Linkage::Dynamic(_)));
        std::fs::write(&script, "#!/no/such\n").unwrap();
        assert!(
            linkage(&script, 4)
                .unwrap_err()
                .to_string()
                .contains("/no/such")
        );
        std::fs::write(&script, "plain text").unwrap();
        assert!(linkage(&script, 4).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
