//! Whether a worker that wakes up takes the processor from who runs there.
//!
//! A flood wakes it again and again. Where no processor is idle, each time interrupts the vCPU that has to take what
//! comes, or the program that sends it. As a batch thread (`SCHED_BATCH`) the worker waits for its turn instead and
//! finds more. Where a processor is idle that changes nothing.
#![expect(unsafe_code, reason = "no crate in use sets a thread's policy")]

/// Its thread's scheduling policy; all calls come from that thread.
#[derive(Debug)]
pub(super) struct Precedence {
    /// Tasks that are flooded.
    flooded: Vec<u16>,
    /// `false` where somebody chose another policy for this thread: then it stays.
    ours: bool,
}

impl Precedence {
    pub(super) fn new() -> Self {
        Self {
            flooded: Vec::new(),
            ours: true,
        }
    }

    /// What the task in `slot` says after a pass.
    pub(super) fn told(&mut self, slot: u16, flooded: bool) {
        if self.flooded.contains(&slot) == flooded {
            return;
        }
        let before = self.flooded.is_empty();
        if flooded {
            self.flooded.push(slot);
        } else {
            self.flooded.retain(|&other| other != slot);
        }
        let now = self.flooded.is_empty();
        if before != now {
            self.change(now);
        }
    }

    fn change(&mut self, at_once: bool) {
        let (from, to) = if at_once {
            (libc::SCHED_BATCH, libc::SCHED_OTHER)
        } else {
            (libc::SCHED_OTHER, libc::SCHED_BATCH)
        };
        self.ours = self.ours && policy() == from && set_policy(to);
    }
}

/// The calling thread's policy.
pub(super) fn policy() -> i32 {
    // SAFETY: no memory is passed.
    unsafe { libc::sched_getscheduler(0) }
}

/// Whether the calling thread has this policy now.
fn set_policy(policy: i32) -> bool {
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel reads the structure during the call.
    unsafe { libc::sched_setscheduler(0, policy, &raw const priority) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gives_way_while_any_task_is_flooded() {
        let mut precedence = Precedence::new();
        for (slot, flooded, expected) in [
            (1, true, libc::SCHED_BATCH),
            (2, true, libc::SCHED_BATCH),
            (1, false, libc::SCHED_BATCH),
            (3, false, libc::SCHED_BATCH),
            (2, false, libc::SCHED_OTHER),
        ] {
            precedence.told(slot, flooded);
            assert_eq!(policy(), expected, "{slot} {flooded}");
        }
    }

    #[test]
    fn a_policy_that_somebody_else_chose_stays() {
        let mut precedence = Precedence::new();
        assert!(set_policy(libc::SCHED_IDLE));
        precedence.told(1, true);
        precedence.told(1, false);
        assert_eq!(policy(), libc::SCHED_IDLE);
    }
}
