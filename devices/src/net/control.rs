//! Control commands (section 5.1.6.5): bytes to a typed command, a typed command to a change of the
//! device's state. Two things, so that each can be read and tested by itself.

use splitring_virtio::spec::net::{ctrl, feature};

use super::filter::{Filter, Mac};

/// Bytes of the longest command that is looked at: a MAC table with some thousand addresses.
pub(crate) const MAX_COMMAND: usize = 32 << 10;

/// Bytes of the longest writable part that is filled. Every answer is one byte; drivers may leave room in front of it.
pub(crate) const MAX_ANSWER: u64 = 4096;

/// A switch of the receive mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RxMode {
    Promiscuous,
    AllMulticast,
    AllUnicast,
    NoMulticast,
    NoUnicast,
    NoBroadcast,
}

/// What the driver asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Rx(RxMode, bool),
    Address(Mac),
    Tables {
        unicast: Vec<Mac>,
        multicast: Vec<Mac>,
    },
    Vlan {
        id: u16,
        wanted: bool,
    },
    AnnounceAck,
    Pairs(u16),
    /// Feature masks of the offloads wanted from now on.
    GuestOffloads(u64),
}

/// Offloads the driver may switch while it runs.
pub(crate) const GUEST_OFFLOADS: u64 = feature::GUEST_CSUM
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::GUEST_ECN
    | feature::GUEST_UFO
    | feature::GUEST_USO4
    | feature::GUEST_USO6;

impl Command {
    /// Reads a command under the negotiated features; `None` is answered with `ERR`.
    pub(crate) fn parse(bytes: &[u8], features: u64) -> Option<Self> {
        let (&[class, command], data) = bytes.split_first_chunk::<2>()?;
        let has = |feature: u64| (features & feature != 0).then_some(());
        match (class, command) {
            (ctrl::RX, _) => {
                let (mode, needed) = rx_mode(command)?;
                has(needed)?;
                let &[on] = data.first_chunk::<1>().filter(|_| data.len() == 1)?;
                Some(Self::Rx(mode, on != 0))
            }
            (ctrl::MAC, ctrl::MAC_ADDR_SET) => {
                has(feature::CTRL_MAC_ADDR)?;
                // A group address can't be an interface's own.
                <Mac>::try_from(data)
                    .ok()
                    .filter(|[first, ..]| first & 1 == 0)
                    .map(Self::Address)
            }
            (ctrl::MAC, ctrl::MAC_TABLE_SET) => {
                has(feature::CTRL_RX)?;
                let (unicast, rest) = mac_table(data)?;
                let (multicast, rest) = mac_table(rest)?;
                rest.is_empty()
                    .then_some(Self::Tables { unicast, multicast })
            }
            (ctrl::VLAN, ctrl::VLAN_ADD | ctrl::VLAN_DEL) => {
                has(feature::CTRL_VLAN)?;
                let id = le16(data)?;
                (id < 4096).then_some(Self::Vlan {
                    id,
                    wanted: command == ctrl::VLAN_ADD,
                })
            }
            (ctrl::ANNOUNCE, ctrl::ANNOUNCE_ACK) => {
                has(feature::GUEST_ANNOUNCE)?;
                data.is_empty().then_some(Self::AnnounceAck)
            }
            (ctrl::MQ, ctrl::MQ_VQ_PAIRS_SET) => {
                has(feature::MQ)?;
                le16(data).map(Self::Pairs)
            }
            (ctrl::GUEST_OFFLOADS, ctrl::GUEST_OFFLOADS_SET) => {
                has(feature::CTRL_GUEST_OFFLOADS)?;
                let wanted = u64::from_le_bytes(data.try_into().ok()?);
                (wanted & !(features & GUEST_OFFLOADS) == 0).then_some(Self::GuestOffloads(wanted))
            }
            _ => None,
        }
    }
}

fn rx_mode(command: u8) -> Option<(RxMode, u64)> {
    Some(match command {
        ctrl::RX_PROMISC => (RxMode::Promiscuous, feature::CTRL_RX),
        ctrl::RX_ALLMULTI => (RxMode::AllMulticast, feature::CTRL_RX),
        ctrl::RX_ALLUNI => (RxMode::AllUnicast, feature::CTRL_RX_EXTRA),
        ctrl::RX_NOMULTI => (RxMode::NoMulticast, feature::CTRL_RX_EXTRA),
        ctrl::RX_NOUNI => (RxMode::NoUnicast, feature::CTRL_RX_EXTRA),
        ctrl::RX_NOBCAST => (RxMode::NoBroadcast, feature::CTRL_RX_EXTRA),
        _ => return None,
    })
}

fn le16(data: &[u8]) -> Option<u16> {
    data.try_into().ok().map(u16::from_le_bytes)
}

/// A 32-bit count and that many addresses; the rest of the bytes with it.
fn mac_table(data: &[u8]) -> Option<(Vec<Mac>, &[u8])> {
    let (count, rest) = data.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_le_bytes(*count))
        .ok()?
        .checked_mul(size_of::<Mac>())?;
    let (table, rest) = rest.split_at_checked(len)?;
    let (addresses, _) = table.as_chunks::<6>();
    Some((addresses.to_vec(), rest))
}

impl RxMode {
    /// Switches this mode of a filter.
    pub(crate) fn set(self, filter: &mut Filter, on: bool) {
        let switch = match self {
            Self::Promiscuous => &mut filter.promiscuous,
            Self::AllMulticast => &mut filter.all_multicast,
            Self::AllUnicast => &mut filter.all_unicast,
            Self::NoMulticast => &mut filter.no_multicast,
            Self::NoUnicast => &mut filter.no_unicast,
            Self::NoBroadcast => &mut filter.no_broadcast,
        };
        *switch = on;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = u64::MAX;

    #[test]
    fn every_command_is_read() {
        let table = [
            &1u32.to_le_bytes()[..],
            &[2, 0, 0, 0, 0, 7],
            &0u32.to_le_bytes(),
        ]
        .concat();
        let cases: [(&[u8], &[u8], Command); 8] = [
            (&[0, 0], &[1], Command::Rx(RxMode::Promiscuous, true)),
            (&[0, 5], &[0], Command::Rx(RxMode::NoBroadcast, false)),
            (
                &[1, 0],
                &table,
                Command::Tables {
                    unicast: vec![[2, 0, 0, 0, 0, 7]],
                    multicast: vec![],
                },
            ),
            (
                &[1, 1],
                &[2, 1, 2, 3, 4, 5],
                Command::Address([2, 1, 2, 3, 4, 5]),
            ),
            (
                &[2, 1],
                &[5, 0],
                Command::Vlan {
                    id: 5,
                    wanted: false,
                },
            ),
            (&[3, 0], &[], Command::AnnounceAck),
            (&[4, 0], &[3, 0], Command::Pairs(3)),
            (
                &[5, 0],
                &feature::GUEST_TSO4.to_le_bytes(),
                Command::GuestOffloads(feature::GUEST_TSO4),
            ),
        ];
        for (head, data, want) in cases {
            let bytes = [head, data].concat();
            assert_eq!(Command::parse(&bytes, ALL), Some(want), "{bytes:?}");
            assert_eq!(
                Command::parse(&bytes, 0),
                None,
                "{bytes:?} without its feature"
            );
            let longer = [&bytes[..], &[0]].concat();
            assert_eq!(
                Command::parse(&longer, ALL),
                None,
                "{bytes:?} with a byte too many"
            );
            assert_eq!(
                Command::parse(&bytes[..bytes.len() - 1], ALL),
                None,
                "{bytes:?} cut short"
            );
        }
    }

    #[test]
    fn a_mac_count_past_the_data_is_refused() {
        for count in [2u32, 0x2aaa_aaab, u32::MAX] {
            let bytes = [&[1, 0][..], &count.to_le_bytes(), &[0; 10]].concat();
            assert_eq!(Command::parse(&bytes, ALL), None, "{count:#x}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let group = [1, 1, 1, 0, 0, 0, 0, 1];
        let vlan = [2, 0, 0, 0x10];
        for bytes in [
            &[][..],
            &[9],
            &[0, 6, 1],
            &[6, 0],
            &[1, 2],
            &[3, 1],
            &group,
            &vlan,
        ] {
            assert_eq!(Command::parse(bytes, ALL), None, "{bytes:?}");
        }
        let unknown = [&[5, 0][..], &(1u64 << 63).to_le_bytes()].concat();
        assert_eq!(Command::parse(&unknown, ALL), None);
    }
}
