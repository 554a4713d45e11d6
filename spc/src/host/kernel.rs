//! What the kernel can do.

use std::fs;

use super::Host;

/// Whether the kernel has a file system, or a module for it that can be loaded from the host.
pub fn has(host: &Host, name: &str) -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if is_listed(&known, name) {
        return true;
    }
    let release = rustix::system::uname();
    let directory = format!("/lib/modules/{}", release.release().to_string_lossy());
    let module = format!("/{}.ko", name);
    let look = move || {
        ["modules.builtin", "modules.dep"].iter().any(|list| {
            let list = fs::read_to_string(format!("{directory}/{list}")).unwrap_or_default();
            list.lines()
                .filter_map(|line| line.split(':').next())
                .any(|path| {
                    path.split_once(&module)
                        .is_some_and(|(_, end)| end.is_empty() || end.starts_with('.'))
                })
        })
    };
    // A host that cannot be entered is an error of the next step.
    host.run("looking for kernel modules", look)
        .unwrap_or(false)
}

/// By a table such as /proc/filesystems: `nodev NAME`, or a tabulator and the name.
fn is_listed(table: &str, name: &str) -> bool {
    table
        .lines()
        .filter_map(|line| line.split_whitespace().next_back())
        .any(|listed| listed == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_listed_by_its_whole_name() {
        let table = "nodev\tproc\n\text4\nnodev\tceph\n";
        assert!(is_listed(table, "ceph") && is_listed(table, "ext4"));
        assert!(!is_listed(table, "ext") && !is_listed(table, "nodev"));
    }
}
