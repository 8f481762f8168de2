//! Keeps persistent reservations over a power loss (APTPL, SPC-4 §5.13.5), in a small file beside the image.
//!
//! The file has two slots with a sequence number and a checksum each. The older one is overwritten and made stable
//! before the command is answered, so whatever the moment of a crash, one slot is whole. The descriptor is opened
//! with the image; nothing here opens a path afterwards.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use super::{Held, Kind, MAX_REGISTRATIONS, Port, Registration, Reservations};
use crate::scsi::sync::lock;
use crate::scsi::wire::{self, Bytes};

const MAGIC: u64 = u64::from_be_bytes(*b"SplRsv\x00\x01");
/// Magic, sequence, generation, flags and type, holder, count.
const HEADER: usize = 40;
const RECORD: usize = 16;
const CHECKSUM: usize = 8;
const SLOT: usize = 8192;
const _: () = assert!(HEADER + MAX_REGISTRATIONS * RECORD + CHECKSUM <= SLOT);

/// An open store.
#[derive(Debug)]
pub(crate) struct Store {
    file: File,
    /// Of the newest slot. Held while a slot is written.
    sequence: Mutex<u64>,
}

impl Store {
    /// Whether a file is one of these, possibly empty or with its first write torn, and not somebody's document.
    pub(crate) fn is_ours(file: &File) -> io::Result<bool> {
        for slot in 0..2 {
            let mut start = [0; 8];
            let length = read_up_to(file, &mut start, offset(slot))?;
            if length == 8 && ![0, MAGIC].contains(&u64::from_be_bytes(start)) {
                return Ok(false);
            }
            if length != 8 && start != [0; 8] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes the file over and returns what it last held.
    pub(crate) fn open(file: File) -> io::Result<(Self, Reservations)> {
        let (sequence, state) = newest(&file)?.unwrap_or_default();
        let sequence = Mutex::new(sequence);
        Ok((Self { file, sequence }, state))
    }

    /// Makes `state` what a restart finds: everything if it is to persist, else nothing. Blocks until it is stable.
    pub(crate) fn save(&self, state: &Reservations) -> io::Result<()> {
        let mut newest = lock(&self.sequence);
        let sequence = newest.saturating_add(1);
        let kept = if state.persist {
            state.clone()
        } else {
            Reservations::default()
        };
        self.file
            .write_all_at(&encode(sequence, &kept), offset(sequence))?;
        self.file.sync_data()?;
        *newest = sequence;
        Ok(())
    }
}

#[cfg(test)]
impl Store {
    /// Keeps slots from being written until the guard is dropped, as slow storage does.
    pub(crate) fn hold(&self) -> std::sync::MutexGuard<'_, u64> {
        lock(&self.sequence)
    }
}

/// The newer one of the slots that are whole.
fn newest(file: &File) -> io::Result<Option<(u64, Reservations)>> {
    let mut newest: Option<(u64, Reservations)> = None;
    for slot in 0..2 {
        let mut bytes = vec![0; SLOT];
        let length = read_up_to(file, &mut bytes, offset(slot))?;
        bytes.truncate(length);
        if let Some(found) = decode(&bytes) {
            newest = newest
                .filter(|(sequence, _)| *sequence > found.0)
                .or(Some(found));
        }
    }
    Ok(newest)
}

fn offset(sequence: u64) -> u64 {
    let slot = u64::try_from(SLOT).unwrap_or(0);
    if sequence.is_multiple_of(2) { 0 } else { slot }
}

fn read_up_to(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0usize;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let from = at.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
        match file.read_at(rest, from) {
            Ok(0) => break,
            Ok(count) => done = done.saturating_add(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn encode(sequence: u64, state: &Reservations) -> Vec<u8> {
    let mut out = Bytes::new();
    out.u64(MAGIC).u64(sequence).u32(state.generation);
    out.u8(u8::from(state.persist))
        .u8(state.held.map_or(0, |held| held.kind as u8))
        .u16(0);
    out.u64(state.held.map_or(0, |held| held.by.0))
        .u64(state.registrations.len().try_into().unwrap_or(0));
    for Registration { port, key } in &state.registrations {
        out.u64(port.0).u64(*key);
    }
    out.zeros(SLOT.saturating_sub(CHECKSUM).saturating_sub(out.len()));
    let mut bytes = out.finish();
    let sum = checksum(&bytes);
    bytes.extend_from_slice(&sum.to_be_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<(u64, Reservations)> {
    let (body, sum) = bytes.split_at_checked(SLOT.saturating_sub(CHECKSUM))?;
    let whole = bytes.len() == SLOT
        && wire::u64_at(body, 0) == MAGIC
        && wire::u64_at(sum, 0) == checksum(body);
    let count = usize::try_from(wire::u64_at(body, 32))
        .ok()
        .filter(|count| whole && *count <= MAX_REGISTRATIONS)?;
    let records = body.get(HEADER..)?.chunks_exact(RECORD).take(count);
    let registrations: Vec<_> = records
        .map(|record| Registration {
            port: Port(wire::u64_at(record, 0)),
            key: wire::u64_at(record, 8),
        })
        .collect();
    let held = Kind::new(wire::u8_at(body, 21)).map(|kind| Held {
        by: Port(wire::u64_at(body, 24)),
        kind,
    });
    let state = Reservations {
        generation: wire::u32_at(body, 16),
        persist: wire::u8_at(body, 20) & 1 != 0,
        registrations,
        held,
        legacy: None,
    };
    Some((wire::u64_at(body, 8), state))
}

/// FNV-1a, 64 bits: against torn writes, not against malice.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(persist: bool) -> Reservations {
        Reservations {
            generation: 9,
            persist,
            registrations: vec![
                Registration {
                    port: Port(1),
                    key: 0xabc,
                },
                Registration {
                    port: Port(2),
                    key: 0xdef,
                },
            ],
            held: Some(Held {
                by: Port(2),
                kind: Kind::ExclusiveAccess,
            }),
            legacy: None,
        }
    }

    fn reopen(file: &File) -> (Store, Reservations) {
        Store::open(file.try_clone().unwrap()).unwrap()
    }

    #[test]
    fn what_was_saved_is_found_again_and_an_empty_file_holds_nothing() {
        let file = tempfile::tempfile().unwrap();
        let (store, state) = reopen(&file);
        assert_eq!(state, Reservations::default());
        for generation in 0..5 {
            let state = Reservations {
                generation,
                ..sample(true)
            };
            store.save(&state).unwrap();
            assert_eq!(reopen(&file).1, state);
        }
        store.save(&sample(false)).unwrap();
        assert_eq!(reopen(&file).1, Reservations::default());
    }

    #[test]
    fn a_write_torn_at_any_byte_leaves_the_state_before_it() {
        let file = tempfile::tempfile().unwrap();
        let (store, _) = reopen(&file);
        store.save(&sample(true)).unwrap();
        let before = Reservations {
            generation: 10,
            ..sample(true)
        };
        store.save(&before).unwrap();
        let next = encode(
            3,
            &Reservations {
                generation: 11,
                ..sample(true)
            },
        );
        for cut in [1, 8, 17, 40, 56, 72, SLOT - 1] {
            let mut old = vec![0; SLOT];
            file.read_at(&mut old, offset(3)).unwrap();
            file.write_all_at(&next[..cut], offset(3)).unwrap();
            let torn = reopen(&file).1;
            assert!(torn == before, "cut at {cut}: {torn:?}");
            file.write_all_at(&old, offset(3)).unwrap();
        }
        file.write_all_at(&next, offset(3)).unwrap();
        assert_eq!(reopen(&file).1.generation, 11);
    }

    #[test]
    fn a_full_table_fits_into_a_slot() {
        let file = tempfile::tempfile().unwrap();
        let (store, _) = reopen(&file);
        let registrations = (0..MAX_REGISTRATIONS as u64)
            .map(|n| Registration {
                port: Port(n),
                key: n + 1,
            })
            .collect();
        let full = Reservations {
            registrations,
            ..sample(true)
        };
        store.save(&full).unwrap();
        assert_eq!(reopen(&file).1, full);
    }
}
