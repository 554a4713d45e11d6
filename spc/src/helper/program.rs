//! Finds a helper program, and how it is linked.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::error::{Cause, Error, Reason, Result};
use crate::host::confinement::{self, PROGRAM_DIRS};
use crate::kinds;

/// How a program is linked, which decides whether the shim can enter it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Linkage {
    /// Started by this ELF interpreter, which loads the shim.
    Dynamic(PathBuf),
    /// Nothing can be preloaded.
    Static,
}

/// A program that was found.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its file.
    pub path: PathBuf,
    /// Its linkage, or that of the interpreter its `#!` line leads to.
    pub linkage: Linkage,
}

pub(crate) fn find(names: &[String], fs_type: &str) -> Result<Program> {
    match confinement::program(names) {
        Some(path) => Ok(Program {
            linkage: linkage(&path, 4)?,
            path,
        }),
        None => {
            let names = names.join(", ");
            let known: Vec<_> = kinds::names().collect();
            Err(Error::mount(format!("cannot mount type {fs_type}: this container has no program {names}"))
                .reason_is(Reason::System)
                .hint(format!("install it in the image, or check the type; known without a helper of their own name: {}", known.join(", "))))
        }
    }
}

/// Reads a program's header; a `#!` line leads on to its interpreter (execve(2)).
fn linkage(path: &Path, depth: u8) -> Result<Linkage> {
    let fail = |cause: Cause| {
        Error::mount(format!("cannot run {}", path.display()))
            .because(cause)
            .hint("install the helper anew in the image")
    };
    let mut file = BufReader::new(File::open(path).map_err(|e| fail(e.into()))?);
    let head = file.fill_buf().map_err(|e| fail(e.into()))?;
    if head.starts_with(b"#!") {
        if depth == 0 {
            return Err(fail("too many interpreters".into()));
        }
        let mut line = Vec::new();
        file.take(256)
            .read_until(b'\n', &mut line)
            .map_err(|e| fail(e.into()))?;
        let line = String::from_utf8_lossy(&line[2..]).into_owned();
        let mut words = line.split_whitespace();
        let interpreter = words.next().unwrap_or_default();
        // env(1) finds the real one by name.
        let named = if interpreter.ends_with("/env") {
            words.next()
        } else {
            None
        };
        let next = match named {
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
    fn a_shell_is_dynamic_and_a_script_is_its_interpreter() {
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
