//! Replays the checked-in fuzz corpus, and small mutations of it, through the bodies of the
//! targets.
//!
//! Tier: quick; with `SPLITRING_SOAK` set, a thousand times as many mutations.

use std::path::Path;

/// A small generator, so that a failure is reproducible.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(limit).unwrap()).unwrap()
    }
}

fn replay(target: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("cannot list {}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() >= 5, "the corpus of {target} is there");
    let rounds = if std::env::var_os("SPLITRING_SOAK").is_some() {
        50_000
    } else {
        50
    };
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for file in files {
        let input = std::fs::read(&file).unwrap();
        println!("{}", file.display());
        body(&input);
        for _ in 0..rounds {
            body(&mutated(&input, &mut random));
        }
    }
}

/// Changes a few bytes, and sometimes repeats or removes a piece.
fn mutated(input: &[u8], random: &mut Random) -> Vec<u8> {
    let mut out = input.to_vec();
    out.push(0);
    for _ in 0..=random.below(6) {
        let at = random.below(out.len());
        match random.below(4) {
            0 => out[at] = u8::try_from(random.below(256)).unwrap(),
            1 => out[at] ^= 1 << random.below(8),
            2 => {
                let piece = out[at..].to_vec();
                out.extend_from_slice(&piece[..piece.len().min(64)]);
            }
            _ => out.truncate(at + 1),
        }
    }
    out
}

#[test]
fn bootdisk_survives_its_corpus_and_its_neighbours() {
    replay("bootdisk", splitring_tests::fuzz::bootdisk::run);
}

#[test]
fn device_ring_survives_its_corpus_and_its_neighbours() {
    replay("device_ring", splitring_tests::fuzz::device_ring::run);
}

#[test]
fn driver_ring_survives_its_corpus_and_its_neighbours() {
    replay("driver_ring", splitring_tests::fuzz::driver_ring::run);
}
