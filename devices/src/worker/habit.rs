//! What pays only sometimes: kept as long as it does, given up when it does not, and tried again ever more rarely.

/// Occasions before a habit is tried again: at first, and at most.
pub(super) const TRY_AFTER: u32 = 8;
const TRY_AFTER_MOST: u32 = 512;

/// Whether it is done now, and what became of it lately.
pub(super) struct Habit {
    pub(super) on: bool,
    /// Occasions in a row that it may not pay before it is given up, and those it did not.
    patience: u32,
    missed: u32,
    /// Occasions since it was given up, and the number at which it is tried.
    passed: u32,
    try_after: u32,
}

impl Habit {
    pub(super) fn new(patience: u32) -> Self {
        Self {
            on: false,
            patience,
            missed: 0,
            passed: 0,
            try_after: TRY_AFTER,
        }
    }

    /// An occasion is over, and it paid, or would have.
    fn paid(&mut self) {
        *self = Self {
            on: true,
            ..Self::new(self.patience)
        };
    }

    /// An occasion is over, and it did not pay, or was not tried.
    pub(super) fn missed(&mut self) {
        if self.on {
            self.missed = self.missed.saturating_add(1);
            if self.missed <= self.patience {
                return;
            }
            (self.on, self.passed, self.missed) = (false, 0, 0);
            self.try_after = self.try_after.saturating_mul(2).min(TRY_AFTER_MOST);
        } else {
            self.passed = self.passed.saturating_add(1);
            self.on = self.passed >= self.try_after;
        }
    }

    pub(super) fn over(&mut self, paid: bool) {
        if paid { self.paid() } else { self.missed() }
    }
}
