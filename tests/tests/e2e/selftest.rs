//! The self-test on a KVM with hardware virtualisation: the lab's, or the host's own. A separate
//! step of `cargo xtask test` runs it on a host's KVM without.

use std::process::Command;

use splitring_tests::assets;

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn selftest_passes_polled_and_by_interrupts() {
    let output = Command::new(assets::binary())
        .args(["selftest", "--json", "--seconds", "0.05"])
        .output()
        .expect("run the self-test");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let loops = report["loops"].as_array().expect("timed loops");
    for device in ["blk", "scsi", "net"] {
        let timed = loops.iter().find(|done| {
            let name = done["name"].as_str().unwrap_or_default();
            name.starts_with(device) && name.ends_with(" interrupts")
        });
        let timed = timed.unwrap_or_else(|| panic!("no loop of {device} waited for interrupts"));
        assert!(timed["operations"].as_u64() > Some(0), "{timed}");
    }
}
