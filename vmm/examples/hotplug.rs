//! Adds and removes a SCSI disk while the guest runs.
//!
//! `cargo run --example hotplug -- KERNEL IMAGE IMAGE`; the second image is added and removed. A
//! last argument `any-kvm` also allows a KVM without hardware virtualisation.

use std::error::Error;
use std::thread;
use std::time::Duration;

use splitring::config::{Bus, DiskConfig};
use splitring::{Machine, Resources, VmConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: hotplug KERNEL IMAGE IMAGE [any-kvm]";
    let mut args = std::env::args().skip(1);
    let kernel = args.next().ok_or(usage)?;
    let (first, second) = args.next().zip(args.next()).ok_or(usage)?;
    let any_kvm = args.next().is_some();

    // The first disk creates the controller.
    let config = VmConfig::new(kernel).disk(DiskConfig::new(first).bus(Bus::Scsi));
    let resources = Resources::options().any_kvm(any_kvm).open(&config)?;
    let machine = Machine::new(config, resources)?;
    let events = machine.events()?;
    machine.start()?;

    // A restart creates new handles, so get them when they are used.
    let controller = &machine.scsi()[0];
    let added = controller.add_disk("extra", &DiskConfig::new(second).bus(Bus::Scsi))?;
    println!(
        "added {} at target {}, {} bytes",
        added.id, added.target, added.capacity
    );
    // Use the disk for a while.
    thread::sleep(Duration::from_millis(10));
    // Blocks until the disk has no request in flight and its image is closed.
    controller.remove("extra")?;
    println!(
        "removed; left: {:?}",
        controller
            .units()
            .iter()
            .map(|unit| &unit.id)
            .collect::<Vec<_>>()
    );
    while let Some(event) = events.try_next() {
        println!("{event:?}");
    }
    machine.stop();
    Ok(())
}
