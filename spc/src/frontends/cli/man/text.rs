//! What man pages say besides the definitions of the command line.

/// A section of a page.
pub struct Section {
    pub heading: &'static str,
    pub parts: &'static [Part],
}

/// A part of a section.
pub enum Part {
    /// A paragraph.
    Text(&'static str),
    /// A term and what it means.
    Item(&'static str, &'static str),
    /// Lines as they are typed.
    Lines(&'static str),
}

use Part::{Item, Lines, Text};

/// The commands that have sections of their own.
#[cfg(test)]
pub const NAMES: &[&str] = &[
    "spc",
    "mount",
    "umount",
    "ls",
    "doctor",
    "explain",
    "serve",
    "man",
    "completions",
];

/// The sections about a command.
pub fn sections(command: &str) -> &'static [Section] {
    match command {
        "spc" => SPC,
        "mount" => MOUNT,
        "umount" => UMOUNT,
        "ls" => LS,
        "doctor" => DOCTOR,
        "explain" => EXPLAIN,
        "serve" => SERVE,
        "man" => MAN,
        "completions" => COMPLETIONS,
        _ => &[],
    }
}

const EXIT_STATUS: Section = Section {
    heading: "EXIT STATUS",
    parts: &[
        Text("As of mount(8):"),
        Item("0", "success"),
        Item("1", "usage, or permission"),
        Item("2", "this container or host cannot do it"),
        Item("8", "stopped by a signal"),
        Item("32", "the mount or unmount failed"),
        Item("64", "of several targets, some failed"),
    ],
};

const ENVIRONMENT: Section = Section {
    heading: "ENVIRONMENT",
    parts: &[
        Item(
            "SPC_REQUEST",
            "The id of the request in logs: up to 64 letters, digits, dots, dashes and underscores. Without it one is made up. \
             Helpers and daemons have it in their environment.",
        ),
        Item(
            "JOURNAL_STREAM",
            "Set by systemd. Where it names standard error, log lines begin with their priority, as sd-daemon(3) has it.",
        ),
    ],
};

const SPC: &[Section] = &[
    Section {
        heading: "EXAMPLES",
        parts: &[Lines(
            "docker exec spc spc mount -t glusterfs 192.0.2.1:/vol /mnt/data\n\
                 docker exec spc spc ls\n\
                 docker exec spc spc umount /mnt/data",
        )],
    },
    EXIT_STATUS,
    ENVIRONMENT,
    Section {
        heading: "FILES",
        parts: &[
            Item(
                "/etc/spc/shim.conf",
                "Which mounts of the container's programs go to the host.",
            ),
            Item("/run/spc/mounts", "On the host: a record of each mount."),
            Item(
                "/run/spc/devices",
                "On the host: what is attached for mounts of iSCSI and RBD.",
            ),
        ],
    },
];

const MOUNT: &[Section] = &[
    Section {
        heading: "MOUNT OPTIONS",
        parts: &[
            Text(
                "A comma list, as mount(8) has it; a value may hold commas inside double quotes. What begins with x- is for spc, the rest is for the file system.",
            ),
            Item(
                "x-mount.mkdir[=MODE]",
                "Make the target, and what is missing above it.",
            ),
            Item(
                "x-spc.mkfs",
                "Make a file system on an attached disk, if it is blank in every respect.",
            ),
        ],
    },
    Section {
        heading: "SECRETS",
        parts: &[
            Text(
                "KEY is what the type calls the option: password for SMB and sshfs, secret for CephFS, passwd for s3fs. FROM is one of",
            ),
            Item(
                "file:PATH",
                "A file of the container; of the host below /host, if that is bound.",
            ),
            Item("env:NAME", "A variable of the environment."),
            Item("stdin", "Standard input."),
        ],
    },
    Section {
        heading: "EXAMPLES",
        parts: &[Lines(
            "spc mount -t glusterfs 192.0.2.1:/vol /mnt/data\n\
                 spc mount -o ro,vers=4.2 192.0.2.10:/export /mnt/nfs\n\
                 spc mount --secret password=stdin //192.0.2.12/share /mnt/smb <password\n\
                 spc mount -t ext4 iscsi:192.0.2.14/iqn.2026-01.example:disk/0 /mnt/disk",
        )],
    },
    EXIT_STATUS,
    ENVIRONMENT,
];

const UMOUNT: &[Section] = &[
    Section {
        heading: "EXAMPLES",
        parts: &[Lines("spc umount /mnt/data\nspc umount --all")],
    },
    EXIT_STATUS,
];

const LS: &[Section] = &[Section {
    heading: "STATES",
    parts: &[
        Item("ok", "It answers."),
        Item(
            "stale",
            "It answers with an error: its server or its daemon is gone.",
        ),
        Item("hung", "It does not answer."),
        Item("gone", "It is not mounted any more."),
        Item("busy", "A command is at work on it, or died at work."),
    ],
}];

const DOCTOR: &[Section] = &[
    Section {
        heading: "EXAMPLES",
        parts: &[Lines("spc doctor\nspc doctor --kind nfs --kind iscsi")],
    },
    Section {
        heading: "EXIT STATUS",
        parts: &[
            Item("0", "all is well"),
            Item("2", "a check failed; its hint says what to do"),
        ],
    },
];

const EXPLAIN: &[Section] = &[Section {
    heading: "EXAMPLES",
    parts: &[Lines("spc explain -t ceph 192.0.2.21:/ /mnt/ceph")],
}];

const SERVE: &[Section] = &[
    Section {
        heading: "LOG",
        parts: &[Text(
            "One line for each event, on standard error. Lines about a request have its id, request=ID, which the helper, \
             its daemon and `spc ls --json` have as well.",
        )],
    },
    ENVIRONMENT,
];

const MAN: &[Section] = &[Section {
    heading: "EXAMPLES",
    parts: &[Lines("docker exec spc spc man mount | man -l -")],
}];

const COMPLETIONS: &[Section] = &[Section {
    heading: "EXAMPLES",
    parts: &[
        Text("For the shell that is running, bash here:"),
        Lines("source <(spc completions bash)"),
    ],
}];

/// Of the page about the names that mount(8) calls: what comes before its options.
pub const HELPER_BEFORE: &[Section] = &[Section {
    heading: "DESCRIPTION",
    parts: &[
        Text(
            "Links of these names to spc make mount(8), umount(8), /etc/fstab and systemd's mount units work for file systems whose own programs \
             the host has not. What is asked for is done as by spc-mount(8) and spc-umount(8).",
        ),
        Text(
            "mount(8) runs mount.fuse for every type fuse.PROGRAM. Types that the kernel mounts by itself are reached as spc.TYPE; type spc alone is told \
             by the source.",
        ),
    ],
}];

/// And what comes after them.
pub const HELPER_AFTER: &[Section] = &[
    Section {
        heading: "EXAMPLES",
        parts: &[
            Lines("mount -t glusterfs 192.0.2.1:/vol /mnt/data\numount /mnt/data"),
            Text("A line of /etc/fstab:"),
            Lines("192.0.2.1:/vol /mnt/data glusterfs defaults,_netdev 0 0"),
        ],
    },
    EXIT_STATUS,
    ENVIRONMENT,
];
