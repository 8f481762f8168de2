//! The end-to-end tests: stock kernels boot in Splitring and use its devices.
//!
//! Every test is `#[ignore]`d, because only `cargo xtask test` knows where a stock kernel can run.
//! A test in a module named `soak` runs in the soak tier only. `--only PART` selects the tests that
//! have PART in their path: `--only blk::power` or `--only reboot`.

mod balloon;
mod blk;
mod boot;
mod end;
mod net;
mod scsi;
mod selftest;
