//! The keys of `--net` and of a `[[net]]` table, with their help.

use std::os::fd::RawFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use splitring_virtio::spec::feature as ring;
use splitring_virtio::spec::net::feature;

use super::filter::Mac;
use crate::bytes::{Bytes, InvalidValue};
use crate::kind::ErrorKind;

/// Smallest and largest MTU a device offers (section 5.1.4.1).
pub const MTU_RANGE: std::ops::RangeInclusive<u16> = 68..=65_535;
/// Queue pairs at most.
pub const MAX_PAIRS: u16 = 32;
/// Descriptors a queue has where none are asked for.
const DEFAULT_QUEUE_SIZE: u16 = 256;

/// One network card: what [`NetConfig::tap`], [`NetConfig::passt`] or [`NetConfig::handed_over`] makes, changed by its
/// setters or field by field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct NetConfig {
    /// Name of the device. Default: `net0`, `net1`…
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// A TAP interface by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// Opened TAP descriptors by number, one per queue pair; with `passt`, one connected stream socket. The command
    /// line takes them over before it opens the machine's resources; a library user hands over descriptors instead.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fd: Vec<RawFd>,
    /// Have the kernel's vhost-net move the frames of a TAP interface.
    pub vhost: bool,
    /// User-space networking through passt.
    pub passt: bool,
    /// Socket of a running passt; without it one is started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// TCP ports forwarded to the guest, as passt's `-t` takes them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<String>,
    /// UDP ports forwarded to the guest, as passt's `-u` takes them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<String>,
    /// The guest's address. Default: locally administered, the same for the same machine and index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// MTU offered to the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Queue pairs; default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// Descriptors per queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_size: Option<u16>,
    /// Checksum and segmentation offloads; default on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offloads: Option<bool>,
    /// Send only frames whose source is the guest's own address.
    pub mac_filter: bool,
    /// Frames a second at most, in each direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// Bytes a second at most, in each direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bytes>,
    /// Features of the device and its rings that are not offered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hide: Vec<Hidden>,
}

/// A feature that can be left out, to see what drivers do without it; what needs it goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Hidden {
    /// Event indices in the rings.
    EventIdx,
    /// Indirect descriptor tables.
    IndirectDesc,
    /// Received frames that fill several buffers.
    MrgRxbuf,
    /// Unfinished checksums from the guest.
    Csum,
    /// Unfinished checksums to the guest.
    GuestCsum,
    /// Segmentation left to the guest's receive path, of every kind.
    GuestTso,
    /// The control queue.
    CtrlVq,
    /// Receive modes and address tables.
    CtrlRx,
    /// The VLAN filter.
    CtrlVlan,
    /// Switching offloads at run time.
    CtrlGuestOffloads,
    /// More than one queue pair.
    Mq,
    /// Link state.
    Status,
}

impl Hidden {
    fn bits(self) -> u64 {
        match self {
            Self::EventIdx => ring::EVENT_IDX,
            Self::IndirectDesc => ring::INDIRECT_DESC,
            Self::MrgRxbuf => feature::MRG_RXBUF,
            Self::Csum => feature::CSUM,
            Self::GuestCsum => feature::GUEST_CSUM,
            Self::GuestTso => {
                feature::GUEST_TSO4
                    | feature::GUEST_TSO6
                    | feature::GUEST_UFO
                    | feature::GUEST_USO4
                    | feature::GUEST_USO6
            }
            Self::CtrlVq => feature::CTRL_VQ,
            Self::CtrlRx => feature::CTRL_RX,
            Self::CtrlVlan => feature::CTRL_VLAN,
            Self::CtrlGuestOffloads => feature::CTRL_GUEST_OFFLOADS,
            Self::Mq => feature::MQ,
            Self::Status => feature::STATUS,
        }
    }
}

/// The keys of [`NetConfig`] that the help lists, in its order, each with one line of text. `hide`, a
/// key for tests, is accepted and not listed.
pub const NET_KEYS: &[(&str, &str)] = &[
    (
        "tap",
        "name of a TAP interface; one that is yours needs no privilege",
    ),
    (
        "fd",
        "opened TAP descriptors, one a queue pair, as 3 or 3:4",
    ),
    (
        "vhost",
        "on or off: the kernel's vhost-net moves the frames, which needs /dev/vhost-net [off]",
    ),
    ("passt", "user-space networking without privilege, by passt"),
    ("socket", "socket of a running passt [one is started]"),
    (
        "tcp",
        "TCP ports forwarded to the guest, as passt -t takes them [none]",
    ),
    (
        "udp",
        "UDP ports forwarded to the guest, as passt -u takes them [none]",
    ),
    ("id", "name of the device [net0, net1, …]"),
    (
        "mac",
        "the guest's address [locally administered, stable per machine and index]",
    ),
    ("mtu", "MTU offered to the guest, 68 to 65535 [not offered]"),
    ("queues", "number of queue pairs, 1 to 32 [1]"),
    (
        "queue-size",
        "descriptors a queue, a power of two up to 32768 [256]",
    ),
    (
        "offloads",
        "on or off: checksum and segmentation offloads [on]",
    ),
    (
        "mac-filter",
        "on or off: drop frames whose source is not the guest's address [off]",
    ),
    (
        "packets",
        "most frames a second, in each direction [no limit]",
    ),
    (
        "bandwidth",
        "most bytes a second, in each direction, as 10M or 1G [no limit]",
    ),
];

/// What is wrong with a network card's keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetConfigError {
    /// No backend, or more than one.
    #[error(
        "exactly one of tap=, fd= and passt must be given (or passt with the fd= of its socket)"
    )]
    Backend,
    /// More than one way to reach passt.
    #[error("passt takes one of fd= (a single descriptor) and socket=")]
    PasstSocket,
    /// A key that needs the frames in this process.
    #[error(
        "vhost=on has the kernel move the frames, so {0} can't be applied to them; leave one of the two out"
    )]
    Vhost(&'static str),
    /// passt's keys without passt.
    #[error("{0}= goes with passt only")]
    PasstOnly(&'static str),
    /// Ports for a passt that is running already.
    #[error(
        "{key}= is for a passt that is started here; give the ports to the one that runs already when it is started \
         (`passt {option} {ports}`), or leave {with}= out"
    )]
    Forwarding {
        /// The key.
        key: &'static str,
        /// What it was given.
        ports: String,
        /// passt's own option for it.
        option: &'static str,
        /// The key that names the running passt.
        with: &'static str,
    },
    /// Not in [`MTU_RANGE`].
    #[error("mtu={0} is out of range; it must be 68 to 65535")]
    Mtu(u16),
    /// Not 1 to [`MAX_PAIRS`], or more than the backend has.
    #[error("queues={asked} is out of range; it must be 1 to {max} with this backend")]
    Queues {
        /// Pairs asked for.
        asked: u16,
        /// Pairs the backend can have.
        max: u16,
    },
    /// No power of two the ring can have.
    #[error("queue-size={0} is not possible; it must be a power of two from 2 to 32768")]
    QueueSize(u16),
    /// A limit that lets nothing through.
    #[error("{0}=0 would let nothing through; give at least 1, or leave it out for no limit")]
    NoRate(&'static str),
    /// A group address, or none at all.
    #[error(
        "mac={0} can't be a card's address: the first byte must be even and not all bytes zero"
    )]
    Mac(MacAddress),
}

impl NetConfigError {
    /// Returns [`ErrorKind::Config`].
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Config
    }
}

impl NetConfig {
    /// A card on the TAP interface `name`.
    #[must_use]
    pub fn tap(name: impl Into<String>) -> Self {
        Self {
            tap: Some(name.into()),
            ..Self::default()
        }
    }

    /// A card on a passt that is started for it, or that listens at [`socket`](Self::socket()).
    #[must_use]
    pub fn passt() -> Self {
        Self {
            passt: true,
            ..Self::default()
        }
    }

    /// A card whose backend the embedder hands over.
    #[must_use]
    pub fn handed_over() -> Self {
        Self::default()
    }

    crate::setters! {
        id: some into String;
        vhost: bool;
        socket: some into PathBuf;
        tcp: some into String;
        udp: some into String;
        mac: some MacAddress;
        mtu: some u16;
        queues: some u16;
        queue_size: some u16;
        offloads: some bool;
        mac_filter: bool;
        packets: some u64;
        bandwidth: some into Bytes;
        hide: into Vec<Hidden>;
    }

    /// Refuses what contradicts itself.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn validate(&self) -> Result<(), NetConfigError> {
        self.validate_backend()?;
        self.validate_card()
    }

    /// Whether the keys name one backend.
    fn validate_backend(&self) -> Result<(), NetConfigError> {
        let backends = [
            self.tap.is_some(),
            !self.fd.is_empty() && !self.passt,
            self.passt,
        ];
        if backends.iter().filter(|given| **given).count() != 1 {
            return Err(NetConfigError::Backend);
        }
        if self.passt && self.fd.len().saturating_add(self.socket.iter().len()) > 1 {
            return Err(NetConfigError::PasstSocket);
        }
        let passt_only = [
            ("socket", self.socket.is_some()),
            ("tcp", self.tcp.is_some()),
            ("udp", self.udp.is_some()),
        ];
        if let Some((key, _)) = passt_only.iter().find(|(_, given)| *given && !self.passt) {
            return Err(NetConfigError::PasstOnly(key));
        }
        Ok(())
    }

    /// Refuses keys of the card itself that contradict themselves, whatever its backend; for a card whose
    /// backend is handed over.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn validate_card(&self) -> Result<(), NetConfigError> {
        self.check_forwarding()?;
        self.check_vhost()?;
        if let Some(mtu) = self.mtu.filter(|mtu| !MTU_RANGE.contains(mtu)) {
            return Err(NetConfigError::Mtu(mtu));
        }
        let max = match (self.passt, self.fd.len()) {
            (true, _) => 1,
            (false, 0) => MAX_PAIRS,
            (false, fds) => u16::try_from(fds).unwrap_or(u16::MAX).min(MAX_PAIRS),
        };
        let asked = self.pairs();
        if !(1..=max).contains(&asked) {
            return Err(NetConfigError::Queues { asked, max });
        }
        let size = self.queue_len();
        if !size.is_power_of_two() || size < 2 {
            return Err(NetConfigError::QueueSize(size));
        }
        if self.packets == Some(0) {
            return Err(NetConfigError::NoRate("packets"));
        }
        if self.bandwidth == Some(Bytes(0)) {
            return Err(NetConfigError::NoRate("bandwidth"));
        }
        match self.mac {
            Some(mac) if !mac.is_unicast() => Err(NetConfigError::Mac(mac)),
            _ => Ok(()),
        }
    }

    /// The kernel neither limits nor judges frames, and knows TAP interfaces only.
    fn check_vhost(&self) -> Result<(), NetConfigError> {
        let in_process = [
            ("passt", self.passt),
            ("packets=", self.packets.is_some()),
            ("bandwidth=", self.bandwidth.is_some()),
            ("mac-filter=on", self.mac_filter),
        ];
        match in_process.iter().find(|(_, given)| *given && self.vhost) {
            Some((key, _)) => Err(NetConfigError::Vhost(key)),
            None => Ok(()),
        }
    }

    /// Ports reach only a passt that is started here.
    fn check_forwarding(&self) -> Result<(), NetConfigError> {
        let running = match (&self.socket, self.fd.is_empty()) {
            (Some(_), _) => "socket",
            (None, false) => "fd",
            (None, true) => return Ok(()),
        };
        let forwards = [("tcp", "-t", &self.tcp), ("udp", "-u", &self.udp)];
        match forwards
            .iter()
            .find_map(|(key, option, ports)| Some((key, option, ports.as_ref()?)))
        {
            None => Ok(()),
            Some((key, option, ports)) => Err(NetConfigError::Forwarding {
                key,
                ports: ports.clone(),
                option,
                with: running,
            }),
        }
    }

    /// Queue pairs asked for; with descriptors handed over, as many as there are.
    pub fn pairs(&self) -> u16 {
        let fds = u16::try_from(self.fd.len()).unwrap_or(u16::MAX);
        self.queues.unwrap_or(fds.max(1))
    }

    /// The feature bits of [`hide`](Self::hide).
    pub fn hidden_features(&self) -> u64 {
        self.hide
            .iter()
            .fold(0, |bits, hidden| bits | hidden.bits())
    }

    /// Descriptors per queue, with the default filled in.
    pub fn queue_len(&self) -> u16 {
        self.queue_size.unwrap_or(DEFAULT_QUEUE_SIZE)
    }
}

/// An Ethernet address as operators write it: six hexadecimal bytes with colons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// Whether a card may have it.
    pub fn is_unicast(self) -> bool {
        let [first, ..] = self.0;
        first & 1 == 0 && self.0 != [0; 6]
    }

    /// The address of card `index` of the machine called `machine`: locally administered, and the same each time.
    pub fn stable(machine: &str, index: usize) -> Self {
        // FNV-1a: well spread, and the same in every version.
        let bytes = machine.bytes().chain(index.to_le_bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let [a, b, c, d, e, ..] = hash.to_be_bytes();
        Self([0x02, a, b, c, d, e])
    }
}

impl std::fmt::Display for MacAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

impl TryFrom<String> for MacAddress {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        text.parse()
    }
}

impl std::str::FromStr for MacAddress {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let refused = || {
            InvalidValue::new(format!(
                "`{text}` is no MAC address; write six bytes as 52:54:00:12:34:56"
            ))
        };
        let byte = |part: &str| {
            u8::from_str_radix(part, 16)
                .ok()
                .filter(|_| part.len() == 2 && !part.starts_with('+'))
        };
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        bytes
            .and_then(|bytes| <Mac>::try_from(bytes).ok())
            .map(Self)
            .ok_or_else(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tap() -> NetConfig {
        NetConfig {
            tap: Some("tap0".into()),
            ..NetConfig::default()
        }
    }

    #[test]
    fn one_backend_is_needed_and_no_more() {
        assert_eq!(tap().validate(), Ok(()));
        assert_eq!(
            NetConfig::default().validate(),
            Err(NetConfigError::Backend)
        );
        assert_eq!(
            NetConfig {
                passt: true,
                ..tap()
            }
            .validate(),
            Err(NetConfigError::Backend)
        );
        let stray = NetConfig {
            tcp: Some("22".into()),
            ..tap()
        };
        assert_eq!(stray.validate(), Err(NetConfigError::PasstOnly("tcp")));
        let mut passt = NetConfig {
            passt: true,
            fd: vec![9],
            ..NetConfig::default()
        };
        assert_eq!(passt.validate(), Ok(()));
        passt.socket = Some("/run/passt".into());
        assert_eq!(passt.validate(), Err(NetConfigError::PasstSocket));
    }

    #[test]
    fn ports_for_a_passt_that_runs_already_are_refused_with_what_to_do() {
        let passt = NetConfig {
            passt: true,
            tcp: Some("8080:80".into()),
            ..NetConfig::default()
        };
        assert_eq!(passt.validate(), Ok(()), "one is started");
        let cases = [
            NetConfig {
                socket: Some("/run/passt".into()),
                ..passt.clone()
            },
            NetConfig {
                fd: vec![9],
                tcp: None,
                udp: Some("53".into()),
                ..passt
            },
        ];
        let refusals = cases.map(|config| config.validate().unwrap_err().to_string());
        for (refusal, parts) in refusals.iter().zip([
            ["tcp=", "`passt -t 8080:80`", "leave socket= out"],
            ["udp=", "`passt -u 53`", "leave fd= out"],
        ]) {
            for part in parts {
                assert!(refusal.contains(part), "{refusal}");
            }
        }
    }

    #[test]
    fn vhost_is_refused_with_what_needs_the_frames_in_this_process() {
        let vhost = tap().vhost(true);
        assert_eq!(vhost.validate(), Ok(()));
        assert_eq!(vhost.clone().queues(4).mtu(9000).validate(), Ok(()));
        let cases = [
            (NetConfig::passt().vhost(true), "passt"),
            (vhost.clone().packets(1000), "packets="),
            (vhost.clone().bandwidth(Bytes(1000)), "bandwidth="),
            (vhost.mac_filter(true), "mac-filter=on"),
        ];
        for (config, key) in cases {
            assert_eq!(config.validate(), Err(NetConfigError::Vhost(key)));
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert_eq!(
            NetConfig {
                mtu: Some(67),
                ..tap()
            }
            .validate(),
            Err(NetConfigError::Mtu(67))
        );
        for asked in [0, 33] {
            let config = NetConfig {
                queues: Some(asked),
                ..tap()
            };
            assert_eq!(
                config.validate(),
                Err(NetConfigError::Queues { asked, max: 32 })
            );
        }
        let two = NetConfig {
            fd: vec![3, 4],
            ..NetConfig::default()
        };
        assert_eq!((two.pairs(), two.validate()), (2, Ok(())));
        let none = NetConfig {
            packets: Some(0),
            ..tap()
        };
        assert_eq!(none.validate(), Err(NetConfigError::NoRate("packets")));
        assert_eq!(
            NetConfig {
                queue_size: Some(100),
                ..tap()
            }
            .validate(),
            Err(NetConfigError::QueueSize(100))
        );
    }

    #[test]
    fn addresses_are_read_and_refused() {
        let mac: MacAddress = "52:54:00:ab:cd:ef".parse().unwrap();
        assert_eq!(
            (mac.0, mac.to_string().as_str()),
            ([0x52, 0x54, 0, 0xab, 0xcd, 0xef], "52:54:00:ab:cd:ef")
        );
        for bad in [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:ef:00",
            "5254.00ab.cdef",
            "52:54:0:ab:cd:ef",
            "52:54:00:ab:cd:+f",
        ] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
        }
        let group = NetConfig {
            mac: Some(MacAddress([1, 0, 0, 0, 0, 1])),
            ..tap()
        };
        assert!(matches!(group.validate(), Err(NetConfigError::Mac(_))));
    }

    #[test]
    fn default_addresses_are_stable_distinct_and_local() {
        let (a, b) = (MacAddress::stable("vm", 0), MacAddress::stable("vm", 1));
        assert!(a == MacAddress::stable("vm", 0) && a != b && a != MacAddress::stable("vm2", 0));
        assert!(a.is_unicast() && a.0[0] & 2 != 0);
    }
}
