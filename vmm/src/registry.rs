//! The devices that have one key in the configuration, an entry each: the only place in this crate
//! that a new device is added to.
//!
//! An entry is
//!
//! ```text
//! /// Help of the key, of the flag and of the field in `VmConfig`.
//! key: Type = default => {
//!     keys: the keys of its value with a line of help each; none for a switch,
//!     validate: what is wrong with a value, as far as that can be judged without opening anything,
//!     slots: which PCI slot it gets,
//!     build: the device, for its value, its id and the machine's whole configuration,
//! }
//! ```
//!
//! and `Type` is a `bool`, or an `Option` of the device's own configuration. `config/devices.rs`
//! makes the field, its setter and its flag of the entry, `attach.rs` the device. The key is also
//! the device's id.
//!
//! Disks, SCSI controllers and network cards have more to them (several of a kind, images and
//! descriptors opened beforehand); they are registered in `attach.rs`.

/// Calls the macro `$then` with all entries, followed by `$rest`.
macro_rules! devices {
    ($then:ident! { $($rest:tt)* }) => {
        $then! {
            [
                /// A random number generator.
                rng: bool = true => {
                    keys: &[],
                    validate: |_, _| Ok(()),
                    slots: Slots::At(1),
                    build: |_, id, _| Ok(Built::new(splitring_devices::rng::Rng::new(id))),
                }
                /// A memory balloon, which returns memory of the guest to the host.
                #[serde(skip_serializing_if = "Option::is_none")]
                balloon: Option<splitring_devices::balloon::BalloonConfig> = None => {
                    keys: splitring_devices::balloon::BalloonConfig::KEYS,
                    validate: |balloon, machine| {
                        let valid = balloon.validate(machine.memory.size, machine.memory.hugepages);
                        valid.map_err(|error| error.to_string())
                    },
                    slots: Slots::Free,
                    build: |balloon, id, machine| {
                        use splitring_devices::balloon::Balloon;
                        let balloon = Balloon::new(id, balloon, machine.memory.size);
                        let balloon = balloon.map_err(|error| AttachError::device(id, error.kind(), error))?;
                        let handle = balloon.handle();
                        Ok(Built::new(balloon).with_handle(handle))
                    },
                }
            ]
            $($rest)*
        }
    };
}

pub(crate) use devices;
