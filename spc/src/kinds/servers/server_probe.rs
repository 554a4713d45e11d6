//! How it is seen whether a server of a kind answers: its port, and what is said to it.

/// What leads to an address of a name, at a port.
type Reach = fn(name: &str, address: &str, port: u16) -> Vec<String>;

/// How it is seen whether a server answers, and how a helper is led to it.
#[derive(Clone, Copy, Debug)]
pub struct ServerProbe {
    /// Its port.
    pub port: u16,
    /// Options that name another port; the first that is there counts.
    pub port_options: &'static [&'static str],
    /// What is said to it, so that it says anything; nothing where it speaks first.
    pub probe_request: &'static [u8],
    /// The helper takes the others as well, for when the first fails it.
    pub backups: bool,
    /// Options that name more servers, between colons.
    pub extra_servers_options: &'static [&'static str],
    /// The key of an option by which the helper tries for long, and its value for one try.
    pub once: Option<(&'static str, &'static str)>,
    /// Options that lead it to one of the addresses of a name; without it, the address takes the name's place.
    pub reach: Option<Reach>,
}

/// glusterd, which speaks Sun RPC.
pub(in crate::kinds) const GLUSTERD: ServerProbe = ServerProbe {
    port: 24007,
    port_options: &["server-port"],
    probe_request: &null_call(14_398_633, 2),
    backups: true,
    extra_servers_options: &["backup-volfile-servers", "backupvolfile-server"],
    once: None,
    reach: None,
};

/// A server of NFS.
pub(in crate::kinds) const NFSD: ServerProbe = ServerProbe {
    port: 2049,
    port_options: &["port"],
    probe_request: &null_call(100_003, 4),
    backups: false,
    extra_servers_options: &[],
    once: Some(("retry", "0")),
    reach: None,
};

/// A server of SMB.
pub(in crate::kinds) const SMBD: ServerProbe = ServerProbe {
    port: 445,
    port_options: &["port"],
    probe_request: &NEGOTIATE,
    backups: false,
    extra_servers_options: &[],
    once: None,
    // Its name may tell it which of several servers it is meant to be.
    reach: Some(|_, address, _| vec![format!("ip={address}")]),
};

/// sshd, which speaks first.
pub(in crate::kinds) const SSHD: ServerProbe = ServerProbe {
    port: 22,
    port_options: &["port", "Port"],
    probe_request: &[],
    backups: false,
    extra_servers_options: &[],
    once: None,
    // The key is known by the name.
    reach: Some(|name, address, port| {
        let alias = match port {
            22 => name.to_owned(),
            port => format!("[{name}]:{port}"),
        };
        vec![
            format!("HostName={address}"),
            format!("HostKeyAlias={alias}"),
        ]
    }),
};

/// A call of procedure 0, which does nothing, of a program of Sun RPC over TCP (RFC 5531).
const fn null_call(program: u32, version: u32) -> [u8; 44] {
    // A last fragment of 40 bytes: id, call, version 2 of RPC, no credentials, no verifier.
    let words = [
        0x8000_0028,
        0x7370_6300,
        0,
        2,
        program,
        version,
        0,
        0,
        0,
        0,
        0,
    ];
    let mut bytes = [0; 44];
    let mut at = 0;
    while at < bytes.len() {
        let word: u32 = words[at / 4];
        bytes[at] = word.to_be_bytes()[at % 4];
        at += 1;
    }
    bytes
}

/// Negotiate of SMB 2 (MS-SMB2 2.2.3), for the dialects 2.0.2 to 3.0.2.
const NEGOTIATE: [u8; 4 + 64 + 36 + 10] = {
    let mut bytes = [0; 4 + 64 + 36 + 10];
    // Places and bytes that are not zero; the length comes first, in network order, all others are little-endian.
    let set: [(usize, u8); 19] = [
        (3, 110),
        (4, 0xfe),
        (5, b'S'),
        (6, b'M'),
        (7, b'B'),
        (8, 64),
        // One credit.
        (18, 1),
        (68, 36),
        (70, 5),
        // Signing is possible.
        (72, 1),
        // Something for the client's id.
        (80, 1),
        (104, 0x02),
        (105, 0x02),
        (106, 0x10),
        (107, 0x02),
        (109, 0x03),
        (110, 0x02),
        (111, 0x03),
        // Filled up with one that was named already.
        (113, 0x03),
    ];
    let mut at = 0;
    while at < set.len() {
        bytes[set[at].0] = set[at].1;
        at += 1;
    }
    bytes
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hellos_are_whole() {
        let call = null_call(100_003, 4);
        assert_eq!(call[..4], [0x80, 0, 0, 40]);
        assert_eq!(call[16..20], 100_003_u32.to_be_bytes());
        assert_eq!(NEGOTIATE[4..8], *b"\xfeSMB");
        assert_eq!(NEGOTIATE[3] as usize, NEGOTIATE.len() - 4);
        // The dialects, in ascending order but for the last.
        assert_eq!(NEGOTIATE[104..], [2, 2, 0x10, 2, 0, 3, 2, 3, 0, 3]);
    }
}
