//! The device's end of a virtqueue: takes descriptor chains off the available ring and puts them
//! onto the used ring.

pub mod chain;
mod config;
pub mod queue;
mod state;
pub mod transport;
mod walk;

#[cfg(test)]
mod tests;
