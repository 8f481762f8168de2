//! The network peer of the self-test: sends every frame back unchanged.
//!
//! It uses the stream protocol of passt and QEMU (a length, then the frame). The protocol is
//! symmetric, so sending every byte back is enough.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

const BUFFER: usize = 256 << 10;

/// Creates a connection; returns the peer's end and the network card's.
pub(super) fn pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    Ok((ours, theirs.into()))
}

/// Sends back every byte until the other end is closed.
pub(super) fn echo(mut stream: UnixStream) {
    let mut buffer = vec![0; BUFFER];
    // An error ends the loop, too: the guest reports the missing frames.
    while let Ok(count @ 1..) = read(&mut stream, &mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

fn read(stream: &mut UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
