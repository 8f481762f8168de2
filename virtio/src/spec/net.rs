//! Network device (section 5.1).

use zerocopy::little_endian::{U16, U32};

/// Feature bits (section 5.1.3), as masks.
pub mod feature {
    /// The device accepts packets with a partial checksum.
    pub const CSUM: u64 = 1 << 0;
    /// The driver accepts packets with a partial checksum.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// Offloads can be changed over the control queue.
    pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    /// `mtu` is valid.
    pub const MTU: u64 = 1 << 3;
    /// `mac` is valid.
    pub const MAC: u64 = 1 << 5;
    /// The driver takes TSOv4.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The driver takes TSOv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// The driver takes TSO with ECN.
    pub const GUEST_ECN: u64 = 1 << 9;
    /// The driver takes UFO.
    pub const GUEST_UFO: u64 = 1 << 10;
    /// The device takes TSOv4.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// The device takes TSOv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// The device takes TSO with ECN.
    pub const HOST_ECN: u64 = 1 << 13;
    /// The device takes UFO.
    pub const HOST_UFO: u64 = 1 << 14;
    /// A received packet may fill several buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// `status` is valid.
    pub const STATUS: u64 = 1 << 16;
    /// There is a control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// Receive mode over the control queue.
    pub const CTRL_RX: u64 = 1 << 18;
    /// VLAN filter over the control queue.
    pub const CTRL_VLAN: u64 = 1 << 19;
    /// Finer receive modes over the control queue.
    pub const CTRL_RX_EXTRA: u64 = 1 << 20;
    /// The driver can announce itself.
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    /// Several queue pairs.
    pub const MQ: u64 = 1 << 22;
    /// The MAC address can be set over the control queue.
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
    /// The driver takes USOv4.
    pub const GUEST_USO4: u64 = 1 << 54;
    /// The driver takes USOv6.
    pub const GUEST_USO6: u64 = 1 << 55;
    /// The device takes USO.
    pub const HOST_USO: u64 = 1 << 56;
    /// Hash of received packets.
    pub const HASH_REPORT: u64 = 1 << 57;
    /// The driver gives the exact `hdr_len`.
    pub const GUEST_HDRLEN: u64 = 1 << 59;
    /// Receive-side scaling.
    pub const RSS: u64 = 1 << 60;
    /// The device reports coalesced segments.
    pub const RSC_EXT: u64 = 1 << 61;
    /// The device is a standby of another one with the same address.
    pub const STANDBY: u64 = 1 << 62;
    /// `speed` and `duplex` are valid.
    pub const SPEED_DUPLEX: u64 = 1 << 63;
}

/// Bits of [`Config::status`].
pub mod status {
    /// The link is up.
    pub const LINK_UP: u16 = 1;
    /// The device requests that the driver announce itself.
    pub const ANNOUNCE: u16 = 2;
}

/// Bits of [`Header::flags`] (section 5.1.6).
pub mod flags {
    /// The checksum is to be completed from `csum_start` on.
    pub const NEEDS_CSUM: u8 = 1;
    /// The checksum has been validated.
    pub const DATA_VALID: u8 = 2;
    /// `csum_start` and `csum_offset` hold coalescing information.
    pub const RSC_INFO: u8 = 4;
}

/// Values of [`Header::gso_type`] (section 5.1.6).
pub mod gso {
    /// A plain packet.
    pub const NONE: u8 = 0;
    /// TCP over IPv4.
    pub const TCPV4: u8 = 1;
    /// UDP fragmentation.
    pub const UDP: u8 = 3;
    /// TCP over IPv6.
    pub const TCPV6: u8 = 4;
    /// UDP segmentation.
    pub const UDP_L4: u8 = 5;
    /// Added to a type: the packet has ECN set.
    pub const ECN: u8 = 0x80;
}

/// Classes and commands of the control queue (section 5.1.6.5).
pub mod ctrl {
    /// Done.
    pub const OK: u8 = 0;
    /// Refused.
    pub const ERR: u8 = 1;

    /// Class: receive mode.
    pub const RX: u8 = 0;
    /// Every packet.
    pub const RX_PROMISC: u8 = 0;
    /// Every multicast packet.
    pub const RX_ALLMULTI: u8 = 1;
    /// Every unicast packet.
    pub const RX_ALLUNI: u8 = 2;
    /// No multicast packet.
    pub const RX_NOMULTI: u8 = 3;
    /// No unicast packet.
    pub const RX_NOUNI: u8 = 4;
    /// No broadcast packet.
    pub const RX_NOBCAST: u8 = 5;

    /// Class: MAC addresses.
    pub const MAC: u8 = 1;
    /// Sets the filter tables.
    pub const MAC_TABLE_SET: u8 = 0;
    /// Sets the device's own address.
    pub const MAC_ADDR_SET: u8 = 1;

    /// Class: VLAN filter.
    pub const VLAN: u8 = 2;
    /// Adds a VLAN.
    pub const VLAN_ADD: u8 = 0;
    /// Removes a VLAN.
    pub const VLAN_DEL: u8 = 1;

    /// Class: announcements.
    pub const ANNOUNCE: u8 = 3;
    /// The driver has announced itself.
    pub const ANNOUNCE_ACK: u8 = 0;

    /// Class: queue pairs.
    pub const MQ: u8 = 4;
    /// Sets the number of pairs in use.
    pub const MQ_VQ_PAIRS_SET: u8 = 0;
    /// Minimum number of pairs.
    pub const MQ_VQ_PAIRS_MIN: u16 = 1;
    /// Maximum number of pairs.
    pub const MQ_VQ_PAIRS_MAX: u16 = 0x8000;

    /// Class: offloads of the receiving side.
    pub const GUEST_OFFLOADS: u8 = 5;
    /// Sets the offloads: a `le64` of feature masks.
    pub const GUEST_OFFLOADS_SET: u8 = 0;
}

wire! {
    /// Precedes every packet (section 5.1.6).
    pub struct Header {
        /// `flags::…`.
        pub flags: u8,
        /// `gso::…`.
        pub gso_type: u8,
        /// Bytes of the headers to be repeated in each segment: a hint.
        pub hdr_len: U16,
        /// Payload bytes of each segment.
        pub gso_size: U16,
        /// Where to start checksumming.
        pub csum_start: U16,
        /// Where, from there, to put the checksum.
        pub csum_offset: U16,
        /// Number of buffers the packet fills; 1 without `MRG_RXBUF`.
        pub num_buffers: U16,
    }
}

/// Bytes of [`Header`].
pub const HEADER_SIZE: usize = size_of::<Header>();

wire! {
    /// Configuration space (section 5.1.4), without the hash and RSS part.
    pub struct Config {
        /// MAC address.
        pub mac: [u8; 6],
        /// `status::…`.
        pub status: U16,
        /// Maximum number of queue pairs.
        pub max_virtqueue_pairs: U16,
        /// Largest MTU the driver should use.
        pub mtu: U16,
        /// Speed in Mbit/s; `u32::MAX` is unknown.
        pub speed: U32,
        /// 0 half, 1 full, 0xff unknown.
        pub duplex: u8,
    }

    /// Head of a control command, device-readable; an acknowledgement byte follows the data.
    pub struct CtrlHeader {
        /// Class.
        pub class: u8,
        /// Command of that class.
        pub command: u8,
    }
}
