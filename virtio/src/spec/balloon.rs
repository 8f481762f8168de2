//! Traditional memory balloon (section 5.5).

use zerocopy::little_endian::{U16, U32, U64};

/// Bytes of a page as the balloon counts them, whatever pages the guest has.
pub const PAGE_SIZE: u64 = 4096;

/// Feature bits (section 5.5.3), as masks.
pub mod feature {
    /// The driver tells the device before it uses pages from the balloon again.
    pub const MUST_TELL_HOST: u64 = 1 << 0;
    /// The statistics queue.
    pub const STATS_VQ: u64 = 1 << 1;
    /// The driver takes pages from the balloon rather than run out of memory.
    pub const DEFLATE_ON_OOM: u64 = 1 << 2;
    /// The free page hinting queue.
    pub const FREE_PAGE_HINT: u64 = 1 << 3;
    /// `poison_val` is valid.
    pub const PAGE_POISON: u64 = 1 << 4;
    /// The free page reporting queue.
    pub const PAGE_REPORTING: u64 = 1 << 5;
}

/// Indices of the queues (section 5.5.2). Linux numbers those that it negotiated without gaps.
pub mod queue {
    /// Pages that go into the balloon.
    pub const INFLATE: u16 = 0;
    /// Pages that come out of it.
    pub const DEFLATE: u16 = 1;
    /// Statistics.
    pub const STATS: u16 = 2;
    /// Hints at free pages.
    pub const FREE_PAGE: u16 = 3;
    /// Reports of free pages.
    pub const REPORTING: u16 = 4;
    /// Number of all queues.
    pub const COUNT: u16 = 5;
}

/// Tags of statistics (section 5.5.6.4); those from [`OOM_KILLS`](stat::OOM_KILLS) on are Linux's.
pub mod stat {
    /// Bytes swapped in.
    pub const SWAP_IN: u16 = 0;
    /// Bytes swapped out.
    pub const SWAP_OUT: u16 = 1;
    /// Major page faults.
    pub const MAJOR_FAULTS: u16 = 2;
    /// Minor page faults.
    pub const MINOR_FAULTS: u16 = 3;
    /// Bytes not used for anything.
    pub const FREE: u16 = 4;
    /// Bytes of memory.
    pub const TOTAL: u16 = 5;
    /// Bytes that new programs could have without swapping.
    pub const AVAILABLE: u16 = 6;
    /// Bytes of caches that can be given up.
    pub const CACHES: u16 = 7;
    /// Huge pages allocated.
    pub const HUGE_PAGES: u16 = 8;
    /// Huge pages that could not be allocated.
    pub const HUGE_PAGE_FAILURES: u16 = 9;
    /// Processes killed for want of memory.
    pub const OOM_KILLS: u16 = 10;
}

wire! {
    /// The configuration space (section 5.5.4).
    pub struct Config {
        /// Pages that the device wants in the balloon.
        pub num_pages: U32,
        /// Pages that are in it; the driver writes it.
        pub actual: U32,
        /// Command of free page hinting.
        pub free_page_hint_cmd_id: U32,
        /// What the guest fills free pages with; the driver writes it.
        pub poison_val: U32,
    }

    /// One statistic.
    pub struct Stat {
        /// `stat::…`.
        pub tag: U16,
        /// Its value.
        pub val: U64,
    }
}
