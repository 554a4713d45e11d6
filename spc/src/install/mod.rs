//! The host's side: what makes mount(8), systemd, kubelet and people find the launcher, with nothing else installed.
//!
//! Everything in here but the two commands works on a tree, which is `/` on the host and a temporary one in tests.

mod apply;
mod extension;
mod kubelet;
mod layout;
mod manifest;
mod names;
mod place;
mod version;

use std::path::{Path, PathBuf};

/// A path of the host whose root is at `root`.
fn below(root: &Path, path: impl AsRef<Path>) -> PathBuf {
    let path = path.as_ref();
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    /// A host's tree, empty at first.
    pub struct Tree(PathBuf);

    impl Tree {
        pub fn new(name: &str) -> Self {
            let name = format!("spc-install-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            // A run that was killed may have left it.
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).unwrap();
            Self(path.canonicalize().unwrap())
        }

        pub fn path(&self) -> &Path {
            &self.0
        }

        pub fn write(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        pub fn read(&self, path: &str) -> String {
            fs::read_to_string(self.0.join(path)).unwrap()
        }

        /// Every path of it, with what links lead to.
        pub fn listing(&self) -> Vec<String> {
            let mut all = Vec::new();
            let mut todo = vec![self.0.clone()];
            while let Some(dir) = todo.pop() {
                for entry in fs::read_dir(dir).unwrap() {
                    let path = entry.unwrap().path();
                    all.push(format!("{path:?} {:?}", fs::read_link(&path).ok()));
                    if path.symlink_metadata().unwrap().is_dir() {
                        todo.push(path);
                    }
                }
            }
            all.sort();
            all
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            // What is left is in the system's directory for temporary files.
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}
