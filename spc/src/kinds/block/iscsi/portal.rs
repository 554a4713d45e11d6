//! Portals: the address and port at which a target listens, and the request to probe one.

/// Address and port of a target.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Portal {
    pub(super) address: String,
    pub(super) port: u16,
}

impl Portal {
    /// Parses `ADDRESS[:PORT]` or `[IPV6][:PORT]`; the port is 3260 unless it is given.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (address, port) = if let Some(rest) = text.strip_prefix('[') {
            let (address, rest) = rest.split_once(']')?;
            (address, rest.strip_prefix(':'))
        } else {
            match text.split_once(':') {
                Some((_, port)) if port.contains(':') => (text, None),
                Some((address, port)) => (address, Some(port)),
                None => (text, None),
            }
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || ".:-_%".contains(c);
        if address.is_empty() || address.starts_with('-') || !address.chars().all(plain) {
            return None;
        }
        Some(Self {
            address: address.to_owned(),
            port: port.map_or(Some(3260), |port| port.parse().ok().filter(|p| *p != 0))?,
        })
    }

    /// Returns `ADDRESS:PORT`, with brackets around an IPv6 address.
    pub(super) fn text(&self) -> String {
        if self.address.contains(':') {
            format!("[{}]:{}", self.address, self.port)
        } else {
            format!("{}:{}", self.address, self.port)
        }
    }
}

/// Login request for a discovery session (RFC 7143, 11.12), under an initiator name that no target
/// knows. The login is not continued after the answer.
pub(super) const PROBE_REQUEST: [u8; 48 + LOGIN_KEYS.len()] = {
    let mut bytes = [0; 48 + LOGIN_KEYS.len()];
    // Immediate login request; transit from SecurityNegotiation to LoginOperationalNegotiation;
    // length of the data segment.
    (bytes[0], bytes[1], bytes[7]) = (0x43, 0x81, LOGIN_KEYS.len() as u8);
    // ISID of the type "random".
    bytes[8] = 0x80;
    let mut at = 0;
    while at < LOGIN_KEYS.len() {
        bytes[48 + at] = LOGIN_KEYS[at];
        at += 1;
    }
    bytes
};

/// Data segment of the login, padded to a multiple of four bytes.
const LOGIN_KEYS: &[u8; 88] =
    b"InitiatorName=iqn.2026-01.invalid.spc:who-answers\0SessionType=Discovery\0AuthMethod=None\0";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portals_have_an_address_and_a_port() {
        for (text, portal) in [
            ("a", "a:3260"),
            ("a:1", "a:1"),
            ("2001:db8::1", "[2001:db8::1]:3260"),
            ("[2001:db8::1]:1", "[2001:db8::1]:1"),
        ] {
            assert_eq!(Portal::parse(text).unwrap().text(), portal);
        }
    }

    #[test]
    fn the_probe_is_a_login_with_its_keys() {
        assert_eq!(PROBE_REQUEST[..8], [0x43, 0x81, 0, 0, 0, 0, 0, 88]);
        assert_eq!(PROBE_REQUEST[48..], LOGIN_KEYS[..]);
    }
}
