//! Memory balloons: how much of its memory a guest gives up, and what it says about the rest.
//!
//! [`Machine::balloon`](crate::Machine::balloon) returns a handle. The keys of a balloon are in
//! [`BalloonConfig`](crate::config::BalloonConfig).

pub use splitring_devices::balloon::{
    BalloonError, BalloonHandle, BalloonStatistics, BalloonTotals,
};
