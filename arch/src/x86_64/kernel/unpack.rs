//! Decompression of the kernel in a bzImage.
//!
//! This module knows compression formats. It does not know what they contain. Output is capped;
//! allocations follow the size that the payload declares only up to that cap. Source: Linux
//! `arch/x86/boot/compressed/Makefile`: every format except gzip is followed by the unpacked size,
//! 32-bit little-endian; gzip itself ends with the same number.

use std::fmt;
use std::io::Read;

use liblzma::stream::{Action, Status, Stream};

/// Maximum size of an unpacked kernel: ten times a stock one.
pub(super) const MAX_UNPACKED: usize = 512 << 20;
/// Memory limit for xz: kernels are compressed with dictionaries of up to 128 MiB.
const XZ_MEMORY: u64 = 192 << 20;
/// Bytes of the size that follows the payload.
const TRAILER: usize = 4;

/// Compression format of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// RFC 1952.
    Gzip,
    /// LZ4 legacy frame.
    Lz4,
    /// RFC 8878.
    Zstd,
    /// LZMA2, usually with the x86 branch filter.
    Xz,
    /// LZMA alone.
    Lzma,
    /// Recognised, but left to the kernel's own decompressor.
    Bzip2,
    /// Recognised, but left to the kernel's own decompressor.
    Lzo,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Lzma => "lzma",
            Self::Bzip2 => "bzip2",
            Self::Lzo => "lzo",
        })
    }
}

const LZ4_MAGIC: u32 = 0x184c_2102;
/// Unpacked size of every block of a legacy frame except the last.
const LZ4_BLOCK: usize = 8 << 20;

const MAGICS: [(&[u8], Format); 7] = [
    (b"\x1f\x8b", Format::Gzip),
    (&LZ4_MAGIC.to_le_bytes(), Format::Lz4),
    (b"\x28\xb5\x2f\xfd", Format::Zstd),
    (b"\xfd7zXZ\0", Format::Xz),
    (b"\x5d\0\0", Format::Lzma),
    (b"BZh", Format::Bzip2),
    (b"\x89LZO", Format::Lzo),
];

/// Recognises a payload by its first bytes.
pub(super) fn recognise(payload: &[u8]) -> Option<Format> {
    MAGICS
        .iter()
        .find(|(magic, _)| payload.starts_with(magic))
        .map(|(_, format)| *format)
}

/// Why unpacking failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum UnpackError {
    /// The format, or a feature of it, is not supported here; the kernel's own decompressor may
    /// support it.
    Unsupported(String),
    /// The bytes are damaged, or unpack to more than they declare or than the cap.
    Corrupt(String),
}

impl UnpackError {
    fn corrupt(cause: impl fmt::Display) -> Self {
        Self::Corrupt(cause.to_string())
    }
}

/// Unpacks `payload`, which has the format `format` and is followed by its unpacked size.
pub(super) fn unpack(payload: &[u8], format: Format) -> Result<Vec<u8>, UnpackError> {
    let (packed, trailer) = payload
        .split_last_chunk::<TRAILER>()
        .ok_or_else(|| UnpackError::corrupt("it is empty"))?;
    let size = u32::from_le_bytes(*trailer) as usize;
    if size > MAX_UNPACKED {
        return Err(UnpackError::corrupt(format_args!(
            "it declares {size} bytes, more than any kernel"
        )));
    }
    match format {
        // The size is part of gzip's own trailer.
        Format::Gzip => gzip(payload, size),
        Format::Lz4 => lz4(packed, size),
        Format::Zstd => zstd(packed, size),
        Format::Xz => lzma(packed, size, Stream::new_stream_decoder(XZ_MEMORY, 0)),
        Format::Lzma => lzma(packed, size, Stream::new_lzma_decoder(XZ_MEMORY)),
        Format::Bzip2 | Format::Lzo => Err(UnpackError::Unsupported(format!(
            "{format} is not built in"
        ))),
    }
}

fn gzip(packed: &[u8], size: usize) -> Result<Vec<u8>, UnpackError> {
    let mut out = Vec::with_capacity(size);
    let mut limited = flate2::bufread::GzDecoder::new(packed).take(size as u64 + 1);
    limited
        .read_to_end(&mut out)
        .map_err(UnpackError::corrupt)?;
    if out.len() > size {
        return Err(too_long(size));
    }
    Ok(out)
}

fn zstd(packed: &[u8], size: usize) -> Result<Vec<u8>, UnpackError> {
    // In one call: the output itself is the window, where streaming would need another 128 MiB.
    let mut out = Vec::with_capacity(size);
    let mut decoder = ::zstd::bulk::Decompressor::new().map_err(UnpackError::corrupt)?;
    decoder
        .decompress_to_buffer(packed, &mut out)
        .map_err(UnpackError::corrupt)?;
    Ok(out)
}

fn lz4(packed: &[u8], size: usize) -> Result<Vec<u8>, UnpackError> {
    let mut out = vec![0; size];
    let mut filled = 0;
    let mut rest = packed;
    while let Some((word, after)) = rest.split_first_chunk() {
        let len = u32::from_le_bytes(*word);
        // Frames may follow one another; each starts with the magic in the place of a block's
        // length.
        if len == LZ4_MAGIC {
            rest = after;
            continue;
        }
        let block = after
            .get(..len as usize)
            .ok_or_else(|| UnpackError::corrupt("a block ends after the payload"))?;
        let end = size.min(filled + LZ4_BLOCK);
        filled += lz4_flex::block::decompress_into(block, &mut out[filled..end])
            .map_err(UnpackError::corrupt)?;
        rest = &after[block.len()..];
    }
    out.truncate(filled);
    Ok(out)
}

fn lzma(
    packed: &[u8],
    size: usize,
    stream: Result<Stream, liblzma::stream::Error>,
) -> Result<Vec<u8>, UnpackError> {
    let mut stream = stream.map_err(UnpackError::corrupt)?;
    // One byte more than declared, so that the decoder can see the end before the buffer is full.
    let mut out = Vec::with_capacity(size + 1);
    loop {
        let consumed = usize::try_from(stream.total_in()).map_err(UnpackError::corrupt)?;
        let before = (consumed, out.len());
        let status = stream
            .process_vec(&packed[consumed..], &mut out, Action::Finish)
            .map_err(|error| match error {
                liblzma::stream::Error::Options | liblzma::stream::Error::MemLimit => {
                    UnpackError::Unsupported(error.to_string())
                }
                _ => UnpackError::corrupt(error),
            })?;
        match status {
            Status::StreamEnd => break,
            _ if out.len() > size => return Err(too_long(size)),
            _ if before
                == (
                    usize::try_from(stream.total_in()).unwrap_or(consumed),
                    out.len(),
                ) =>
            {
                return Err(UnpackError::corrupt("it ends early"));
            }
            _ => {}
        }
    }
    if out.len() > size {
        return Err(too_long(size));
    }
    Ok(out)
}

fn too_long(size: usize) -> UnpackError {
    UnpackError::corrupt(format_args!(
        "it unpacks to more than the {size} bytes it declares"
    ))
}
