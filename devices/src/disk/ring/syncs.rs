//! Which requests of a queue make cached data stable, and which of them overlapped.
//!
//! When a write-back failed, the kernel tells the first of those that ask on one description, and
//! the others end well. So one that ended well is answered only after all that ran at that moment.
//! If one of them was told, it knows.

/// The syncs of one queue. Requests are known by their slot.
#[derive(Debug, Default)]
pub(super) struct Syncs {
    /// Number of the next to begin.
    next: u64,
    running: Vec<Running>,
    ended: Vec<Ended>,
}

/// A sync that the kernel has.
#[derive(Debug)]
struct Running {
    slot: u16,
    seat: u16,
    number: u64,
}

/// A sync that ended well, and waits for those of its file with a number below this.
#[derive(Debug)]
struct Ended {
    slot: u16,
    seat: u16,
    before: u64,
}

impl Syncs {
    /// A slot's request becomes a sync of the file in `seat`, or goes on being one.
    pub(super) fn begin(&mut self, slot: u16, seat: u16) {
        if !self.running.iter().any(|running| running.slot == slot) {
            let number = self.next;
            self.next = number.wrapping_add(1);
            self.running.push(Running { slot, seat, number });
        }
    }

    /// A slot's sync is over. If it ended well, [`settled`](Self::settled) returns it in due time.
    pub(super) fn end(&mut self, slot: u16, well: bool) {
        let place = self.running.iter().position(|running| running.slot == slot);
        let Some(running) = place.map(|place| self.running.remove(place)) else {
            return;
        };
        if well {
            self.ended.push(Ended {
                slot,
                seat: running.seat,
                before: self.next,
            });
        }
    }

    /// The slot of a sync that ended well and has no other left to wait for.
    pub(super) fn settled(&mut self) -> Option<u16> {
        let waits = |ended: &Ended| {
            // In the order of their numbers, so the first of a file has its least.
            let mut running = self.running.iter();
            let first = running.find(|running| running.seat == ended.seat);
            first.is_some_and(|first| first.number < ended.before)
        };
        let place = self.ended.iter().position(|ended| !waits(ended))?;
        Some(self.ended.remove(place).slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(syncs: &mut Syncs) -> Vec<u16> {
        std::iter::from_fn(|| syncs.settled()).collect()
    }

    #[test]
    fn a_sync_that_ended_well_waits_for_those_that_ran_then_and_no_others() {
        let mut syncs = Syncs::default();
        for slot in [1, 2, 3] {
            syncs.begin(slot, 0);
        }
        // Of another file.
        syncs.begin(9, 1);
        syncs.begin(1, 0);
        syncs.end(2, true);
        assert!(settled(&mut syncs).is_empty(), "1 and 3 run");
        syncs.begin(4, 0);
        syncs.end(1, false);
        assert!(settled(&mut syncs).is_empty(), "3 runs");
        syncs.end(3, true);
        assert_eq!(settled(&mut syncs), [2], "3 ended while 4 ran");
        syncs.end(4, true);
        assert_eq!(settled(&mut syncs), [3, 4]);
        syncs.end(9, true);
        assert_eq!(settled(&mut syncs), [9]);
    }

    #[test]
    fn one_at_a_time_never_waits() {
        let mut syncs = Syncs::default();
        for slot in 0..3 {
            syncs.begin(slot, 0);
            syncs.end(slot, true);
            assert_eq!(settled(&mut syncs), [slot]);
            // Unknown ones have no effect.
            syncs.end(slot, true);
            assert!(settled(&mut syncs).is_empty());
        }
    }
}
