//! What an operator may say about a disk: the keys of `--disk` and of a `[[disk]]` table, with their help.
//!
//! Knows neither command line nor file format: values come through serde, as numbers or as words.

mod aio;
mod values;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::kind::ErrorKind;
pub use aio::Aio;
pub use values::{Hidden, Wwn};

/// One disk: what [`DiskConfig::new`] makes, changed by its setters or field by field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DiskConfig {
    /// The image: a regular file or a block device.
    pub path: PathBuf,
    /// Name of the device, in metrics, logs and run-time changes. Default: `disk0`, `disk1`…
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// How the image is laid out; never guessed.
    #[serde(default)]
    pub format: Format,
    /// What the guest sees it on.
    #[serde(default)]
    pub bus: Bus,
    /// The guest can't write, and the image is opened for reading only.
    #[serde(default)]
    pub readonly: bool,
    /// What GET_ID and the identity pages return; virtio-blk cuts it at 20 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Request queues; default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// Descriptors a queue, a power of two; default 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_size: Option<u16>,
    /// Go around the host's page cache (O_DIRECT).
    #[serde(default)]
    pub direct: bool,
    /// When a write counts as done.
    #[serde(default)]
    pub cache: Cache,
    /// Let the guest free blocks of the image.
    #[serde(default = "on")]
    pub discard: bool,
    /// Logical block size the guest sees: 512 or 4096; default what the image's partition table
    /// has, without one 512 for files and the device's own for block devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
    /// Requests a second at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<u64>,
    /// Bytes a second at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bytes>,
    /// Allow other users of the image that say so too.
    #[serde(default)]
    pub share: bool,
    /// How the host is asked.
    #[serde(default)]
    pub aio: Aio,
    /// Open the backing file that a qcow2 image names. Whoever made the image chose that file.
    #[serde(default)]
    pub backing: bool,
    /// Features of the device and its rings that are not offered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hide: Vec<Hidden>,
    /// Which SCSI controller, from 0 on; default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<u8>,
    /// SCSI target, 0 to 255; default the first free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<u8>,
    /// SCSI logical unit number, 0 to 16383; default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lun: Option<u16>,
    /// SCSI world-wide name; default derived from the serial number or the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wwn: Option<Wwn>,
    /// What a SCSI guest takes it for.
    #[serde(default)]
    pub media: Media,
    /// A SCSI guest may eject it.
    #[serde(default)]
    pub removable: bool,
}

/// Highest SCSI logical unit number: what flat addressing can say.
pub const MAX_LUN: u16 = 16383;

/// The keys of [`DiskConfig`] that the help lists, in its order, each with one line of text. Keys for
/// tests (`hide`, and `format=null`) are accepted and not listed.
pub const DISK_KEYS: &[(&str, &str)] = &[
    ("path", "image file or block device"),
    (
        "id",
        "name of the device, in metrics and run-time changes [disk0, disk1, …]",
    ),
    (
        "format",
        "raw or qcow2; never detected from the contents [raw]",
    ),
    ("bus", "virtio or scsi [virtio]"),
    ("readonly", "on or off [off]"),
    (
        "serial",
        "identity the guest reads; virtio cuts it at 20 bytes [empty]",
    ),
    ("queues", "number of request queues [1]"),
    (
        "queue-size",
        "descriptors a queue, a power of two from 2 to 32768 [256]",
    ),
    ("direct", "on or off: go around the host's page cache [off]"),
    (
        "cache",
        "writeback: a flush makes writes stable; writethrough: each write is stable when done [writeback]",
    ),
    (
        "discard",
        "on or off: the guest may free blocks of the image [on]",
    ),
    (
        "block-size",
        "logical block the guest sees, 512 or 4096 [as the image's partition table; else 512, or the device's own]",
    ),
    ("iops", "most requests a second [no limit]"),
    ("bandwidth", "most bytes a second, as 10M or 1G [no limit]"),
    (
        "share",
        "on or off: allow other users of the image that say share=on too [off]",
    ),
    (
        "aio",
        "io_uring, threads (blocking system calls) or auto (io_uring if the host allows it) [auto]",
    ),
    (
        "backing",
        "on or off: open the backing file a qcow2 image names, whoever made the image [off]",
    ),
    ("controller", "scsi: number of the controller [0]"),
    ("target", "scsi: target, 0 to 255 [the first free one]"),
    ("lun", "scsi: logical unit number, 0 to 16383 [0]"),
    (
        "wwn",
        "scsi: world-wide name, 16 hexadecimal digits [from serial or image]",
    ),
    ("media", "scsi: disk or cdrom [disk]"),
    ("removable", "scsi: on or off: the guest may eject it [off]"),
];

/// What a SCSI unit is to the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Media {
    /// A disk.
    #[default]
    Disk,
    /// A CD-ROM drive with the image in it.
    Cdrom,
}

/// Layout of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// Byte for byte.
    #[default]
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
    /// Moves no data; only the size is the image's. For measurements.
    Null,
}

/// Bus of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Bus {
    /// A virtio-blk device of its own.
    #[default]
    Virtio,
    /// A logical unit of a virtio-scsi controller.
    Scsi,
}

/// Cache mode as the guest finds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Cache {
    /// Flushes make writes stable.
    #[default]
    Writeback,
    /// Each write is stable when it completes.
    Writethrough,
}

fn on() -> bool {
    true
}

impl DiskConfig {
    /// A writable raw image with every other key at its default.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            id: None,
            format: Format::default(),
            bus: Bus::default(),
            readonly: false,
            serial: None,
            queues: None,
            queue_size: None,
            direct: false,
            cache: Cache::default(),
            discard: true,
            block_size: None,
            iops: None,
            bandwidth: None,
            share: false,
            aio: Aio::default(),
            backing: false,
            hide: Vec::new(),
            controller: None,
            target: None,
            lun: None,
            wwn: None,
            media: Media::default(),
            removable: false,
        }
    }

    crate::setters! {
        path: into PathBuf;
        id: some into String;
        format: Format;
        bus: Bus;
        readonly: bool;
        serial: some into String;
        queues: some u16;
        queue_size: some u16;
        direct: bool;
        cache: Cache;
        discard: bool;
        block_size: some u32;
        iops: some u64;
        bandwidth: some into Bytes;
        share: bool;
        aio: Aio;
        backing: bool;
        hide: into Vec<Hidden>;
        controller: some u8;
        target: some u8;
        lun: some u16;
        wwn: some Wwn;
        media: Media;
        removable: bool;
    }

    /// Request queues, with the default filled in.
    #[must_use]
    pub fn queue_count(&self) -> u16 {
        self.queues.unwrap_or(1)
    }

    /// Descriptors a queue, with the default filled in.
    #[must_use]
    pub fn queue_len(&self) -> u16 {
        self.queue_size.unwrap_or(DEFAULT_QUEUE_SIZE)
    }

    /// A key in use that means something on a SCSI bus only.
    fn first_scsi_key(&self) -> Option<&'static str> {
        let keys = [
            ("controller", self.controller.is_some()),
            ("target", self.target.is_some()),
            ("lun", self.lun.is_some()),
            ("wwn", self.wwn.is_some()),
            ("media", self.media != Media::Disk),
            ("removable", self.removable),
        ];
        keys.into_iter().find(|(_, used)| *used).map(|(key, _)| key)
    }

    /// The feature bits of [`hide`](Self::hide).
    #[must_use]
    pub fn hidden_features(&self) -> u64 {
        self.hide.iter().fold(0, |bits, hidden| bits | hidden.bit())
    }

    /// Judges each key by itself and against the others; opens nothing.
    ///
    /// # Errors
    /// The key, its value, why it can't be, and what can.
    pub fn validate(&self) -> Result<(), InvalidDisk> {
        let refuse = |key, value: String, remedy| Err(InvalidDisk { key, value, remedy });
        if self.path.as_os_str().is_empty() {
            return refuse(
                "path",
                String::new(),
                "name an image file or a block device",
            );
        }
        if !(1..=MAX_QUEUES).contains(&self.queue_count()) {
            return refuse("queues", self.queue_count().to_string(), "give 1 to 64");
        }
        let size = self.queue_len();
        if !size.is_power_of_two() || !(MIN_QUEUE_SIZE..=MAX_QUEUE_SIZE).contains(&size) {
            return refuse(
                "queue-size",
                size.to_string(),
                "give a power of two from 2 to 32768; a request takes two descriptors at least",
            );
        }
        if let Some(block) = self.block_size
            && !matches!(block, 512 | 4096)
        {
            return refuse("block-size", block.to_string(), "give 512 or 4096");
        }
        if self.iops == Some(0) {
            return refuse(
                "iops",
                "0".into(),
                "give at least 1, or leave it out for no limit",
            );
        }
        if self.bandwidth == Some(Bytes(0)) {
            return refuse(
                "bandwidth",
                "0".into(),
                "give at least 1, or leave it out for no limit",
            );
        }
        if self.bus != Bus::Scsi
            && let Some(key) = self.first_scsi_key()
        {
            return refuse(key, "set".into(), "use it with bus=scsi, or leave it out");
        }
        if let Some(lun) = self.lun.filter(|lun| *lun > MAX_LUN) {
            return refuse("lun", lun.to_string(), "give 0 to 16383");
        }
        if self.format == Format::Qcow2 && (self.direct || self.aio == Aio::IoUring) {
            let key = if self.direct { "direct" } else { "aio" };
            return refuse(
                key,
                "set".into(),
                "leave it out with format=qcow2, which has a backend of its own",
            );
        }
        if self.format != Format::Qcow2 && self.backing {
            return refuse(
                "backing",
                "on".into(),
                "leave it out: only format=qcow2 has backing files",
            );
        }
        Ok(())
    }
}

/// Descriptors a queue unless said otherwise.
pub const DEFAULT_QUEUE_SIZE: u16 = 256;
/// Most request queues a disk may have.
const MAX_QUEUES: u16 = 64;
/// Descriptors for the shortest request: one that is read and one that is written.
const MIN_QUEUE_SIZE: u16 = 2;
/// Most descriptors a split ring can have (virtio 1.3, 2.7).
const MAX_QUEUE_SIZE: u16 = 32768;

/// A key of a disk with a value that can't be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("disk key `{key}` can't be `{value}`: {remedy}")]
pub struct InvalidDisk {
    key: &'static str,
    value: String,
    remedy: &'static str,
}

impl InvalidDisk {
    /// Returns [`ErrorKind::Config`].
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Config
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::de;

    /// Keys that the help does not list.
    const TEST_KEYS: usize = 1;

    #[test]
    fn help_lists_exactly_the_keys_serde_knows_except_those_for_tests() {
        // deny_unknown_fields names the expected fields in declaration order in its message.
        let error =
            DiskConfig::deserialize(de::value::MapDeserializer::<_, de::value::Error>::new(
                [("no-such-key", 0_u32)].into_iter(),
            ))
            .expect_err("unknown key")
            .to_string();
        for (key, text) in DISK_KEYS {
            assert!(
                error.contains(&format!("`{key}`")),
                "{key} is in the help only"
            );
            assert!(!text.is_empty());
        }
        assert_eq!(
            error.matches('`').count() / 2 - 1,
            DISK_KEYS.len() + TEST_KEYS,
            "{error}"
        );
    }

    #[test]
    fn byte_counts_take_units_and_refuse_the_rest() {
        assert_eq!("10M".parse(), Ok(Bytes(10 << 20)));
        assert_eq!("4096".parse(), Ok(Bytes(4096)));
        assert_eq!("2T".parse(), Ok(Bytes(2 << 40)));
        for bad in ["", "K", "1Q", "-1", "1.5G", "99999999T"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }

    #[test]
    fn world_wide_names_have_16_digits_and_a_known_format() {
        assert_eq!("0x5000c50015ea71ac".parse(), Ok(Wwn(0x5000_c500_15ea_71ac)));
        assert_eq!("3000000000000001".parse(), Ok(Wwn(0x3000_0000_0000_0001)));
        for bad in ["", "5000", "0x7000c50015ea71ac", "5000c50015ea71agg", "x"] {
            assert!(bad.parse::<Wwn>().is_err(), "{bad}");
        }
    }

    #[test]
    fn contradictory_or_impossible_keys_are_named() {
        let good = DiskConfig::new("a.raw");
        assert_eq!(good.validate(), Ok(()));
        type Spoil = fn(&mut DiskConfig);
        let cases: [(&str, Spoil); 12] = [
            ("path", |c| c.path = PathBuf::new()),
            ("queues", |c| c.queues = Some(0)),
            ("queues", |c| c.queues = Some(65)),
            ("queue-size", |c| c.queue_size = Some(100)),
            ("queue-size", |c| c.queue_size = Some(1)),
            ("block-size", |c| c.block_size = Some(1024)),
            ("iops", |c| c.iops = Some(0)),
            ("bandwidth", |c| c.bandwidth = Some(Bytes(0))),
            ("target", |c| c.target = Some(1)),
            ("media", |c| c.media = Media::Cdrom),
            ("lun", |c| {
                c.bus = Bus::Scsi;
                c.lun = Some(16384);
            }),
            ("direct", |c| {
                c.format = Format::Qcow2;
                c.direct = true;
            }),
        ];
        for (key, spoil) in cases {
            let mut config = good.clone();
            spoil(&mut config);
            assert_eq!(config.validate().expect_err(key).key, key);
        }
    }
}
