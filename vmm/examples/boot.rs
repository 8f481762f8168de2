//! Boots a kernel with its console on standard output, and prints how the machine ended.
//!
//! `cargo run --example boot -- vmlinuz`; a last argument `any-kvm` also allows a KVM without
//! hardware virtualisation.

use std::error::Error;

use splitring::config::Bytes;
use splitring::{Console, Machine, Resources, VmConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let kernel = args.next().ok_or("usage: boot KERNEL [any-kvm]")?;
    let any_kvm = args.next().is_some();

    let config = VmConfig::new(kernel).cpus(2).memory(Bytes::mib(256));
    let resources = Resources::options()
        .console(Console::stdout()?)
        .any_kvm(any_kvm)
        .open(&config)?;
    let machine = Machine::new(config, resources)?;
    machine.start()?;
    let reason = machine.wait();
    drop(machine);
    println!("\nended: {reason}");
    Ok(())
}
