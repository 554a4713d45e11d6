//! Sections of man pages that the definitions of the command line do not contain.

/// Section of a page.
pub struct Section {
    /// Heading, in capitals.
    pub heading: &'static str,
    /// Paragraphs, in their order.
    pub parts: &'static [Part],
}

/// Part of a section.
pub enum Part {
    /// Paragraph.
    Text(&'static str),
    /// Term and its explanation.
    Item(&'static str, &'static str),
    /// Lines to type, not filled.
    Lines(&'static str),
}

use Part::{Item, Lines, Text};

/// Commands with sections of their own.
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

/// Returns the additional sections for a command.
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
        Text("As in mount(8):"),
        Item("0", "success"),
        Item("1", "wrong usage or missing permission"),
        Item("2", "this container or host cannot do it"),
        Item("8", "interrupted by a signal"),
        Item("32", "the mount or unmount failed"),
        Item("64", "some of several targets failed"),
    ],
};

const ENVIRONMENT: Section = Section {
    heading: "ENVIRONMENT",
    parts: &[
        Item(
            "SPC_REQUEST",
            "Id of the request in logs: up to 64 letters, digits, dots, dashes and underscores. Without it, spc generates one. \
             Helpers and daemons inherit it.",
        ),
        Item(
            "JOURNAL_STREAM",
            "Set by systemd. If it names standard error, log lines begin with their priority, as described in sd-daemon(3).",
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
                "Selects the mount calls of the container's programs that are made on the host.",
            ),
            Item("/run/spc/mounts", "On the host: a record of each mount."),
            Item(
                "/run/spc/devices",
                "On the host: attached devices of iSCSI and RBD mounts.",
            ),
        ],
    },
];

const MOUNT: &[Section] = &[
    Section {
        heading: "MOUNT OPTIONS",
        parts: &[
            Text(
                "A list separated by commas, as in mount(8). A value may hold commas inside double quotes or after a backslash. Options that begin with x- or X- are for spc, others for the file system.",
            ),
            Item(
                "X-mount.mkdir[=MODE], x-mount.mkdir[=MODE]",
                "Create the target, and missing directories above it.",
            ),
            Item(
                "X-mount.subdir=DIR",
                "Mount this directory of the file system instead of its root.",
            ),
            Item(
                "X-mount.owner=, X-mount.group=, X-mount.mode=, X-mount.idmap=",
                "Change the mount before it is visible, as mount(8) does.",
            ),
            Item(
                "remount",
                "Change the options of the existing mount on TARGET.",
            ),
            Item(
                "x-spc.mkfs",
                "Create a file system on an attached disk, if the disk is completely blank.",
            ),
        ],
    },
    Section {
        heading: "SECRETS",
        parts: &[
            Text(
                "KEY is the name of the type's own option: password for SMB and sshfs, secret for CephFS, passwd for s3fs. FROM is one of",
            ),
            Item(
                "file:PATH",
                "A file in the container; files of the host are below /host, if that is bound.",
            ),
            Item("env:NAME", "An environment variable."),
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
        Item("ok", "The mount answers."),
        Item(
            "stale",
            "The mount answers with an error: its server or its daemon is gone.",
        ),
        Item("hung", "The mount does not answer."),
        Item("gone", "The mount is no longer in the host's mount table."),
        Item(
            "busy",
            "A command is working on the mount, or died before it had finished.",
        ),
    ],
}];

const DOCTOR: &[Section] = &[
    Section {
        heading: "EXAMPLES",
        parts: &[Lines(
            "spc doctor\nspc doctor --kind nfs --kind iscsi\nspc doctor --serve unix:/run/spc/metrics.sock",
        )],
    },
    Section {
        heading: "EXIT STATUS",
        parts: &[
            Item("0", "all checks passed"),
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
            "One line for each event, on standard error. Lines about a request contain its id as request=ID. The helper and \
             its daemon have the same id in their environment, and `spc ls --json` shows it.",
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
        Text("Loads the completions into a running bash:"),
        Lines("source <(spc completions bash)"),
    ],
}];

/// Sections of the page mount.spc(8) before its options.
pub const HELPER_BEFORE: &[Section] = &[Section {
    heading: "DESCRIPTION",
    parts: &[
        Text(
            "With links of these names to spc, mount(8), umount(8), /etc/fstab and systemd's mount units work for file systems whose own programs \
             the host lacks. Requests are handled as by spc-mount(8) and spc-umount(8).",
        ),
        Text(
            "mount(8) runs mount.fuse for every type fuse.PROGRAM. Use spc.TYPE for types that the kernel mounts by itself. For type spc, the source \
             determines the type.",
        ),
    ],
}];

/// Sections of the page mount.spc(8) after its options.
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
