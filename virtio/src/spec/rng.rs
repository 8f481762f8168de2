//! Entropy device (section 5.4): one queue of writable buffers; no features, no configuration
//! space.

/// Number of queues.
pub const QUEUES: u16 = 1;
/// The request queue.
pub const REQUEST_QUEUE: u16 = 0;
