//! Logical unit numbers: virtio-scsi's eight bytes (virtio 1.2 §5.6.6.1) and SAM's (SAM-5 §4.7).

use crate::disk::config::MAX_LUN;

/// The REPORT LUNS well-known logical unit, in the first two bytes.
const REPORT_LUNS: [u8; 2] = [0xc1, 0x01];

/// Whom a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Address {
    Unit(Place),
    /// The REPORT LUNS well-known unit: of one target, or of the whole controller.
    ReportLuns(Option<u8>),
}

/// Target and logical unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    pub(crate) target: u8,
    pub(crate) lun: u16,
}

/// Takes apart what the driver sent; `None` is a format this device does not know.
pub(crate) fn parse(lun: &[u8; 8]) -> Option<Address> {
    let [kind, target, high, low, rest @ ..] = *lun;
    if rest != [0; 4] {
        return None;
    }
    if [kind, target] == REPORT_LUNS {
        return ([high, low] == [0, 0]).then_some(Address::ReportLuns(None));
    }
    if kind != 1 {
        return None;
    }
    let unit = |lun| Some(Address::Unit(Place { target, lun }));
    match (high >> 6, [high, low]) {
        // Peripheral device addressing has bus 0 only.
        (0, [0, low]) => unit(low.into()),
        (1, bytes) => unit(u16::from_be_bytes(bytes) & MAX_LUN),
        (3, REPORT_LUNS) => Some(Address::ReportLuns(Some(target))),
        _ => None,
    }
}

/// The two bytes of a single-level LUN as REPORT LUNS gives them: peripheral up to 255, flat above.
fn single_level(lun: u16) -> [u8; 2] {
    let flat = if lun > 255 { 0x4000 } else { 0 };
    (lun | flat).to_be_bytes()
}

impl Place {
    /// As events carry it: the encoding of REPORT LUNS, which is what guests compare with.
    pub(crate) fn to_virtio(self) -> [u8; 8] {
        let [high, low] = single_level(self.lun);
        [1, self.target, high, low, 0, 0, 0, 0]
    }

    /// As REPORT LUNS of its target lists it.
    pub(crate) fn to_lun(self) -> [u8; 8] {
        let [high, low] = single_level(self.lun);
        [high, low, 0, 0, 0, 0, 0, 0]
    }
}

/// The well-known unit as REPORT LUNS lists it.
pub(crate) const WELL_KNOWN: [u8; 8] = [0xc1, 0x01, 0, 0, 0, 0, 0, 0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_level_addresses_in_both_methods() {
        let unit = |target, lun| Some(Address::Unit(Place { target, lun }));
        assert_eq!(parse(&[1, 7, 0, 5, 0, 0, 0, 0]), unit(7, 5));
        assert_eq!(parse(&[1, 7, 0x40, 5, 0, 0, 0, 0]), unit(7, 5));
        assert_eq!(parse(&[1, 255, 0x7f, 0xff, 0, 0, 0, 0]), unit(255, MAX_LUN));
    }

    #[test]
    fn well_known_units_of_controller_and_target() {
        assert_eq!(
            parse(&[0xc1, 1, 0, 0, 0, 0, 0, 0]),
            Some(Address::ReportLuns(None))
        );
        assert_eq!(
            parse(&[1, 9, 0xc1, 1, 0, 0, 0, 0]),
            Some(Address::ReportLuns(Some(9)))
        );
    }

    #[test]
    fn other_formats_are_not_known() {
        for bad in [
            [0, 0, 0, 0, 0, 0, 0, 0],
            [2, 0, 0, 0, 0, 0, 0, 0],
            [1, 0, 0x01, 0, 0, 0, 0, 0],
            [1, 0, 0x80, 0, 0, 0, 0, 0],
            [1, 0, 0xc1, 2, 0, 0, 0, 0],
            [1, 0, 0, 0, 0, 0, 0, 1],
            [0xc1, 1, 0, 1, 0, 0, 0, 0],
        ] {
            assert_eq!(parse(&bad), None, "{bad:x?}");
        }
    }

    #[test]
    fn every_unit_number_survives_the_round_trip() {
        for lun in [0, 1, 255, 256, 16383] {
            let place = Place { target: 3, lun };
            assert_eq!(parse(&place.to_virtio()), Some(Address::Unit(place)));
        }
        assert_eq!(
            Place {
                target: 3,
                lun: 255
            }
            .to_lun()[..2],
            [0, 255]
        );
        assert_eq!(
            Place {
                target: 3,
                lun: 256
            }
            .to_lun()[..2],
            [0x41, 0]
        );
    }
}
