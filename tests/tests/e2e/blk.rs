//! Disks under stock kernels.

/// A hundred power cuts in tests of ten each, so that an interrupted soak run continues in the
/// middle.
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

mod bad_host;
mod block;
mod disks;
mod faults;
mod host_power;
mod lost_flush;
mod mapped;
mod matrix;
mod power;
mod qcow2;
mod storage;
