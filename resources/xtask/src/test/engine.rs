//! Runs of the ring engine's tests that need separate builds: under the model checker, under
//! AddressSanitizer, and the long ones.
//!
//! Each has its own target directory, so that their flags don't invalidate other builds.

use anyhow::Result;

use super::succeed;
use crate::vmm::cargo;

/// Checks every interleaving of the two protocols in which the ends race.
pub(super) fn model_checker() -> Result<()> {
    let mut command = cargo();
    command
        .args(["test", "--quiet", "--package", "splitring-virtio"])
        .args(["--test", "loom", "--release", "--target-dir", "target/loom"])
        .env("RUSTFLAGS", "--cfg loom");
    succeed(command)
}

/// Runs the engine's unit tests and the fuzz corpus with every memory access checked.
pub(super) fn sanitized() -> Result<()> {
    for what in [
        ["--package", "splitring-virtio", "--lib", "--tests"].as_slice(),
        &["--package", "splitring-tests", "--test", "fuzz_corpus"],
    ] {
        let mut command = cargo();
        command
            .args(["test", "--quiet", "--target-dir", "target/address"])
            // With an explicit target the flags don't apply to build scripts.
            .args(["--target", "x86_64-unknown-linux-gnu"])
            .args(what)
            // Sanitizers are an unstable flag; this enables it in the pinned stable compiler.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", "-Zsanitizer=address")
            // Memory that may still be in flight is leaked on purpose.
            .env("ASAN_OPTIONS", "detect_leaks=0");
        succeed(command)?;
    }
    Ok(())
}

/// Runs longer sequences against the reference models, and a thousand times as many mutations of
/// the corpus.
pub(super) fn long() -> Result<()> {
    for what in [
        [
            "--package",
            "splitring-virtio",
            "--lib",
            "--",
            "tests::model",
            "tests::reference",
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
