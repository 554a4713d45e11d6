//! Edits settings in the record files of open-iscsi, so that secrets stay out of command lines.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::host::disk;

/// Sets lines `KEY = VALUE` in every file that matches a pattern, in place of lines with the same
/// key. The files become readable by root only.
///
/// # Errors
/// Fails with `ENOENT` if no file matches, or if a file cannot be written.
pub fn set(files: &[String], lines: &[(&str, Vec<u8>)]) -> io::Result<()> {
    let mut found = 0;
    for pattern in files {
        for file in disk::glob(Path::new("/"), pattern) {
            if file.is_file() {
                set_in(&file, lines)?;
                found += 1;
            }
        }
    }
    if found == 0 {
        return Err(io::Error::from_raw_os_error(libc::ENOENT));
    }
    Ok(())
}

/// Sets the lines in one file, before its `# END` line.
fn set_in(file: &Path, lines: &[(&str, Vec<u8>)]) -> io::Result<()> {
    let text = fs::read(file)?;
    let key_of = |line: &[u8]| -> Option<String> {
        let at = line.iter().position(|byte| *byte == b'=')?;
        Some(String::from_utf8_lossy(line[..at].trim_ascii()).into_owned())
    };
    let mut out = Vec::with_capacity(text.len());
    let mut added = false;
    let add = |out: &mut Vec<u8>| {
        for (key, value) in lines {
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(b" = ");
            out.extend_from_slice(value);
            out.push(b'\n');
        }
    };
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        if line.starts_with(b"# END") && !added {
            add(&mut out);
            added = true;
        }
        if !key_of(line).is_some_and(|key| lines.iter().any(|(known, _)| *known == key)) {
            out.extend_from_slice(line);
        }
    }
    if !added {
        add(&mut out);
    }
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".spc");
    // The temporary file looks like another record to open-iscsi, so its rename follows at once.
    let new = file.with_file_name(name);
    let mut to = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&new)?;
    to.write_all(&out)
        .and_then(|()| fs::rename(&new, file))
        .inspect_err(|_| {
            // The temporary file may hold secrets.
            let _ = fs::remove_file(&new);
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_replace_lines_with_the_same_key_and_only_root_can_read_them() {
        let dir = std::env::temp_dir().join(format!("spc-setting-{}", std::process::id()));
        fs::create_dir_all(dir.join("a")).unwrap();
        let file = dir.join("a/record");
        fs::write(
            &file,
            "# BEGIN RECORD\nnode.startup = automatic\nnode.name = x\n# END RECORD\n",
        )
        .unwrap();
        let pattern = format!("{}/*/record", dir.display());
        let lines = [
            ("node.startup", b"manual".to_vec()),
            ("node.session.auth.password", b"a = b".to_vec()),
        ];
        let missing = format!("{}/*/nothing", dir.display());
        set(&[missing.clone(), pattern], &lines).unwrap();
        assert_eq!(
            fs::read_to_string(&file).unwrap(),
            "# BEGIN RECORD\nnode.name = x\nnode.startup = manual\nnode.session.auth.password = a = b\n# END RECORD\n"
        );
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.join("a")).unwrap().count(), 1);
        assert!(set(&[missing], &lines).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }
}
