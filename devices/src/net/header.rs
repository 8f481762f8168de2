//! The header in front of a transmitted packet (section 5.1.6.2): judged once, from a copy.
//!
//! What passes here is handed to the host's network stack as it is, so nothing the driver did not
//! negotiate and nothing that points outside the packet may pass.

use splitring_virtio::spec::net::{Header, feature, flags, gso};

use super::metrics::Drop;

/// Bytes of the largest packet the device takes: 64 KiB of IP payload and an Ethernet header with VLAN tag.
pub(crate) const MAX_FRAME: u64 = 65_535 + 18;
/// Bytes of the smallest frame: an Ethernet header.
pub(crate) const MIN_FRAME: u64 = 14;

/// Judges the header of a packet of `frame` bytes under the negotiated features, and clears what the
/// specification makes the device ignore.
pub(crate) fn judge(header: Header, frame: u64, features: u64) -> Result<Header, Drop> {
    if !(MIN_FRAME..=MAX_FRAME).contains(&frame) {
        return Err(Drop::Malformed);
    }
    let needs_csum = header.flags & flags::NEEDS_CSUM != 0;
    if needs_csum {
        if features & feature::CSUM == 0 {
            return Err(Drop::NotNegotiated);
        }
        // Both are 16-bit numbers: the sum can't overflow 32 bits.
        let end = u64::from(header.csum_start.get())
            .saturating_add(u64::from(header.csum_offset.get()))
            .saturating_add(2);
        if end > frame {
            return Err(Drop::Malformed);
        }
    }
    segmentation(&header, frame, features, needs_csum)?;
    // DATA_VALID and RSC_INFO are the device's to set; num_buffers has no meaning here.
    Ok(Header {
        flags: header.flags & flags::NEEDS_CSUM,
        num_buffers: 0.into(),
        ..header
    })
}

fn segmentation(header: &Header, frame: u64, features: u64, needs_csum: bool) -> Result<(), Drop> {
    let needed = match header.gso_type & !gso::ECN {
        gso::NONE if header.gso_type == gso::NONE => return Ok(()),
        gso::TCPV4 => feature::HOST_TSO4,
        gso::TCPV6 => feature::HOST_TSO6,
        gso::UDP if header.gso_type & gso::ECN == 0 => feature::HOST_UFO,
        gso::UDP_L4 if header.gso_type & gso::ECN == 0 => feature::HOST_USO,
        _ => return Err(Drop::Malformed),
    };
    let ecn = if header.gso_type & gso::ECN == 0 {
        0
    } else {
        feature::HOST_ECN
    };
    if features & (needed | ecn) != needed | ecn {
        return Err(Drop::NotNegotiated);
    }
    if header.gso_size.get() == 0 || !needs_csum || u64::from(header.hdr_len.get()) > frame {
        return Err(Drop::Malformed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = feature::CSUM
        | feature::HOST_TSO4
        | feature::HOST_TSO6
        | feature::HOST_ECN
        | feature::HOST_UFO
        | feature::HOST_USO;

    fn tcp() -> Header {
        Header {
            flags: flags::NEEDS_CSUM,
            gso_type: gso::TCPV4,
            hdr_len: 54.into(),
            gso_size: 1448.into(),
            csum_start: 34.into(),
            csum_offset: 16.into(),
            num_buffers: 0.into(),
        }
    }

    #[test]
    fn what_was_negotiated_passes_unchanged() {
        assert_eq!(judge(tcp(), 9000, ALL), Ok(tcp()));
        assert_eq!(judge(Header::default(), 60, 0), Ok(Header::default()));
        let ecn = Header {
            gso_type: gso::TCPV6 | gso::ECN,
            ..tcp()
        };
        assert_eq!(judge(ecn, 9000, ALL), Ok(ecn));
    }

    #[test]
    fn bits_that_are_the_devices_to_set_are_cleared() {
        let odd = Header {
            flags: 0xfe,
            num_buffers: 7.into(),
            ..Header::default()
        };
        assert_eq!(judge(odd, 60, ALL), Ok(Header::default()));
    }

    #[test]
    fn an_offload_that_was_not_negotiated_drops_the_packet() {
        assert_eq!(judge(tcp(), 9000, 0), Err(Drop::NotNegotiated));
        for missing in [feature::CSUM, feature::HOST_TSO4] {
            assert_eq!(judge(tcp(), 9000, ALL & !missing), Err(Drop::NotNegotiated));
        }
        let ecn = Header {
            gso_type: gso::TCPV4 | gso::ECN,
            ..tcp()
        };
        assert_eq!(
            judge(ecn, 9000, ALL & !feature::HOST_ECN),
            Err(Drop::NotNegotiated)
        );
    }

    #[test]
    fn a_bad_segmentation_type_or_size_drops_the_packet() {
        for gso_type in [
            2,
            6,
            0x7f,
            gso::ECN,
            gso::UDP | gso::ECN,
            gso::UDP_L4 | gso::ECN,
        ] {
            assert_eq!(
                judge(Header { gso_type, ..tcp() }, 9000, ALL),
                Err(Drop::Malformed),
                "{gso_type:#x}"
            );
        }
        assert_eq!(
            judge(
                Header {
                    gso_size: 0.into(),
                    ..tcp()
                },
                9000,
                ALL
            ),
            Err(Drop::Malformed)
        );
        assert_eq!(
            judge(Header { flags: 0, ..tcp() }, 9000, ALL),
            Err(Drop::Malformed)
        );
        assert_eq!(
            judge(
                Header {
                    hdr_len: 9001.into(),
                    ..tcp()
                },
                9000,
                ALL
            ),
            Err(Drop::Malformed)
        );
    }

    #[test]
    fn a_checksum_place_past_the_packet_drops_it() {
        let last = Header {
            csum_start: 56.into(),
            csum_offset: 2.into(),
            gso_type: 0,
            ..tcp()
        };
        assert!(judge(last, 60, ALL).is_ok());
        assert_eq!(judge(last, 59, ALL), Err(Drop::Malformed));
        let far = Header {
            csum_start: 0xffff.into(),
            csum_offset: 0xffff.into(),
            ..tcp()
        };
        assert_eq!(judge(far, 9000, ALL), Err(Drop::Malformed));
    }

    #[test]
    fn a_frame_shorter_than_ethernet_or_longer_than_a_packet_is_dropped() {
        for frame in [0, 13, MAX_FRAME + 1, u64::MAX] {
            assert_eq!(judge(Header::default(), frame, ALL), Err(Drop::Malformed));
        }
    }
}
