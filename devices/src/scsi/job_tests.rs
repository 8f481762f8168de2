//! Jobs against a disk that is a vector.
#![allow(
    clippy::cast_possible_truncation,
    reason = "the tests' own numbers are small"
)]

use super::*;

struct Out(Vec<u8>);

impl DataOut for Out {
    fn copy(&self, start: u64, out: &mut [u8]) -> bool {
        let start = usize::try_from(start).unwrap();
        self.0
            .get(start..start + out.len())
            .map(|from| out.copy_from_slice(from))
            .is_some()
    }
}

/// Runs a job to its end; returns its status and how many requests it made.
fn run(mut job: Job, disk: &mut [u8], data: Vec<u8>) -> (Status, usize) {
    let out = Out(data);
    let mut step = job.begin(&out);
    let mut count = 0;
    loop {
        let op = match step {
            Step::Done(status) => return (status, count),
            Step::Op(op) => op,
        };
        count += 1;
        let mut buffer = None;
        let range = |offset: u64, len: u64| offset as usize..(offset + len) as usize;
        match op {
            Op::Read { .. } | Op::Flush => {}
            Op::Write {
                offset, start, len, ..
            } => {
                assert!(out.copy(start, &mut disk[range(offset, len)]));
            }
            Op::ReadHost {
                offset,
                buffer: mut into,
            } => {
                assert!(into.len() as u64 <= CHUNK);
                let from = range(offset, into.len() as u64);
                into.copy_from_slice(&disk[from]);
                buffer = Some(into);
            }
            Op::WriteHost {
                offset,
                buffer: from,
                ..
            } => {
                assert!(from.len() as u64 <= CHUNK);
                disk[range(offset, from.len() as u64)].copy_from_slice(&from);
                buffer = Some(from);
            }
            Op::Zeroes { offset, len, .. } | Op::Discard { offset, len, .. } => {
                disk[range(offset, len)].fill(0);
            }
        }
        step = job.resume(
            Done {
                result: Ok(0),
                buffer,
            },
            &out,
        );
    }
}

const LONG: u64 = 2 * CHUNK + 512;

fn pattern(len: u64, salt: u8) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8 ^ salt).collect()
}

#[test]
fn verify_compares_chunk_by_chunk_and_says_where_it_differs() {
    let mut disk = pattern(LONG, 0);
    let walk = Walk::new(0, LONG, 512);
    let verify = || Job::Verify(walk, Check::Bytes);
    assert_eq!(
        run(verify(), &mut disk, pattern(LONG, 0)),
        (Status::Good, 3)
    );
    let mut wrong = pattern(LONG, 0);
    let at = usize::try_from(CHUNK + 77).unwrap();
    wrong[at] ^= 1;
    let expected = Sense::MISCOMPARE.with_information(CHUNK + 77).into();
    assert_eq!(run(verify(), &mut disk, wrong), (expected, 2));
    assert_eq!(
        run(Job::Verify(walk, Check::Medium), &mut disk, vec![]),
        (Status::Good, 3)
    );
}

#[test]
fn verify_with_one_block_compares_each_block_with_it() {
    let mut disk = pattern(512, 9).repeat(4);
    let job = || Job::Verify(Walk::new(0, 2048, 512), Check::OneBlock);
    assert_eq!(run(job(), &mut disk, pattern(512, 9)).0, Status::Good);
    disk[1024 + 5] ^= 1;
    let expected = Sense::MISCOMPARE.with_information(5).into();
    assert_eq!(run(job(), &mut disk, pattern(512, 9)).0, expected);
}

#[test]
fn compare_and_write_writes_only_after_comparing_everything() {
    let old = pattern(LONG, 1);
    let new = pattern(LONG, 2);
    let job = || Job::CompareAndWrite {
        walk: Walk::new(0, LONG, 512),
        fua: false,
        matched: false,
    };
    let mut disk = old.clone();
    assert_eq!(
        run(job(), &mut disk, [old.clone(), new.clone()].concat()),
        (Status::Good, 4)
    );
    assert_eq!(disk, new);
    let (status, _) = run(job(), &mut disk, [old, pattern(LONG, 3)].concat());
    assert_eq!(status, Sense::MISCOMPARE.with_information(0).into());
    assert_eq!(disk, new);
}

#[test]
fn orwrite_merges() {
    let mut disk = vec![0x0f; usize::try_from(LONG).unwrap()];
    let job = Job::OrWrite {
        walk: Walk::new(0, LONG, 512),
        fua: false,
        writing: false,
    };
    assert_eq!(
        run(job, &mut disk, vec![0x50; usize::try_from(LONG).unwrap()]),
        (Status::Good, 6)
    );
    assert!(disk.iter().all(|byte| *byte == 0x5f));
}

#[test]
fn write_and_verify_reads_back_what_it_wrote() {
    let mut disk = vec![0; usize::try_from(LONG).unwrap()];
    let job = Job::WriteAndVerify(Walk::new(0, LONG, 512), Check::Bytes);
    assert_eq!(run(job, &mut disk, pattern(LONG, 4)), (Status::Good, 4));
    assert_eq!(disk, pattern(LONG, 4));
}

#[test]
fn write_same_repeats_its_block_and_zeroes_in_one_request() {
    let mut disk = pattern(LONG, 0);
    assert_eq!(
        run(
            Job::Same(Same::new(0, LONG, 512)),
            &mut disk,
            pattern(512, 7)
        ),
        (Status::Good, 3)
    );
    assert!(disk.chunks(512).all(|block| block == pattern(512, 7)));
    let unmapping = Same {
        unmap: true,
        ..Same::new(0, LONG, 512)
    };
    assert_eq!(
        run(Job::Same(unmapping), &mut disk, pattern(512, 8)).1,
        3,
        "data that is not zero is written"
    );
    assert_eq!(
        run(
            Job::Same(Same::new(512, LONG - 512, 512)),
            &mut disk,
            vec![0; 512]
        ),
        (Status::Good, 1)
    );
    assert!(disk[512..].iter().all(|byte| *byte == 0) && disk[..512] == pattern(512, 8)[..]);
    let none = Same {
        data: false,
        ..Same::new(0, LONG, 512)
    };
    assert_eq!(run(Job::Same(none), &mut disk, vec![]), (Status::Good, 1));
}

#[test]
fn nothing_to_do_is_good_without_a_request() {
    let walk = Walk::new(0, 0, 512);
    for job in [
        Job::Read { offset: 0, len: 0 },
        Job::Write {
            offset: 0,
            len: 0,
            fua: true,
        },
        Job::Unmap {
            ranges: vec![],
            fua: false,
        },
        Job::Verify(walk, Check::Bytes),
        Job::WriteAndVerify(walk, Check::Bytes),
        Job::OrWrite {
            walk,
            fua: false,
            writing: false,
        },
    ] {
        assert_eq!(run(job, &mut [], vec![]), (Status::Good, 0));
    }
}

#[test]
fn faults_become_the_sense_of_what_was_tried() {
    let fail = |job: Job, fault| match job.failed(fault) {
        Status::Check(sense) => sense,
        other => panic!("{other:?}"),
    };
    let read = || Job::Read {
        offset: 0,
        len: 512,
    };
    let write = || Job::Write {
        offset: 0,
        len: 512,
        fua: false,
    };
    assert_eq!(fail(read(), IoFault::Host(5)), Sense::READ_ERROR);
    assert_eq!(fail(write(), IoFault::Host(5)), Sense::WRITE_ERROR);
    assert_eq!(fail(write(), IoFault::NoSpace), Sense::NO_SPACE);
    assert_eq!(fail(Job::Flush, IoFault::FlushLost), Sense::WRITE_ERROR);
    assert_eq!(fail(read(), IoFault::OutOfRange), Sense::LBA_OUT_OF_RANGE);
    assert_eq!(fail(write(), IoFault::Short), Sense::WRITE_ERROR);
}

#[test]
fn unmap_discards_each_range_and_zeroes_none() {
    let mut job = Job::Unmap {
        ranges: vec![(8192, 512), (0, 4096)],
        fua: true,
    };
    let discard = |offset, len| {
        Step::Op(Op::Discard {
            offset,
            len,
            fua: true,
        })
    };
    let data = Out(Vec::new());
    let done = || Done {
        result: Ok(0),
        buffer: None,
    };
    assert_eq!(job.begin(&data), discard(0, 4096));
    assert_eq!(job.resume(done(), &data), discard(8192, 512));
    assert_eq!(job.resume(done(), &data), Step::Done(Status::Good));
}
