//! Builds the freestanding guest that `splitring selftest` embeds, by a separate cargo: it has
//! another profile, other code generation and no standard library.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The guest has no red zone (an interrupt would overwrite it) and is linked to run where it is
/// loaded; the vectorizers are off to keep it small.
const FLAGS: &str = "-Cno-redzone=yes\x1f-Crelocation-model=static\x1f-Cno-vectorize-loops\x1f-Cno-vectorize-slp\x1f-Cstrip=symbols";
const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    if env::var_os("CARGO_FEATURE_SELFTEST").is_none() {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let guest = root.join("resources/guest");
    for watched in [
        &guest.join("src"),
        &guest.join("guest.ld"),
        &guest.join("Cargo.toml"),
        &root.join("virtio/src"),
    ] {
        println!("cargo:rerun-if-changed={}", watched.display());
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let target = out.join("guest");
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["build", "--release", "--locked", "--target", TARGET])
        .current_dir(&guest)
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS);
    // Flags, wrappers and sanitizers of this build do not apply to the guest.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let ours =
            text == "RUSTFLAGS" || text.starts_with("RUSTC_") || text.starts_with("CARGO_PROFILE_");
        if ours || text == "RUSTC" {
            command.env_remove(&name);
        }
    }
    let status = command.status().expect("cargo starts");
    assert!(status.success(), "the freestanding guest did not build");
    let image = target.join(TARGET).join("release/splitring-guest");
    println!("cargo:rustc-env=SPLITRING_GUEST={}", image.display());
}
