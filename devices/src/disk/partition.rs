//! Which block size an image was partitioned with: its partition table says so, since its places
//! are numbers of blocks.

/// What a GPT header begins with, in block 1 (UEFI 2.10, section 5.3.2).
const SIGNATURE: &[u8] = b"EFI PART";
/// Where it has its own block number.
const MY_LBA: usize = 24;
/// Bytes of an image that tell.
pub(super) const HEAD: usize = 8192;

/// The size of the blocks that the GPT in the first bytes of an image counts in; `None` if there is
/// none.
pub(super) fn block_size(head: &[u8]) -> Option<u32> {
    // A table of small blocks overwrites a header at 4096 with its entries, but not the other way
    // round: of two headers the one at 512 is left over.
    [4096_u32, 512].into_iter().find(|block| {
        let at = usize::try_from(*block).unwrap_or(usize::MAX);
        head.get(at..).is_some_and(is_header)
    })
}

fn is_header(bytes: &[u8]) -> bool {
    let number = bytes.get(MY_LBA..).and_then(|rest| rest.first_chunk());
    bytes.starts_with(SIGNATURE) && number.map(|bytes| u64::from_le_bytes(*bytes)) == Some(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_the_header_tells_and_anything_else_does_not() {
        let image = |places: &[usize], number: u64| {
            let mut head = vec![0; HEAD];
            for place in places {
                head[*place..place + 8].copy_from_slice(SIGNATURE);
                head[place + MY_LBA..place + 32].copy_from_slice(&number.to_le_bytes());
            }
            head
        };
        assert_eq!(block_size(&image(&[512], 1)), Some(512));
        assert_eq!(block_size(&image(&[4096], 1)), Some(4096));
        assert_eq!(block_size(&image(&[512, 4096], 1)), Some(4096));
        assert_eq!(block_size(&image(&[1024, 2048], 1)), None);
        // A backup header at the end of a small partition, say.
        assert_eq!(block_size(&image(&[512], 99)), None);
        for len in [0, 8, 512, 519, 4096, 4120] {
            assert_eq!(block_size(&image(&[512, 4096], 1)[..len.min(530)]), None);
        }
    }
}
