//! A machine's events in tokio: one task waits for them while other tasks run.
//!
//! `cargo run --example events -- KERNEL`; a last argument `any-kvm` also allows a KVM without
//! hardware virtualisation.

use std::error::Error;

use splitring::{Event, Machine, Resources, VmConfig};
use tokio::io::unix::AsyncFd;
use tokio::runtime::Builder;

/// Prints every event, and returns at the end of the machine.
async fn follow(machine: &Machine) -> Result<(), Box<dyn Error>> {
    #[expect(
        deprecated,
        reason = "sound here: `Events` owns its descriptor, which does not change"
    )]
    let events = AsyncFd::new(machine.events()?)?;
    machine.start()?;
    loop {
        let mut ready = events.readable().await?;
        while let Some(event) = events.get_ref().try_next() {
            println!("{event:?}");
            if matches!(event, Event::Ended(_)) {
                return Ok(());
            }
        }
        ready.clear_ready();
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let kernel = args.next().ok_or("usage: events KERNEL [any-kvm]")?;
    let any_kvm = args.next().is_some();

    let config = VmConfig::new(kernel);
    let resources = Resources::options().any_kvm(any_kvm).open(&config)?;
    let machine = Machine::new(config, resources)?;
    let runtime = Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(follow(&machine))
}
