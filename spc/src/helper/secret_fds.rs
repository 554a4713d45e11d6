//! How a program gets the secrets of its mount: in sealed files that are in memory only, and of
//! which it inherits the descriptors.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use crate::error::{Error, Result};
use crate::kinds::model::{SecretDelivery, SecretParam};
use crate::options::secrets::{Secret, Secrets};
use crate::sys;

/// The least number of a descriptor: shells use the small ones themselves.
const LEAST: i32 = 64;

/// The secrets for one run of one program.
#[derive(Debug)]
pub struct SecretFds<'a> {
    given: Vec<(&'a SecretParam, OwnedFd)>,
    /// Variables that the program is not to see.
    hidden: Vec<String>,
}

impl<'a> SecretFds<'a> {
    /// Puts those secrets that are there into files.
    ///
    /// # Errors
    /// The kernel refuses a file.
    pub fn prepare(passes: &'a [SecretParam], secrets: &Secrets) -> Result<Self> {
        let mut given = Vec::new();
        for pass in passes {
            if let Some(secret) = secrets.get(pass.key) {
                // Who is told a number reads to the end; mount.cifs takes a line break for a part of the password.
                let end = match pass.delivery {
                    SecretDelivery::FdEnv { .. } => "",
                    SecretDelivery::File { .. }
                    | SecretDelivery::Argument { .. }
                    | SecretDelivery::Stdin { .. } => "\n",
                };
                let file = in_memory(secret, end).map_err(|e| {
                    Error::system(format!("cannot hand over the secret {}", pass.key)).because(e)
                })?;
                given.push((pass, file));
            }
        }
        Ok(Self {
            given,
            hidden: secrets.variables().map(str::to_owned).collect(),
        })
    }

    /// The number of a secret's descriptor in the program.
    pub fn number(&self, key: &str) -> String {
        let found = self.given.iter().find(|(pass, _)| pass.key == key);
        found.map_or_else(String::new, |(_, file)| file.as_raw_fd().to_string())
    }

    /// Makes a command's program inherit them. Keep this until the command has been started.
    ///
    /// # Errors
    /// A descriptor cannot be duplicated.
    pub fn apply(&self, command: &mut Command) -> Result<()> {
        for name in &self.hidden {
            command.env_remove(name);
        }
        for (pass, file) in &self.given {
            match pass.delivery {
                SecretDelivery::FdEnv { variable } => {
                    command.env(variable, file.as_raw_fd().to_string());
                }
                SecretDelivery::Stdin { .. } => {
                    let file = file.try_clone().map_err(|e| {
                        Error::system(format!("cannot hand over the secret {}", pass.key))
                            .because(e)
                    })?;
                    command.stdin(Stdio::from(file));
                    // Its stdin is all it needs.
                    continue;
                }
                SecretDelivery::File { .. } | SecretDelivery::Argument { .. } => {}
            }
            sys::inherit(command, file.as_raw_fd());
        }
        Ok(())
    }
}

/// A sealed file with the secret and this after it, read from its beginning, that only root may open.
fn in_memory(secret: &Secret, end: &str) -> std::io::Result<OwnedFd> {
    let made = memfd_create("secret", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(rustix::io::fcntl_dupfd_cloexec(&made, LEAST)?);
    file.set_permissions(PermissionsExt::from_mode(0o600))?;
    file.write_all(format!("{}{end}", secret.expose()).as_bytes())?;
    file.rewind()?;
    let all = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&file, all)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(pass: SecretParam, script: impl Fn(&str) -> String) -> String {
        let mut secrets = Secrets::default();
        secrets.give(pass.key, "hunter2".into()).unwrap();
        let passes = [pass];
        let secret_fds = SecretFds::prepare(&passes, &secrets).unwrap();
        let mut command = Command::new("sh");
        command.arg("-c").arg(script(&secret_fds.number(pass.key)));
        command.stdin(Stdio::null());
        secret_fds.apply(&mut command).unwrap();
        let output = command.output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    #[test]
    fn a_program_and_what_it_starts_read_the_secret() {
        let how = SecretDelivery::File {
            option: "secretfile",
        };
        let pass = SecretParam {
            key: "secret",
            delivery: how,
        };
        let read = |n: &str| format!("cat /proc/self/fd/{n}; sh -c 'cat /proc/self/fd/{n}'");
        assert_eq!(output(pass, read), "hunter2\nhunter2\n");
        let how = SecretDelivery::FdEnv {
            variable: "PASSWD_FD",
        };
        let pass = SecretParam {
            key: "password",
            delivery: how,
        };
        let read = |_: &str| r#"cat "/proc/self/fd/$PASSWD_FD""#.into();
        assert_eq!(output(pass, read), "hunter2");
        let how = SecretDelivery::Stdin { option: None };
        let pass = SecretParam {
            key: "password",
            delivery: how,
        };
        assert_eq!(output(pass, |_| "cat".into()), "hunter2\n");
    }

    #[test]
    fn the_file_is_roots_and_cannot_be_changed() {
        let how = SecretDelivery::Argument {
            before: "--keyfile=",
        };
        let pass = SecretParam {
            key: "key",
            delivery: how,
        };
        let mode = |n: &str| format!("stat -Lc %a /proc/self/fd/{n}");
        assert_eq!(output(pass, mode), "600\n");
        let write =
            |n: &str| format!("exec 2>&-; echo x >>/proc/self/fd/{n}; cat /proc/self/fd/{n}");
        assert_eq!(output(pass, write), "hunter2\n");
    }
}
