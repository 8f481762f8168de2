//! One flag per device for which the library's configuration has a key. Knows no particular device.

use std::ffi::{OsStr, OsString};

use clap::error::Error;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use splitring::VmConfig;
use splitring::config::DeviceKey;

use crate::help::keys;

/// The given devices, with the text of their flags.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeviceFlags(Vec<(&'static DeviceKey, OsString)>);

impl DeviceFlags {
    pub(crate) fn given(&self) -> impl Iterator<Item = (&'static DeviceKey, &OsStr)> {
        self.0.iter().map(|(key, text)| (*key, text.as_os_str()))
    }
}

impl Args for DeviceFlags {
    fn augment_args(command: Command) -> Command {
        VmConfig::DEVICES
            .iter()
            .fold(command, |command, device| command.arg(flag(device)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for DeviceFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        for device in VmConfig::DEVICES {
            if let Some(text) = matches.get_one::<OsString>(device.key) {
                self.0.push((device, text.clone()));
            }
        }
        Ok(())
    }
}

fn flag(device: &'static DeviceKey) -> Arg {
    let flag = Arg::new(device.key)
        .long(device.key)
        .value_parser(clap::value_parser!(OsString));
    let about = device.about.trim_end_matches('.');
    if device.keys.is_empty() {
        flag.value_name("on|off").help(about)
    } else {
        let about = format!("{about}: on, off, or on with some of");
        flag.value_name("on|off|KEY=VALUE[,KEY=VALUE…]")
            .help(keys(&about, device.keys))
    }
}
