//! Passing secrets to a helper: each in a sealed file in memory, whose descriptor the helper
//! inherits.

use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};

use rustix::fs::{SealFlags, fcntl_add_seals};

use crate::error::{Error, Result};
use crate::kinds::model::{SecretDelivery, SecretParam};
use crate::options::secrets::{Secret, Secrets};
use crate::process::memfd;
use crate::sys;

/// Lowest descriptor number for a secret, since shells use low numbers themselves.
const MIN_FD: i32 = 64;

/// Secrets for one run of one program.
#[derive(Debug)]
pub struct SecretFds<'a> {
    files: Vec<SecretFile<'a>>,
    /// Environment variables to remove, since they hold secrets.
    hidden_variables: Vec<String>,
}

/// Secret in a file in memory.
#[derive(Debug)]
struct SecretFile<'a> {
    param: &'a SecretParam,
    fd: OwnedFd,
}

impl<'a> SecretFds<'a> {
    /// Writes each parameter's secret, if the mount has it, to a file in memory.
    ///
    /// # Errors
    /// A file in memory cannot be created.
    pub fn prepare(params: &'a [SecretParam], secrets: &Secrets) -> Result<Self> {
        let mut files = Vec::new();
        for param in params {
            if let Some(secret) = secrets.get(param.key) {
                // mount.cifs reads the descriptor to its end, and a newline would become part of
                // the password.
                let end = match param.delivery {
                    SecretDelivery::FdEnv { .. } => "",
                    SecretDelivery::File { .. }
                    | SecretDelivery::Argument { .. }
                    | SecretDelivery::Stdin { .. } => "\n",
                };
                let fd = in_memory(secret, end).map_err(|e| {
                    Error::system(format!("cannot pass the secret {}", param.key)).because(e)
                })?;
                files.push(SecretFile { param, fd });
            }
        }
        Ok(Self {
            files,
            hidden_variables: secrets.variables().map(str::to_owned).collect(),
        })
    }

    /// Returns the descriptor number of a secret in the program; empty without such a secret.
    pub fn number(&self, key: &str) -> String {
        let found = self.files.iter().find(|file| file.param.key == key);
        found.map_or_else(String::new, |file| file.fd.as_raw_fd().to_string())
    }

    /// Makes a command inherit the descriptors. Keep `self` until the command has been started.
    ///
    /// # Errors
    /// A file descriptor cannot be duplicated.
    pub fn apply(&self, command: &mut Command) -> Result<()> {
        for name in &self.hidden_variables {
            command.env_remove(name);
        }
        for SecretFile { param, fd } in &self.files {
            match param.delivery {
                SecretDelivery::FdEnv { variable } => {
                    command.env(variable, fd.as_raw_fd().to_string());
                }
                SecretDelivery::Stdin { .. } => {
                    let fd = fd.try_clone().map_err(|e| {
                        Error::system(format!("cannot pass the secret {}", param.key)).because(e)
                    })?;
                    command.stdin(Stdio::from(fd));
                    // The program reads stdin, so it needs no other descriptor.
                    continue;
                }
                SecretDelivery::File { .. } | SecretDelivery::Argument { .. } => {}
            }
            sys::inherit_fd(command, fd.as_raw_fd());
        }
        Ok(())
    }
}

/// Returns a sealed file in memory with a secret followed by `end`, which only root may open.
fn in_memory(secret: &Secret, end: &str) -> std::io::Result<OwnedFd> {
    let text = format!("{}{end}", secret.expose());
    let made = memfd::create("secret", text.as_bytes())?;
    let file = rustix::io::fcntl_dupfd_cloexec(&made, MIN_FD)?;
    let all = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&file, all)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(param: SecretParam, script: impl Fn(&str) -> String) -> String {
        let mut secrets = Secrets::default();
        secrets.add_value(param.key, "hunter2".into()).unwrap();
        let params = [param];
        let secret_fds = SecretFds::prepare(&params, &secrets).unwrap();
        let mut command = Command::new("sh");
        command.arg("-c").arg(script(&secret_fds.number(param.key)));
        command.stdin(Stdio::null());
        secret_fds.apply(&mut command).unwrap();
        let output = command.output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    #[test]
    fn helper_and_its_children_read_the_secret() {
        let delivery = SecretDelivery::File {
            option: "secretfile",
        };
        let param = SecretParam {
            key: "secret",
            delivery,
        };
        let read = |n: &str| format!("cat /proc/self/fd/{n}; sh -c 'cat /proc/self/fd/{n}'");
        assert_eq!(output(param, read), "hunter2\nhunter2\n");
        let delivery = SecretDelivery::FdEnv {
            variable: "PASSWD_FD",
        };
        let param = SecretParam {
            key: "password",
            delivery,
        };
        let read = |_: &str| r#"cat "/proc/self/fd/$PASSWD_FD""#.into();
        assert_eq!(output(param, read), "hunter2");
        let delivery = SecretDelivery::Stdin { option: None };
        let param = SecretParam {
            key: "password",
            delivery,
        };
        assert_eq!(output(param, |_| "cat".into()), "hunter2\n");
    }

    #[test]
    fn secret_file_is_private_and_sealed() {
        let delivery = SecretDelivery::Argument {
            before: "--keyfile=",
        };
        let param = SecretParam {
            key: "key",
            delivery,
        };
        let mode = |n: &str| format!("stat -Lc %a /proc/self/fd/{n}");
        assert_eq!(output(param, mode), "600\n");
        let write =
            |n: &str| format!("exec 2>&-; echo x >>/proc/self/fd/{n}; cat /proc/self/fd/{n}");
        assert_eq!(output(param, write), "hunter2\n");
    }
}
