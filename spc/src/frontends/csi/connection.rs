//! Connections of clients that send the path of a Unix socket as `:authority`.
//!
//! kubelet did so before Kubernetes 1.26, and other clients still do. The HTTP/2 library refuses
//! requests whose `:authority` cannot be a host name. The value has no meaning on a Unix socket, so
//! it is replaced before the library reads it.

use std::io::Result;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::server::Connected;

/// Size of the connection preface of a client in bytes (RFC 9113, section 3.4).
const PREFACE_SIZE: usize = 24;

/// Size of the header of a frame in bytes.
const HEADER_SIZE: usize = 9;

/// Largest payload of a frame in bytes.
const MAX_FRAME: usize = 16384;

/// Type of the frame that begins a request.
const HEADERS: u8 = 1;

/// Flags of such a frame: the fields end with it, it is padded, it has a priority.
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 32;

/// Size of the priority in bytes.
const PRIORITY_SIZE: usize = 5;

/// Index of the name `:authority` in the static table (RFC 7541, appendix A).
const AUTHORITY: usize = 1;

/// Value that replaces the one of `:authority`, as a string of HPACK: length and text.
///
/// Only an empty value is shorter. So the server's dynamic table evicts no entry that the client's
/// still has, and the client's indices, which count from the newest entry, stay valid.
const REPLACEMENT: [u8; 2] = [1, b'x'];

/// Returns the stream of connections to a non-blocking socket.
///
/// # Errors
/// There is no runtime, or the socket is invalid.
pub fn incoming(
    listener: std::os::unix::net::UnixListener,
) -> Result<impl Stream<Item = Result<Connection>>> {
    let incoming = UnixListenerStream::new(UnixListener::from_std(listener)?);
    Ok(incoming.map(|stream| stream.map(Connection::new)))
}

/// Connection of a client. `:authority` is replaced in each of its requests.
pub struct Connection {
    stream: UnixStream,
    /// Bytes of an incomplete frame.
    held: Vec<u8>,
    /// Number of bytes to come that are passed on unread.
    unread: usize,
    /// Bytes for the server.
    ready: Vec<u8>,
}

impl Connection {
    /// Wraps a new connection.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            held: Vec::new(),
            unread: PREFACE_SIZE,
            ready: Vec::new(),
        }
    }

    /// Moves bytes of the client to those for the server, as far as their frames are complete.
    fn receive(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
        loop {
            let unread = self.unread.min(self.held.len());
            self.ready.extend(self.held.drain(..unread));
            self.unread -= unread;
            let [a, b, c, kind, flags, ..] = self.held[..] else {
                return;
            };
            let size = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            if kind != HEADERS
                || flags & END_HEADERS == 0
                || flags & PADDED != 0
                || size > MAX_FRAME
            {
                self.unread = HEADER_SIZE + size;
                continue;
            }
            let Some(frame) = self.held.get(..HEADER_SIZE + size) else {
                return;
            };
            let replaced = replace_authority(frame).unwrap_or_else(|| frame.to_vec());
            self.ready.extend(replaced);
            self.held.drain(..HEADER_SIZE + size);
        }
    }
}

/// Returns a frame of type HEADERS with another `:authority`, or none for a malformed one.
fn replace_authority(frame: &[u8]) -> Option<Vec<u8>> {
    let (header, payload) = frame.split_at_checked(HEADER_SIZE)?;
    let skipped = match header[4] & PRIORITY {
        0 => 0,
        _ => PRIORITY_SIZE,
    };
    let (priority, mut rest) = payload.split_at_checked(skipped)?;
    let mut fields = Vec::with_capacity(payload.len());
    while let Some(first) = rest.first() {
        let start = rest;
        // Representations of RFC 7541, section 6. Only a literal contains a value.
        let (is_literal, bits) = match first {
            // Indexed field.
            128.. => (false, 7),
            // Literal that is added to the dynamic table.
            64.. => (true, 6),
            // New size of the dynamic table.
            32.. => (false, 5),
            // Literal that is not added.
            _ => (true, 4),
        };
        let index = read_integer(&mut rest, bits)?;
        if is_literal && index == 0 {
            read_string(&mut rest)?;
        }
        let name = &start[..start.len() - rest.len()];
        fields.extend_from_slice(name);
        if is_literal {
            match read_string(&mut rest)? {
                // An empty value stays, because the replacement is longer.
                [_, _, ..] if index == AUTHORITY => fields.extend(REPLACEMENT),
                value => fields.extend_from_slice(value),
            }
        }
    }
    let size = (skipped + fields.len()).to_be_bytes();
    let [.., a, b, c] = size;
    Some([&[a, b, c], &header[3..], priority, &fields].concat())
}

/// Reads an integer whose prefix has `bits` bits (RFC 7541, section 5.1).
fn read_integer(rest: &mut &[u8], bits: u32) -> Option<usize> {
    let (first, mut left) = rest.split_first()?;
    let mask = (1 << bits) - 1;
    let mut number = usize::from(*first) & mask;
    if number == mask {
        for shift in [0, 7, 14, 21] {
            let (next, after) = left.split_first()?;
            left = after;
            number += usize::from(next & 127) << shift;
            if next & 128 == 0 {
                *rest = left;
                return Some(number);
            }
        }
        return None;
    }
    *rest = left;
    Some(number)
}

/// Reads a string, and returns it with its length (RFC 7541, section 5.2).
fn read_string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let start = *rest;
    let size = read_integer(rest, 7)?;
    *rest = rest.get(size..)?;
    Some(&start[..start.len() - rest.len()])
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        while self.ready.is_empty() {
            let mut space = [0; 4096];
            let mut read = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.receive(read.filled());
        }
        let size = buffer.remaining().min(self.ready.len());
        buffer.put_slice(&self.ready[..size]);
        self.ready.drain(..size);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let size = u8::try_from(payload.len()).unwrap();
        [&[0, 0, size, kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// Fields of a request: POST, a path, the authority as a literal with an index, te, and an own
    /// header.
    fn fields(authority: &[u8]) -> Vec<u8> {
        let size = u8::try_from(authority.len()).unwrap();
        let own = b"\x00\x04x-id\x02ab";
        [
            &[0x83, 0x44, 2],
            &b"/p"[..],
            &[0x41, size],
            authority,
            &[0x0f, 0x2f, 1],
            b"t",
            own,
        ]
        .concat()
    }

    fn receive(parts: &[&[u8]]) -> Vec<u8> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build();
        let _inside = runtime.as_ref().unwrap().enter();
        let mut connection = Connection::new(UnixStream::pair().unwrap().0);
        parts.iter().for_each(|part| connection.receive(part));
        connection.ready
    }

    #[test]
    fn a_path_as_authority_gets_another_name() {
        let preface = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let data = frame(0, 1, b"\x41\x04abcd");
        let request = |authority: &[u8], flags: u8, before: &[u8]| {
            frame(HEADERS, flags, &[before, &fields(authority)].concat())
        };
        let sent = |authority: &[u8]| {
            [
                &preface[..],
                &frame(4, 0, b""),
                &request(authority, END_HEADERS, b""),
                &data,
                &request(authority, END_HEADERS | PRIORITY, b"12345"),
                &data,
            ]
            .concat()
        };
        let (path, name) = (sent(b"/var/lib/kubelet/plugins/x/csi.sock"), sent(b"x"));
        assert_eq!(receive(&[&path]), name);
        assert_eq!(receive(&[&name]), name);
        for cut in 0..path.len() {
            let (one, other) = path.split_at(cut);
            assert_eq!(receive(&[one, other]), name, "{cut}");
        }
    }

    #[test]
    fn what_is_not_understood_passes_as_it_is() {
        let preface = [0; PREFACE_SIZE];
        for frame in [
            frame(HEADERS, 0, &fields(b"/path")),
            frame(HEADERS, END_HEADERS | PADDED, &fields(b"/path")),
            frame(HEADERS, END_HEADERS, b"\x41\x7f"),
            frame(
                HEADERS,
                END_HEADERS,
                b"\x41\x7f\xff\xff\xff\xff\xff\xff\xff\xff",
            ),
            frame(HEADERS, END_HEADERS, b"\x41\x00\x81"),
            frame(HEADERS, END_HEADERS | PRIORITY, b"123"),
            frame(HEADERS, END_HEADERS, b""),
        ] {
            let sent = [&preface[..], &frame].concat();
            assert_eq!(receive(&[&sent]), sent, "{frame:?}");
        }
    }
}
