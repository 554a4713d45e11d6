//! The mutations: mistakes that somebody could make, each with the tests that have to fail.

use super::Mutation;

const fn unit(
    file: &'static str,
    old: &'static str,
    new: &'static str,
    tests: &'static str,
) -> Mutation {
    Mutation {
        file,
        old,
        new,
        tests,
        root: false,
    }
}

/// For a mutation that only a root test notices.
const fn root(
    file: &'static str,
    old: &'static str,
    new: &'static str,
    tests: &'static str,
) -> Mutation {
    Mutation {
        file,
        old,
        new,
        tests,
        root: true,
    }
}

/// Each text `old` occurs once in its file. `cargo test -p spc-tests --lib mutants` checks that.
#[rustfmt::skip]
pub const MUTATIONS: &[Mutation] = &[
    // The shim: which calls go to the host, and where.
    unit("shim/src/policy.rs", "if flags & libc::MS_REMOUNT != 0 {", "if flags & libc::MS_REMOUNT == libc::MS_REMOUNT | libc::MS_BIND {", "mount_flags_are_tested"),
    unit("shim/src/policy.rs", "_ => same(fs_type, pattern),", "_ => strip(fs_type, pattern).is_some(),", "types_match_whole"),
    unit("shim/src/policy.rs", "if redirected_type && change == Change::New {", "if redirected_type {", "only_calls_that_the_settings_select"),
    unit("shim/src/policy.rs", "rest @ [b'/', ..] => Some(rest),", "rest => Some(rest),", "only_calls_that_the_settings_select"),
    unit("shim/src/policy.rs", "matches!(byte, b'0'..=b'9' | b'a'..=b'f')", "*byte != b'/'", "placeholders_are_recognised"),
    root("shim/src/host.rs", "let proved = if by_path != top {", "let proved = if false {", "calls_at_the_edges"),
    root("shim/src/host.rs", "as c_int | libc::UMOUNT_NOFOLLOW;", "as c_int;", "calls_at_the_edges"),
    root("shim/src/sys/process.rs", "libc::SYS_getuid", "libc::SYS_geteuid", "calls_at_the_edges"),
    unit("shim/src/text.rs", "            self.clear();\n        }\n    }\n\n    /// Replaces the content.", "        }\n    }\n\n    /// Replaces the content.", "a_text_beyond_its_capacity"),
    unit("shim/config/src/lib.rs", "return Some(ErrorKind::UnknownKey);", "return None;", "an_invalid_line_is_an_error"),
    unit("shim/config/src/lib.rs", "None if self.used == before => Some(ErrorKind::NoValue),", "", "an_invalid_line_is_an_error"),
    unit("shim/config/src/lib.rs", "if skip & 1 << key != 0 {", "if false && skip & 1 << key != 0 {", "a_key_replaces_the_built_in_values"),
    // The pipeline: requests, options, secrets, servers.
    unit("spc/src/mount/request.rs", "if self.source.starts_with('-') {", "if self.source.starts_with(\"--\") {", "invalid_request_is_refused"),
    unit("spc/src/mount/request.rs", "Ok(mode) if mode <= 0o7777 => Ok(Some(mode)),", "Ok(mode) => Ok(Some(mode)), Err(_) => Ok(None),", "invalid_request_is_refused"),
    unit("spc/src/mount/deadline.rs", "if !self.counts_slot_wait {", "if self.counts_slot_wait {", "time_in_the_queue_counts"),
    unit("spc/src/mount/failover.rs", "share.min(UNRESPONSIVE_LIMIT)", "share", "budget_leaves_time"),
    unit("spc/src/options/list.rs", "',' if !quoted && !is_escaped => add", "',' if !is_escaped => add", "a_comma_in_quotes"),
    unit("spc/src/options/list.rs", "if value.is_some() && is_secret(key) {", "if value.is_none() && is_secret(key) {", "secrets_are_removed"),
    unit("spc/src/error/place.rs", "\"--pid=host\" => \"hostPID: true\",", "", "options_of_an_engine"),
    unit("spc/src/host/mountinfo.rs", "digits.iter().all(|d| (b'0'..=b'7').contains(d))", "digits.iter().all(u8::is_ascii_digit)", "unescape_keeps"),
    unit("spc/src/host/cgroup_v1.rs", "(id != \"0\").then", "true.then", "only_hierarchies_of_version_1"),
    unit("spc/src/host/confinement.rs", "map.split_whitespace().eq([\"0\", \"0\", \"4294967295\"])", "map.split_whitespace().last() != Some(\"65536\")", "only_the_full_uid_map"),
    unit("spc/src/process/candidates.rs", "[\"system.slice\", name] | [name] => is_scope(name),", "[.., name] => is_scope(name),", "cgroups_of_spc_are_known"),
    // Repair, and what keeps a pod from ending.
    root("spc/src/repair/mod.rs", "        && !has_daemon()?\n", "", "a_daemon_that_lost_its_server_is_not_replaced"),
    unit("spc/src/daemon/repair_scheduler.rs", "let before = before.filter(|_| repaired);", "let before = before.filter(|_| !repaired);", "a_mount_whose_daemon_keeps_dying"),
    unit("spc/src/daemon/repair_scheduler.rs", "if mount.attempts < MAX_ATTEMPTS {\n                    let delay", "if mount.attempts <= MAX_ATTEMPTS {\n                    let delay", "a_mount_whose_repairs_fail"),
    unit("spc/src/daemon/backoff.rs", "Duration::from_secs(1 << doublings.min(6)).min(MAX_DELAY)", "Duration::from_secs(1 << doublings.min(6))", "delays_grow"),
    unit("spc/src/recovery/ended_pods.rs", "(is_start && !uid.is_empty()).then(|| plain(uid))", "is_start.then(|| uid.to_owned())", "pods_are_known"),
    unit("spc/src/options/repair_scope.rs", "Some(\"no\") => Ok(Self::No),", "Some(\"no\") => Ok(Self::Host),", "the_scope_is_the_host"),
    // Policy: what pods may have.
    unit("spc/src/volume/policy.rs", "_ if own => false,", "_ if own => true,", "volumes_that_reach_the_node"),
    unit("spc/src/volume/policy.rs", "|| \",\\\"'\".contains(c)", "", "volumes_that_reach_the_node"),
    unit("spc/src/volume/policy.rs", "\"ext4\" | \"xfs\" | \"auto\" =>", "\"auto\" =>", "every_kind_is_allowed"),
    unit("spc/src/volume/policy.rs", "authentication: Some((\"sec\", \"sys\")),", "", "group_of_a_pod"),
    unit("spc/src/kinds/nfs.rs", "input.options.values(\"sec\").find(is_kerberos)", "input.options.value(\"sec\").filter(is_kerberos)", "kerberos_and_bg"),
    root("spc/src/process/marks.rs", "partition(|p| groups.contains(&p.group));", "partition(|_| groups.is_empty() && false);", "many_marks_of_a_pod"),
    unit("spc/src/volume/policy.rs", "if group.parse::<u32>().is_err() {", "if group.is_empty() {", "group_of_a_pod"),
    unit("spc/src/volume/policy.rs", "needs: Some(\"size\"),", "", "volumes_that_reach_the_node"),
    root("spc/src/helper/sandbox/inside.rs", "drop_privileges(kept).map_err(fail)?;", "let _ = kept;", "a_server_of_a_pod_reaches"),
    root("spc/src/helper/sandbox/tree.rs", "set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID", "set: libc::MOUNT_ATTR_NOSUID", "a_server_of_a_pod_reaches"),
    unit("spc/src/volume/allowlist.rs", "owner == 0 && mode & 0o022 == 0", "owner == 0 && mode & 0o002 == 0", "a_file_that_others_can_write"),
    unit("spc/src/volume/allowlist.rs", "line.fs_type == fs_type && line.source == source", "source.starts_with(&line.source)", "a_line_allows_exactly_one"),
    unit("spc/src/volume/spec.rs", "group.is_some() && !policy.has_owners() && !read_only", "false", "a_group_is_refused"),
    unit("spc/src/frontends/kubelet/flexvolume/call.rs", "Reply::capabilities(driver != NO_FSGROUP)", "Reply::capabilities(true)", "calls_of_kubelet"),
    unit("spc/src/volume/paths.rs", "!matches!(part, Component::ParentDir | Component::CurDir)", "!matches!(part, Component::CurDir)", "relative_and_dotted"),
    unit("spc/src/volume/spec.rs", "if restricted {\n            policy.check_options", "if sandboxed && !restricted {\n            policy.check_options", "only_the_administrator"),
    unit("spc/src/frontends/csi/connection.rs", "if index == AUTHORITY", "if index == 0", "a_path_as_authority"),
    unit("spc/src/frontends/csi/job.rs", "(_, Reason::Dead) => Code::Unavailable,", "", "only_a_mount_that_may_be_left"),
    unit("spc/src/frontends/csi/validate.rs", "rest.is_empty() || rest.ends_with('.')", "true", "keys_of_kubernetes"),
    root("spc/src/frontends/csi/validate.rs", "if context.get(EPHEMERAL).is_some_and(|value| value == \"true\") {", "if request.staging_target_path.is_empty() {", "requests_are_checked_in_the_order"),
    unit("spc/src/provision/share.rs", "ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV", "ResolveFlags::BENEATH | ResolveFlags::NO_XDEV", "links_in_the_place_of_directories"),
    root("spc/src/provision/share.rs", "ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV", "ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS", "nothing_outside_of_a_removed_tree"),
    unit("spc/src/provision/task.rs", "Some(found) if found == *note => {}", "Some(found) if found.name == note.name => {}", "a_volume_is_made_once"),
    unit("spc/src/provision/task.rs", "if let Some(other) = notes::nested(share, directory)? {", "if let Some(other) = None::<String> {", "no_volume_is_inside_another"),
    unit("spc/src/provision/task.rs", "            // An interrupted call may have left a part of the volume.\n            remove(&trash, &key, deadline)?;\n", "", "the_next_call_continues"),
    unit("spc/src/provision/directory.rs", "&& name.starts_with(|first: char| first.is_ascii_alphanumeric())", "", "names_that_could_lead_elsewhere"),
    root("spc/src/frontends/csi/work.rs", "if wanted.access != SINGLE_WRITER {", "if true {", "a_repeated_call_changes_nothing"),
    root("spc/src/repair/mod.rs", "        recorded.follow(session, &record);\n", "", "a_dead_daemon_is_replaced_for_all_pods"),
    // Delivery: what kubelet asks, and what clusters get.
    unit("spc/src/daemon/health_check.rs", "\"200\" => Ok(body),", "\"200\" | \"503\" => Ok(body),", "only_the_status_200"),
    root("image/chart/templates/node.yaml", "      hostNetwork: true\n", "", "the_chart_is_the_bases"),
    root("image/kubernetes/examples/nfs.yaml", "      source: ", "      sources: ", "the_drivers_of_the_manifest_accept"),
    root("docs/kubernetes/migration.md", "      path: vol\n```\n\nThe servers", "      volume: vol\n```\n\nThe servers", "the_drivers_of_the_manifest_accept"),

    // Disks: nothing is formatted that may hold data.
    unit("spc/src/block/filesystem.rs", "Content::Nothing if in_use => Some(\"something on the host uses it\".into()),", "", "only_an_unused_device"),
    unit("spc/src/block/blank.rs", "if size == 0 {", "if false {", "only_zeros_are_blank"),
    unit("spc/src/block/blank.rs", "let mut samples = vec![(0, ENDS), (size - ENDS, size)];", "let mut samples = vec![(0, ENDS)];", "one_byte_at_either_end"),
    unit("spc/src/kinds/block/mod.rs", "8 => Ok(Content::Other(\"conflicting signatures\".into())),", "8 => Ok(Content::Nothing),", "content_is_read"),
    unit("spc/src/kinds/block/mod.rs", "matches!(code, 0 | 1)", "code & 4 == 0", "only_fsck_codes"),
    unit("spc/src/kinds/block/mod.rs", "if kind & 0x30 == 0 && !id.is_empty() {", "if !id.is_empty() {", "volume_ids_are_those"),
    unit("spc/src/block/node_record.rs", ".mode(0o600)", ".mode(0o644)", "settings_replace_lines"),
    // Installation: nothing of the host is replaced or removed.
    unit("spc/src/install/manifest.rs", "&& fs::read(path).is_ok_and(|bytes| hash_of(&bytes) == *hash)", "", "an_entry_recognises_its_path"),
    unit("spc/src/install/manifest.rs", "fs::read_link(path).is_ok_and(|link| link == *to)", "fs::read_link(path).is_ok()", "an_entry_recognises_its_path"),
    unit("spc/src/install/apply.rs", "} else if path.symlink_metadata().is_err() || known.is_some_and(|old| old.is_at(&path)) {", "} else if true {", "a_foreign_file_at_a_required_path"),
    unit("spc/src/install/layout.rs", "if target.as_ref() != Some(&location.program)", "if false", "an_extension_does_not_hide"),
    unit("spc/src/install/version.rs", "numbers(a).cmp(&numbers(b))", "a.cmp(b)", "versions_are_compared"),
    unit("spc/src/install/kubelet.rs", "matches!(&*name, \"kubelet\" | \"kubelet (deleted)\")", "name == \"kubelet\"", "two_kubelets_are_an_error"),
    unit("spc/src/frontends/argv0.rs", "&& driver == name", "", "program_names_select"),
    // What pods, their servers and other users may not do.
    root("spc/src/helper/sandbox/inside.rs", "    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(fail)?;\n", "", "a_helper_that_was_taken_over"),
    root("spc/src/helper/sandbox/inside.rs", "filter.rule_for_flags(number, argument, special, refused);", "let _ = (number, argument);", "a_helper_that_was_taken_over"),
    root("spc/src/helper/sandbox/inside.rs", "filter.rule_unless(libc::SYS_socket, &families, absent);", "let _ = families;", "a_helper_that_was_taken_over"),
    unit("spc/src/kinds/block/rbd.rs", "input.secrets.has(\"secret\") && input", "false && input", "a_key_that_is_given_excludes"),
    unit("spc/src/host/service.rs", "|peer| peer.uid.is_root()", "|_| true", "a_socket_of_another_user"),
    unit("spc/src/volume/policy.rs", "(\"xprtsec\", Some(\"mtls\"))", "(\"xprtsec\", Some(\"\"))", "volumes_that_reach_the_node"),
    root("spc/src/host/namespace.rs", "if has_other_first_process() {", "if false {", "a_caller_elsewhere"),
];
