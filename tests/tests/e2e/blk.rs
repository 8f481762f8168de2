//! Disks under stock kernels.

/// A hundred cuts, in tests of ten each, so that a soak that was interrupted goes on in the middle.
macro_rules! tens {
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
