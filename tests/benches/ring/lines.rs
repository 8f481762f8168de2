//! Cache lines that the device end touches per chain, calculated from the layouts, alone and in
//! batches of 32, compared with the minimum.
//!
//! The minimum is what any engine must touch: descriptors, its entries in both rings, both indices
//! and one event index. Splitring also touches the head's mark, the slot, its segments and its
//! entry in the pool. The queue's own fields stay in the first-level cache and are not counted for
//! either.

const LINE: u32 = 64;
const DESC: u32 = 16;
const AVAIL: u32 = 2;
const USED: u32 = 8;
/// The words that a batch shares: both indices and the event index, each on its own line.
const SHARED: u32 = 3;

/// In the engine's own memory: the mark of a head in bytes, a slot in lines, a segment and a pool
/// pointer in bytes.
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
            // Each chain has its own slot and segments; marks and pointers are adjacent.
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

/// Returns the lines per chain that this number of chains touches in arrays with entries of these
/// sizes.
fn lines(entries: &[u32], chains: u32) -> f64 {
    let total: u32 = entries
        .iter()
        .map(|bytes| (bytes * chains).div_ceil(LINE))
        .sum();
    f64::from(total) / f64::from(chains)
}
