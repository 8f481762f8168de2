//! One hundred machines in one process: all of them start, pause, resume and stop.
//!
//! `cargo run --example hundred -- KERNEL`; a last argument `any-kvm` also allows a KVM without
//! hardware virtualisation.

use std::error::Error;
use std::time::Instant;

use splitring::config::{Bytes, SerialTarget};
use splitring::{Machine, Resources, VmConfig};

const MACHINES: usize = 100;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let kernel = args.next().ok_or("usage: hundred KERNEL [any-kvm]")?;
    let any_kvm = args.next().is_some();

    let begin = Instant::now();
    let mut machines = Vec::new();
    for number in 0..MACHINES {
        let config = VmConfig::new(&kernel)
            .name(format!("vm{number}"))
            .memory(Bytes::mib(32))
            .serial(SerialTarget::Null);
        let resources = Resources::options().any_kvm(any_kvm).open(&config)?;
        let machine = Machine::new(config, resources)?;
        machine.start()?;
        machines.push(machine);
    }
    println!("{MACHINES} machines started after {:?}", begin.elapsed());

    for machine in &machines {
        machine.pause()?;
    }
    println!("{MACHINES} machines paused after {:?}", begin.elapsed());
    for machine in &machines {
        machine.resume()?;
    }
    for machine in &machines {
        machine.stop();
    }
    println!("{MACHINES} machines stopped after {:?}", begin.elapsed());
    Ok(())
}
