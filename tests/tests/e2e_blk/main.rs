//! Disks under stock kernels. Run by `cargo xtask test`, which knows where a stock kernel can run; one part by itself
//! with `--only disks::`, `--only power::` and so on.

/// A hundred cuts, in tests of ten each, so that a soak that was interrupted goes on in the middle.
macro_rules! soak {
    ($($name:ident $first:literal),*) => {
        $(
            #[test]
            #[ignore = "needs a stock guest"]
            fn $name() {
                rounds($first..$first + 10);
            }
        )*
    };
}

mod block;
mod disks;
mod faults;
mod host_power;
mod lost_flush;
mod mapped;
mod matrix;
mod power;
mod qcow2;
