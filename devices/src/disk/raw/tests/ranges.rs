//! Discards and zeroes.

use super::*;

#[test]
fn discards_free_blocks_and_zeroes_read_as_zeroes() {
    everywhere(|scratch, disk, stream| {
        let blocks = || fs::metadata(&scratch.config.path).expect("image").blocks();
        let data = pattern(1 << 20, 3);
        stream.poke(0, &data);
        let segments = [stream.segment(0, 1 << 20)];
        let fill = |stream: &mut Stream| {
            let write = DiskOp::Write {
                offset: 0,
                data: Data::Guest(&segments),
                fua: true,
            };
            assert_eq!(stream.run(write), Ok(1 << 20));
        };
        let read = |offset: u64, len: usize| {
            let mut bytes = vec![0; len];
            scratch
                .file()
                .read_exact_at(&mut bytes, offset)
                .expect("image");
            bytes
        };
        fill(stream);
        let full = blocks();
        if disk.geometry().discard.is_some() {
            assert_eq!(
                stream.run(DiskOp::Discard {
                    offset: 0,
                    len: 1 << 20,
                    fua: true
                }),
                Ok(0)
            );
            assert!(
                blocks() < full / 4,
                "{} of {full} blocks are left",
                blocks()
            );
        }
        for may_unmap in [true, false] {
            fill(stream);
            let zero = DiskOp::WriteZeroes {
                offset: 1536,
                len: (1 << 19) + 512,
                may_unmap,
                fua: true,
            };
            assert_eq!(stream.run(zero), Ok(0));
            assert!(read(1536, (1 << 19) + 512).iter().all(|byte| *byte == 0));
            assert!(read(0, 1536) == data[..1536], "in front of it");
            let end = 1536 + (1 << 19) + 512;
            assert!(
                read(u64::try_from(end).expect("small"), 4096) == data[end..end + 4096],
                "behind it"
            );
            assert_eq!(
                may_unmap && disk.geometry().discard.is_some(),
                blocks() < full,
                "unmapped"
            );
        }
        assert_eq!(scratch.file().metadata().expect("image").len(), LEN);
    });
}

#[test]
fn zeroes_are_written_where_the_host_can_not_zero_a_range() {
    everywhere(|scratch, disk, stream| {
        disk.image
            .no_zero_range
            .store(true, std::sync::atomic::Ordering::Relaxed);
        scratch
            .file()
            .write_all_at(&pattern(3 << 20, 1), 0)
            .expect("image");
        let zero = DiskOp::WriteZeroes {
            offset: 512,
            len: 2 << 20,
            may_unmap: false,
            fua: false,
        };
        assert_eq!(stream.run(zero), Ok(0));
        let mut bytes = vec![0; 3 << 20];
        scratch.file().read_exact_at(&mut bytes, 0).expect("image");
        assert!(bytes[512..512 + (2 << 20)].iter().all(|byte| *byte == 0));
        assert!(
            bytes[..512] == pattern(512, 1)
                && bytes[512 + (2 << 20)..] == pattern(3 << 20, 1)[512 + (2 << 20)..]
        );
    });
}
