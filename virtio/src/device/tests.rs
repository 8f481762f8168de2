//! The device's end against a plain model, and the driver that its tests use.

pub(super) mod driver;
mod model;
