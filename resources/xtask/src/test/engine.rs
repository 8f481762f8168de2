//! Runs of the ring engine's tests that need a build of their own: under the model checker, under
//! AddressSanitizer, and the long ones.
//!
//! Each has its own target folder, so that flags never throw away what the others built.

use anyhow::Result;

use super::succeed;
use crate::vmm::cargo;

/// Every interleaving of the two protocols the ends race on.
pub(super) fn model_checker() -> Result<()> {
    let mut command = cargo();
    command
        .args(["test", "--quiet", "--package", "splitring-virtio"])
        .args(["--test", "loom", "--release", "--target-dir", "target/loom"])
        .env("RUSTFLAGS", "--cfg loom");
    succeed(command)
}

/// The engine's unit tests and the fuzz corpus with every access to memory checked.
pub(super) fn sanitized() -> Result<()> {
    for what in [
        ["--package", "splitring-virtio", "--lib", "--tests"].as_slice(),
        &["--package", "splitring-tests", "--test", "fuzz_corpus"],
    ] {
        let mut command = cargo();
        command
            .args(["test", "--quiet", "--target-dir", "target/address"])
            // A target of its own keeps the flags away from build scripts.
            .args(["--target", "x86_64-unknown-linux-gnu"])
            .args(what)
            // Sanitizers are an unstable flag of the pinned stable compiler.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", "-Zsanitizer=address")
            // What may be in flight is leaked on purpose.
            .env("ASAN_OPTIONS", "detect_leaks=0");
        succeed(command)?;
    }
    Ok(())
}

/// Longer sequences against the plain models, and a thousand times the mutations of the corpus.
pub(super) fn long() -> Result<()> {
    for what in [
        [
            "--package",
            "splitring-virtio",
            "--lib",
            "--",
            "model_tests",
            "reference_tests",
        ]
        .as_slice(),
        &["--package", "splitring-tests", "--test", "fuzz_corpus"],
    ] {
        let mut command = cargo();
        command
            .args(["test", "--quiet", "--release"])
            .args(what)
            .env("SPLITRING_SOAK", "1");
        succeed(command)?;
    }
    Ok(())
}
