//! Tells a flood of small frames, where how many are taken at a time matters more than when, from traffic that somebody
//! waits for.

/// Passes that are judged together.
const PASSES: u32 = 16;
/// A flood brings so many frames a pass at least. Who waits for each answer sends one.
const FRAMES: u64 = 2;
/// The frames of a flood are no longer on average. Those of a transfer are, its acknowledgements included.
const SMALL: u64 = 512;

/// What one queue pair moved lately.
#[derive(Debug, Default)]
pub(super) struct Flood {
    on: bool,
    passes: u32,
    /// Frames and bytes up to the last judgement, both directions together.
    frames: u64,
    bytes: u64,
}

impl Flood {
    /// A pass is over, after which so many were moved since the beginning.
    pub(super) fn pass(&mut self, frames: u64, bytes: u64) {
        self.passes = self.passes.saturating_add(1);
        if self.passes >= PASSES {
            let new = frames.wrapping_sub(self.frames);
            let long = bytes.wrapping_sub(self.bytes);
            self.on = new >= u64::from(PASSES) * FRAMES && long <= new.saturating_mul(SMALL);
            (self.passes, self.frames, self.bytes) = (0, frames, bytes);
        }
    }

    pub(super) fn is_on(&self) -> bool {
        self.on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After passes of so many frames of so many bytes.
    fn floods(flood: &mut Flood, each: u64, bytes: u64) -> bool {
        let (frames, long) = (flood.frames, flood.bytes);
        for pass in 1..=u64::from(PASSES) {
            let new = each * pass;
            flood.pass(frames + new, long + new * bytes);
        }
        flood.is_on()
    }

    #[test]
    fn many_small_frames_are_one_and_single_or_long_ones_are_none() {
        let mut flood = Flood::default();
        assert!(!floods(&mut flood, 1, 98), "a ping");
        assert!(floods(&mut flood, 5, 106));
        assert!(!floods(&mut flood, 20, 1514), "a transfer");
        assert!(floods(&mut flood, 2, 60));
        assert!(!floods(&mut flood, 0, 0), "it is over");
    }
}
