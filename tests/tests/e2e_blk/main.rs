//! Disks under stock kernels. Run by `cargo xtask test`, which knows where a stock kernel can run; one part by itself
//! with `--only disks::`, `--only power::` and so on.

mod block;
mod disks;
mod faults;
mod host_power;
mod matrix;
mod power;
mod qcow2;
