//! Disks under stock kernels. Run by `cargo xtask test`, which knows where a stock kernel can run; by themselves with
//! `--only disks::`.

mod disks;
