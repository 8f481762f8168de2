//! What the configuration makes of the entries in `registry.rs`: fields of `VmConfig`, their
//! setters and their flags.

/// A key of the configuration that stands for a device: what a command line needs to offer it as a
/// flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceKey {
    /// The key, which is the device's id, too.
    pub key: &'static str,
    /// What the device is.
    pub about: &'static str,
    /// The keys of its value, with a line of help each. None if its value is a switch: `true` or
    /// `false`.
    pub keys: &'static [(&'static str, &'static str)],
}

/// The value of a device's key.
pub(crate) trait DeviceValue {
    /// The device's own configuration.
    type Config;
    /// That configuration, if there is to be such a device.
    fn present(&self) -> Option<&Self::Config>;
}

impl DeviceValue for bool {
    type Config = ();

    fn present(&self) -> Option<&()> {
        self.then_some(&())
    }
}

impl<T> DeviceValue for Option<T> {
    type Config = T;

    fn present(&self) -> Option<&T> {
        self.as_ref()
    }
}

/// Defines a configuration: a struct whose fields have their defaults behind them, with a field for
/// each device.
macro_rules! with_devices {
    (
        [$(
            #[doc = $about:literal]
            $(#[$device_meta:meta])*
            $key:ident: $type:ty = $initial:expr => {
                keys: $keys:expr,
                validate: $validate:expr,
                $($_attach:tt)*
            }
        )*]
        $(#[$meta:meta])*
        pub struct $name:ident {
            $($(#[$field_meta:meta])* pub $field:ident: $field_type:ty = $default:expr,)*
        }
    ) => {
        $(#[$meta])*
        pub struct $name {
            $($(#[$field_meta])* pub $field: $field_type,)*
            $(#[doc = $about] $(#[$device_meta])* pub $key: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    $($field: $default,)*
                    $($key: $initial,)*
                }
            }
        }

        impl $name {
            splitring_devices::setters! { $($key: into $type;)* }

            /// The keys that stand for a device each, except disks and network cards.
            pub const DEVICES: &[DeviceKey] = &[$(DeviceKey {
                key: stringify!($key),
                about: $about.trim_ascii(),
                keys: $keys,
            }),*];

            /// Takes the value that the device `key` of [`DEVICES`](Self::DEVICES) has in `other`.
            /// Returns whether there is such a key.
            pub fn take_device(&mut self, key: &str, other: Self) -> bool {
                match key {
                    $(stringify!($key) => self.$key = other.$key,)*
                    _ => return false,
                }
                true
            }

            /// The ids of the devices that there are to be.
            fn device_ids(&self) -> impl Iterator<Item = &'static str> {
                let all = [$(self.$key.present().map(|_| stringify!($key))),*];
                all.into_iter().flatten()
            }

            /// Judges the devices' own configurations.
            fn validate_devices(&self) -> Result<(), ConfigError> {
                $(if let Some(device) = self.$key.present() {
                    type Config = <$type as DeviceValue>::Config;
                    let validate: fn(&Config, &$name) -> Result<(), String> = $validate;
                    validate(device, self).map_err(|problem| ConfigError::Device {
                        id: stringify!($key).to_owned(),
                        problem,
                    })?;
                })*
                Ok(())
            }
        }
    };
}

pub(super) use with_devices;
