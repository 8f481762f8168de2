//! The block device in process, with the driver of `splitring-virtio` and an independent one, over
//! disks that fail, delay, reorder and lose power. What a disk acknowledges is compared with a
//! model, byte by byte.

mod independent;
mod numbers;
mod ours;
mod power;
