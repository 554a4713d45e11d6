//! Where targets listen, and what is said to see whether one does.

/// Where a target listens.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Portal {
    pub(super) address: String,
    pub(super) port: u16,
}

impl Portal {
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

    pub(super) fn text(&self) -> String {
        if self.address.contains(':') {
            format!("[{}]:{}", self.address, self.port)
        } else {
            format!("{}:{}", self.address, self.port)
        }
    }
}

/// What a portal is told so that it says something: a login for a discovery (RFC 7143, 11.12), by nobody. It is not gone on
/// with.
pub(super) const HELLO: [u8; 48 + WHO.len()] = {
    let mut bytes = [0; 48 + WHO.len()];
    // Login, at once; from the first phase to the second; the length of the text.
    (bytes[0], bytes[1], bytes[7]) = (0x43, 0x81, WHO.len() as u8);
    // An id of the session that is random, and anybody's.
    bytes[8] = 0x80;
    let mut at = 0;
    while at < WHO.len() {
        bytes[48 + at] = WHO[at];
        at += 1;
    }
    bytes
};

/// Filled up to whole words.
const WHO: &[u8; 88] =
    b"InitiatorName=iqn.2026-01.invalid.spc:who-answers\0SessionType=Discovery\0AuthMethod=None\0";
