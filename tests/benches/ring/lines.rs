//! Distance to the floor: cache lines a chain makes the device's end touch, by arithmetic over the
//! layouts, alone and in batches of 32.
//!
//! The floor is what any engine must touch: descriptors, its entries of both rings, both indices and
//! one event index. Ours comes to it: the head's mark, the slot, its segments and its place in the
//! pool. The queue's own fields stay in the first-level cache and are not counted, on either side.

const LINE: u32 = 64;
const DESC: u32 = 16;
const AVAIL: u32 = 2;
const USED: u32 = 8;
/// The words a batch shares: both indices and the event index, each on a line of its own.
const SHARED: u32 = 3;

/// In the engine's own memory: the mark of a head in bytes, a slot in lines, a segment and a pointer
/// of the pool in bytes.
const MARK: u32 = 4;
const SLOT: u32 = 1;
const SEGMENT: u32 = 16;
const POINTER: u32 = 8;

/// Prints the table for chains of one, three and eight direct descriptors.
pub(crate) fn print() {
    println!(
        "Cache lines a chain, device end (direct descriptors; by arithmetic over the layouts)"
    );
    println!(
        "{:<14} {:>11} {:>9} {:>12} {:>9}",
        "descriptors", "floor alone", "ours", "floor of 32", "ours"
    );
    for descriptors in [1, 3, 8] {
        let [alone, batch] = [1, 32].map(|chains| {
            let ring = [descriptors * DESC, AVAIL, USED];
            let floor = lines(&ring, chains) + f64::from(SHARED) / f64::from(chains);
            // Slot and segments are each chain's own; marks and pointers lie side by side.
            let own = SLOT + (descriptors * SEGMENT).div_ceil(LINE);
            (
                floor,
                floor + f64::from(own) + lines(&[MARK, POINTER], chains),
            )
        });
        println!(
            "{descriptors:<14} {:>11.2} {:>9.2} {:>12.2} {:>9.2}",
            alone.0, alone.1, batch.0, batch.1
        );
    }
    println!();
}

/// Lines that so many chains touch in arrays with entries of these sizes, side by side; per chain.
fn lines(entries: &[u32], chains: u32) -> f64 {
    let total: u32 = entries
        .iter()
        .map(|bytes| (bytes * chains).div_ceil(LINE))
        .sum();
    f64::from(total) / f64::from(chains)
}
