//! Disk images, whole: what they boot, and what they fail with.
#![allow(
    clippy::cast_possible_truncation,
    reason = "images are small, and tests run on 64 bits"
)]

mod corpus;
mod errors;
mod images;
mod mutated;
mod support;
