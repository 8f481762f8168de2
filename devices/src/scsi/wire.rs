//! Big-endian fields of CDBs, parameter lists and parameter data (SPC-4 §4.2).
//!
//! SCSI is big-endian throughout while virtio is little-endian; keeping the two in different modules keeps them
//! from being mixed up. Reads past the end give zero, which every parser here treats as "field not present":
//! lengths are judged before fields are.

/// Reads `N` bytes at `at`, zero-filled past the end.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    let end = at.saturating_add(N);
    if let (Some(from), true) = (bytes.get(at..end.min(bytes.len())), at <= bytes.len()) {
        for (to, from) in out.iter_mut().zip(from) {
            *to = *from;
        }
    }
    out
}

/// The byte at `at`.
pub(crate) fn u8_at(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

/// The 16-bit field at `at`.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

/// The 32-bit field at `at`.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

/// The 64-bit field at `at`.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

/// Parameter data being built front to back.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Bytes(Vec<u8>);

impl Bytes {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.slice(&value.to_be_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.slice(&value.to_be_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.slice(&value.to_be_bytes())
    }

    pub(crate) fn slice(&mut self, value: &[u8]) -> &mut Self {
        self.0.extend_from_slice(value);
        self
    }

    /// `count` zero bytes.
    pub(crate) fn zeros(&mut self, count: usize) -> &mut Self {
        self.0.resize(self.0.len().saturating_add(count), 0);
        self
    }

    /// ASCII text, cut or padded with spaces to `width` (SPC-4 §4.3.1: left-aligned, graphic codes only).
    pub(crate) fn text(&mut self, text: &str, width: usize) -> &mut Self {
        let printable = text.bytes().map(printable).chain(core::iter::repeat(b' '));
        self.0.extend(printable.take(width));
        self
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Overwrites the 8-bit field at `at`, usually a length known only at the end.
    pub(crate) fn patch_u8(&mut self, at: usize, value: u8) {
        if let Some(byte) = self.0.get_mut(at) {
            *byte = value;
        }
    }

    /// Overwrites the 16-bit field at `at`.
    pub(crate) fn patch_u16(&mut self, at: usize, value: u16) {
        for (offset, byte) in value.to_be_bytes().into_iter().enumerate() {
            self.patch_u8(at.saturating_add(offset), byte);
        }
    }

    /// Overwrites the 32-bit field at `at`.
    pub(crate) fn patch_u32(&mut self, at: usize, value: u32) {
        for (offset, byte) in value.to_be_bytes().into_iter().enumerate() {
            self.patch_u8(at.saturating_add(offset), byte);
        }
    }

    pub(crate) fn finish(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.0)
    }
}

/// Graphic codes 20h to 7Eh pass, the rest becomes an underscore.
pub(crate) fn printable(byte: u8) -> u8 {
    if (0x20..=0x7e).contains(&byte) {
        byte
    } else {
        b'_'
    }
}

/// A length as the 8-bit field that announces it, saturating.
pub(crate) fn len8(len: usize) -> u8 {
    u8::try_from(len).unwrap_or(u8::MAX)
}

/// A length as the 16-bit field that announces it, saturating.
pub(crate) fn len16(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

/// A length as the 32-bit field that announces it, saturating.
pub(crate) fn len32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_past_the_end_read_as_zero() {
        assert_eq!(u32_at(&[1, 2], 0), 0x0102_0000);
        assert_eq!(u32_at(&[1, 2], 2), 0);
        assert_eq!(u32_at(&[1, 2], usize::MAX), 0);
        assert_eq!(u64_at(&[0, 0, 0, 0, 0, 0, 0, 9], 0), 9);
        assert_eq!(u16_at(&[0xab, 0xcd], 0), 0xabcd);
    }

    #[test]
    fn text_is_padded_cut_and_made_printable() {
        let mut bytes = Bytes::new();
        bytes.text("a\u{7f}b", 4).text("longer", 3);
        assert_eq!(bytes.finish(), b"a_b lon");
    }
}
