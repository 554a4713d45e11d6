//! Probes of servers: the port, the request that makes a server answer, and the options that make
//! a helper use the server that answered.

/// Returns the options that make a helper use one address of a server's name, at a port.
type AddressOptions = fn(name: &str, address: &str, port: u16) -> Vec<String>;

/// Probe of a server, and the options that make a helper use one server.
#[derive(Clone, Copy, Debug)]
pub struct ServerProbe {
    /// TCP port.
    pub port: u16,
    /// Options that name another port; the first that is given counts.
    pub port_options: &'static [&'static str],
    /// Bytes sent after connecting, to which any answer counts; empty if the server speaks first.
    pub probe_request: &'static [u8],
    /// Whether the helper takes several servers, and uses the others if the first fails.
    pub takes_backups: bool,
    /// Options with further servers, separated by colons.
    pub extra_servers_options: &'static [&'static str],
    /// Option, and its value, that limits a helper with retries to one attempt.
    pub single_attempt: Option<(&'static str, &'static str)>,
    /// Options for one address of a server's name. If there are none, the address replaces the
    /// name in the source.
    pub address_options: Option<AddressOptions>,
}

/// glusterd: a null call of the program Gluster handshake, 14398633, over Sun RPC.
pub(in crate::kinds) const GLUSTERD: ServerProbe = ServerProbe {
    port: 24007,
    port_options: &["server-port"],
    probe_request: &null_call(14_398_633, 2),
    takes_backups: true,
    extra_servers_options: &["backup-volfile-servers", "backupvolfile-server"],
    single_attempt: None,
    address_options: None,
};

/// NFS server: a null call of NFS version 4. A server that has only version 3 answers with an RPC
/// error, which is an answer.
pub(in crate::kinds) const NFSD: ServerProbe = ServerProbe {
    port: 2049,
    port_options: &["port"],
    probe_request: &null_call(100_003, 4),
    takes_backups: false,
    extra_servers_options: &[],
    single_attempt: Some(("retry", "0")),
    address_options: None,
};

/// SMB server: a negotiate request of SMB 2.
pub(in crate::kinds) const SMBD: ServerProbe = ServerProbe {
    port: 445,
    port_options: &["port"],
    probe_request: &NEGOTIATE,
    takes_backups: false,
    extra_servers_options: &[],
    single_attempt: None,
    // The name stays in the source, since a server may serve several names.
    address_options: Some(|_, address, _| vec![format!("ip={address}")]),
};

/// sshd, which sends its version first (RFC 4253, 4.2).
pub(in crate::kinds) const SSHD: ServerProbe = ServerProbe {
    port: 22,
    port_options: &["port", "Port"],
    probe_request: &[],
    takes_backups: false,
    extra_servers_options: &[],
    single_attempt: None,
    // ssh looks the host key up by the name, in known_hosts with the port unless it is 22.
    address_options: Some(|name, address, port| {
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

/// Builds a null call (procedure 0) of a Sun RPC program over TCP (RFC 5531, 9 and 11).
const fn null_call(program: u32, version: u32) -> [u8; 44] {
    // Record mark (last fragment, 40 bytes), xid, CALL, RPC version 2, program, version,
    // procedure 0, AUTH_NONE as credential and as verifier.
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

/// Negotiate request of SMB 2 (MS-SMB2, 2.2.3) for the dialects 2.0.2 to 3.0.2: the length in
/// four bytes, the header of 64, the request of 36, and five dialects.
const NEGOTIATE: [u8; 4 + 64 + 36 + 10] = {
    let mut bytes = [0; 4 + 64 + 36 + 10];
    // Offsets and values of the bytes that are not 0. The length is big-endian, all other fields
    // are little-endian.
    let set: [(usize, u8); 19] = [
        (3, 110),
        (4, 0xfe),
        (5, b'S'),
        (6, b'M'),
        (7, b'B'),
        (8, 64),
        // CreditRequest.
        (18, 1),
        (68, 36),
        (70, 5),
        // SMB2_NEGOTIATE_SIGNING_ENABLED.
        (72, 1),
        // ClientGuid: any value.
        (80, 1),
        (104, 0x02),
        (105, 0x02),
        (106, 0x10),
        (107, 0x02),
        (109, 0x03),
        (110, 0x02),
        (111, 0x03),
        // Filler: 3.0 again.
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
    fn probe_requests_are_well_formed() {
        let call = null_call(100_003, 4);
        assert_eq!(call[..4], [0x80, 0, 0, 40]);
        assert_eq!(call[16..20], 100_003_u32.to_be_bytes());
        assert_eq!(NEGOTIATE[4..8], *b"\xfeSMB");
        assert_eq!(NEGOTIATE[3] as usize, NEGOTIATE.len() - 4);
        // Dialects, little-endian; the last one is the filler.
        assert_eq!(NEGOTIATE[104..], [2, 2, 0x10, 2, 0, 3, 2, 3, 0, 3]);
    }
}
