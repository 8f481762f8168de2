//! Every framing that the driver can make: direct and indirect, small rings, data split at odd
//! offsets.

use splitring_devices::scsi::UnitConfig;
use splitring_virtio::driver::IndirectPolicy;
use splitring_virtio::spec::feature::{EVENT_IDX, INDIRECT_DESC};

use splitring_tests::scsi::{LUN, QueueSetup, ScsiGuest, ScsiImage, one};

#[test]
fn data_arrives_complete_with_every_framing() {
    let policies = [
        IndirectPolicy::Never,
        IndirectPolicy::Always,
        IndirectPolicy::Rfc,
        IndirectPolicy::Auto,
    ];
    let parts: [&[usize]; 4] = [&[], &[1], &[511, 1, 3], &[4096, 100]];
    for policy in policies {
        for mask in [
            u64::MAX,
            !INDIRECT_DESC,
            !EVENT_IDX,
            !(INDIRECT_DESC | EVENT_IDX),
        ] {
            for (size, parts) in [
                (256, parts[0]),
                (64, parts[2]),
                (256, parts[3]),
                (8, parts[0]),
            ] {
                let (_file, device) = one(ScsiImage::default(), UnitConfig::new("disk"));
                let setup = QueueSetup { size, mask, policy };
                let mut guest = ScsiGuest::with(device, setup);
                guest.settle();
                guest.parts = parts.to_vec();
                let blocks: u8 = if parts.len() > 2 { 8 } else { 64 };
                let data: Vec<u8> = (0..=252u8)
                    .cycle()
                    .take(usize::from(blocks) * 512)
                    .collect();
                let count = blocks;
                guest
                    .to(&[0x2a, 0, 0, 0, 0, 9, 0, 0, count, 0], &data, 0)
                    .expect_good();
                let back = guest
                    .to(&[0x28, 0, 0, 0, 0, 9, 0, 0, count, 0], &[], data.len())
                    .expect_good();
                assert!(back.data == data, "{setup:?} {parts:?}");
                assert_eq!(back.residual, 0);
            }
        }
    }
}

#[test]
fn buffers_longer_than_the_transfer_leave_a_residual() {
    let (_file, device) = one(ScsiImage::default(), UnitConfig::new("disk"));
    let mut guest = ScsiGuest::settled(device);
    let read = guest
        .to(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[], 2048)
        .expect_good();
    assert_eq!((read.residual, read.data.len()), (1536, 512));
    let write = guest
        .to(&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[7; 2048], 0)
        .expect_good();
    assert_eq!(write.residual, 1536);
    let inquiry = guest.to(&[0x12, 0, 0, 0, 36, 0], &[], 100).expect_good();
    assert_eq!((inquiry.residual, inquiry.data.len()), (64, 36));
    assert_eq!(guest.to(&[0; 6], &[], 512).expect_good().residual, 512);
}

#[test]
fn buffers_shorter_than_the_transfer_are_an_overrun() {
    let (_file, device) = one(ScsiImage::default(), UnitConfig::new("disk"));
    let mut guest = ScsiGuest::settled(device);
    let overrun = splitring_virtio::spec::scsi::response::OVERRUN;
    for (cdb, out, room) in [
        (&[0x28, 0, 0, 0, 0, 0, 0, 0, 2, 0][..], 0, 1023),
        (&[0x2a, 0, 0, 0, 0, 0, 0, 0, 2, 0], 1023, 0),
        (&[0x28, 0, 0, 0, 0, 0, 0, 0, 2, 0], 0, 0),
        (&[0x12, 0, 0, 0, 96, 0], 0, 95),
        (&[0x15, 0x10, 0, 0, 24, 0], 23, 0),
        (&[0x5f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0], 24, 0),
    ] {
        let answer = guest.to(cdb, &vec![1; out], room);
        assert_eq!(
            (answer.response, answer.data.len()),
            (overrun, 0),
            "{cdb:x?}"
        );
    }
    assert_eq!(
        guest
            .to(&[0x28, 0, 0, 0, 0, 0, 0, 0, 2, 0], &[], 1024)
            .expect_good()
            .data,
        [0; 1024]
    );
}

#[test]
fn many_commands_in_flight_on_several_queues() {
    let (_file, device) = {
        let image = ScsiImage::default();
        let file = image.file();
        let disk = image.open(&file);
        let config = splitring_devices::scsi::ScsiConfig::new("scsi0").queues(4);
        let device =
            splitring_devices::scsi::Scsi::new(&config, vec![(UnitConfig::new("disk"), disk)])
                .unwrap();
        (file, device)
    };
    let mut guest = ScsiGuest::settled(device);
    for round in 0..10u8 {
        let ids: Vec<u64> = (0..64u8)
            .map(|n| {
                guest.submit(
                    usize::from(n % 4),
                    LUN,
                    &[0x2a, 0, 0, 0, 0, n, 0, 0, 1, 0],
                    &[n ^ round; 512],
                    0,
                )
            })
            .collect();
        for id in ids {
            guest.wait(id).expect_good();
        }
        guest.machine.collect();
        let ids: Vec<u64> = (0..64u8)
            .map(|n| {
                guest.submit(
                    usize::from(n % 3),
                    LUN,
                    &[0x28, 0, 0, 0, 0, n, 0, 0, 1, 0],
                    &[],
                    512,
                )
            })
            .collect();
        for (n, id) in (0..64u8).zip(ids) {
            assert_eq!(guest.wait(id).expect_good().data, [n ^ round; 512]);
        }
        guest.machine.collect();
    }
}
