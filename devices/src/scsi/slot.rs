//! Numbers for the units of a controller, as indexes into the tables of its threads.
//!
//! A number is free again when nobody uses it any more: neither the unit's path nor a thread that keeps the disk open
//! for it. So a table entry never belongs to another unit than the one that is looked up.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use super::sync::lock;

/// The numbers of one controller that are in use.
#[derive(Debug, Default)]
pub(crate) struct Slots(Mutex<BTreeSet<usize>>);

impl Slots {
    /// Takes the lowest free number.
    pub(crate) fn lease(self: &Arc<Self>) -> Arc<Slot> {
        let mut taken = lock(&self.0);
        let hole = (0..).zip(taken.iter()).find(|(free, used)| free != *used);
        let number = hole.map_or(taken.len(), |(free, _)| free);
        taken.insert(number);
        Arc::new(Slot {
            number,
            slots: Arc::clone(self),
        })
    }
}

/// A number in use. The last holder that drops it gives it back.
#[derive(Debug)]
pub(crate) struct Slot {
    number: usize,
    slots: Arc<Slots>,
}

impl Slot {
    /// The number.
    pub(crate) fn number(&self) -> usize {
        self.number
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.slots.0).remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_free_when_its_last_holder_is_gone() {
        let slots = Arc::new(Slots::default());
        let [first, second, third] = [(); 3].map(|()| slots.lease());
        assert_eq!(
            [&first, &second, &third].map(|slot| slot.number()),
            [0, 1, 2]
        );
        let holder = Arc::clone(&second);
        drop(second);
        assert_eq!(slots.lease().number(), 3, "somebody holds number 1");
        drop(holder);
        assert_eq!(slots.lease().number(), 1);
        drop((first, third));
        assert_eq!(slots.lease().number(), 0);
    }
}
