//! Copies at every offset and length.

use super::*;

#[test]
fn every_offset_and_length_copies_exactly_its_bytes() {
    let source: Vec<u8> = (0..64).collect();
    for offset in 0..17 {
        for len in 0..40 {
            let mut out = vec![0xaa; len];
            // SAFETY: offset + len is below 64.
            unsafe { from_guest(&mut out, source.as_ptr().add(offset)) };
            assert_eq!(out, source[offset..offset + len]);

            let mut target = vec![0xaa; 64];
            // SAFETY: offset + len is below 64.
            unsafe { to_guest(target.as_mut_ptr().add(offset), &out) };
            assert_eq!(target[offset..offset + len], out);
            assert!(target[..offset].iter().all(|b| *b == 0xaa));
            assert!(target[offset + len..].iter().all(|b| *b == 0xaa));
        }
    }
}
