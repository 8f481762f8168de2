//! Statuses and sense data (SAM-5 §5.3, SPC-4 §4.5).
//!
//! What a command answers is decided here as plain values and encoded last, in the format the control mode page
//! asks for. Knows nothing of virtio: the response area and its size belong to `request`.

use super::wire::{self, Bytes};

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Good,
    Check(Sense),
    ReservationConflict,
}

impl Status {
    /// The status byte (SAM-5 table 33).
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Good => 0x00,
            Self::Check(_) => 0x02,
            Self::ReservationConflict => 0x18,
        }
    }

    pub(crate) fn sense(&self) -> Option<&Sense> {
        match self {
            Self::Check(sense) => Some(sense),
            _ => None,
        }
    }
}

impl From<Sense> for Status {
    fn from(sense: Sense) -> Self {
        Self::Check(sense)
    }
}

/// Sense keys (SPC-4 table 48) this target uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Key {
    NoSense = 0x0,
    NotReady = 0x2,
    MediumError = 0x3,
    HardwareError = 0x4,
    IllegalRequest = 0x5,
    UnitAttention = 0x6,
    DataProtect = 0x7,
    Miscompare = 0xe,
}

/// Additional sense code and qualifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Code(pub(crate) u8, pub(crate) u8);

/// Where the offending field is: sense-key specific data of ILLEGAL REQUEST (SPC-4 §4.5.2.4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Field {
    /// In the CDB, or else in the parameter list.
    pub(crate) in_cdb: bool,
    pub(crate) byte: u16,
    pub(crate) bit: Option<u8>,
}

/// One sense: key, code, and what is known besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sense {
    pub(crate) key: Key,
    pub(crate) code: Code,
    pub(crate) field: Option<Field>,
    pub(crate) information: Option<u64>,
}

impl Sense {
    pub(crate) const fn new(key: Key, asc: u8, ascq: u8) -> Self {
        Self {
            key,
            code: Code(asc, ascq),
            field: None,
            information: None,
        }
    }

    pub(crate) const NONE: Self = Self::new(Key::NoSense, 0x00, 0x00);
    pub(crate) const INVALID_OPCODE: Self = Self::new(Key::IllegalRequest, 0x20, 0x00);
    pub(crate) const LBA_OUT_OF_RANGE: Self = Self::new(Key::IllegalRequest, 0x21, 0x00);
    pub(crate) const INVALID_FIELD_IN_CDB: Self = Self::new(Key::IllegalRequest, 0x24, 0x00);
    pub(crate) const LUN_NOT_SUPPORTED: Self = Self::new(Key::IllegalRequest, 0x25, 0x00);
    pub(crate) const INVALID_FIELD_IN_LIST: Self = Self::new(Key::IllegalRequest, 0x26, 0x00);
    pub(crate) const INVALID_RELEASE: Self = Self::new(Key::IllegalRequest, 0x26, 0x04);
    pub(crate) const LIST_LENGTH: Self = Self::new(Key::IllegalRequest, 0x1a, 0x00);
    pub(crate) const SAVING_NOT_SUPPORTED: Self = Self::new(Key::IllegalRequest, 0x39, 0x00);
    pub(crate) const REMOVAL_PREVENTED: Self = Self::new(Key::IllegalRequest, 0x53, 0x02);
    pub(crate) const NO_REGISTRATION_RESOURCES: Self = Self::new(Key::IllegalRequest, 0x55, 0x04);
    pub(crate) const NO_MEDIUM: Self = Self::new(Key::NotReady, 0x3a, 0x00);
    pub(crate) const WRITE_PROTECTED: Self = Self::new(Key::DataProtect, 0x27, 0x00);
    pub(crate) const SOFTWARE_WRITE_PROTECTED: Self = Self::new(Key::DataProtect, 0x27, 0x02);
    pub(crate) const NO_SPACE: Self = Self::new(Key::DataProtect, 0x27, 0x07);
    pub(crate) const MISCOMPARE: Self = Self::new(Key::Miscompare, 0x1d, 0x00);
    pub(crate) const READ_ERROR: Self = Self::new(Key::MediumError, 0x11, 0x00);
    pub(crate) const WRITE_ERROR: Self = Self::new(Key::MediumError, 0x0c, 0x00);
    pub(crate) const INTERNAL_FAILURE: Self = Self::new(Key::HardwareError, 0x44, 0x00);

    /// A CDB byte that holds something this target does not take.
    pub(crate) fn cdb_field(byte: u16, bit: Option<u8>) -> Self {
        Self {
            field: Some(Field {
                in_cdb: true,
                byte,
                bit,
            }),
            ..Self::INVALID_FIELD_IN_CDB
        }
    }

    /// A parameter list byte that holds something this target does not take.
    pub(crate) fn list_field(byte: usize) -> Self {
        let byte = wire::len16(byte);
        Self {
            field: Some(Field {
                in_cdb: false,
                byte,
                bit: None,
            }),
            ..Self::INVALID_FIELD_IN_LIST
        }
    }

    /// A condition to be reported once: key UNIT ATTENTION.
    pub(crate) fn unit_attention(code: Code) -> Self {
        Self::new(Key::UnitAttention, code.0, code.1)
    }

    pub(crate) fn with_information(self, information: u64) -> Self {
        Self {
            information: Some(information),
            ..self
        }
    }

    /// Encodes as current sense data, descriptor format (72h) or fixed format (70h).
    pub(crate) fn encode(&self, descriptor: bool) -> Vec<u8> {
        if descriptor {
            self.descriptor()
        } else {
            self.fixed()
        }
    }

    /// The three sense-key specific bytes.
    fn specific(&self) -> Option<[u8; 3]> {
        let field = self.field?;
        let pointer = field.byte.to_be_bytes();
        let cd = if field.in_cdb { 0x40 } else { 0 };
        let bit = field.bit.map_or(0, |bit| 0x08 | (bit & 0x07));
        let [high, low] = pointer;
        Some([0x80 | cd | bit, high, low])
    }

    fn fixed(&self) -> Vec<u8> {
        // The information field has 32 bits here; what does not fit is not valid (SPC-4 §4.5.3).
        let information = self.information.and_then(|value| u32::try_from(value).ok());
        let valid = if information.is_some() { 0x80 } else { 0 };
        let mut out = Bytes::new();
        out.u8(valid | 0x70)
            .u8(0)
            .u8(self.key as u8)
            .u32(information.unwrap_or(0))
            .u8(10)
            .u32(0);
        out.u8(self.code.0)
            .u8(self.code.1)
            .u8(0)
            .slice(&self.specific().unwrap_or_default());
        out.finish()
    }

    fn descriptor(&self) -> Vec<u8> {
        let mut out = Bytes::new();
        out.u8(0x72)
            .u8(self.key as u8)
            .u8(self.code.0)
            .u8(self.code.1)
            .zeros(4);
        if let Some(information) = self.information {
            out.u8(0x00).u8(0x0a).u8(0x80).u8(0).u64(information);
        }
        if let Some(specific) = self.specific() {
            out.u8(0x02).u8(0x06).zeros(2).slice(&specific).u8(0);
        }
        let additional = wire::len8(out.len().saturating_sub(8));
        out.patch_u8(7, additional);
        out.finish()
    }
}

/// Unit attention conditions (SPC-4 §5.14, table F).
pub(crate) mod attention {
    use super::Code;

    pub(crate) const POWER_ON: Code = Code(0x29, 0x00);
    pub(crate) const UNIT_RESET: Code = Code(0x29, 0x03);
    pub(crate) const NEXUS_LOSS: Code = Code(0x29, 0x07);
    pub(crate) const MEDIUM_CHANGED: Code = Code(0x28, 0x00);
    pub(crate) const MODE_CHANGED: Code = Code(0x2a, 0x01);
    pub(crate) const RESERVATIONS_PREEMPTED: Code = Code(0x2a, 0x03);
    pub(crate) const RESERVATIONS_RELEASED: Code = Code(0x2a, 0x04);
    pub(crate) const REGISTRATIONS_PREEMPTED: Code = Code(0x2a, 0x05);
    pub(crate) const CAPACITY_CHANGED: Code = Code(0x2a, 0x09);
    pub(crate) const COMMANDS_CLEARED: Code = Code(0x2f, 0x00);
    pub(crate) const LUNS_CHANGED: Code = Code(0x3f, 0x0e);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_format_carries_key_code_and_field_pointer() {
        let sense = Sense::cdb_field(0x0102, Some(3)).encode(false);
        assert_eq!(
            sense,
            [
                0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xcb, 1, 2
            ]
        );
    }

    #[test]
    fn fixed_format_drops_information_beyond_32_bits() {
        let small = Sense::MISCOMPARE.with_information(7).encode(false);
        assert_eq!((small[0], &small[3..7]), (0xf0, &[0, 0, 0, 7][..]));
        let large = Sense::READ_ERROR.with_information(1 << 40).encode(false);
        assert_eq!((large[0], &large[3..7]), (0x70, &[0; 4][..]));
    }

    #[test]
    fn descriptor_format_carries_information_and_list_pointer() {
        let sense = Sense::list_field(9).with_information(1 << 40).encode(true);
        assert_eq!(&sense[..8], [0x72, 5, 0x26, 0, 0, 0, 0, 20]);
        assert_eq!(&sense[8..20], [0, 10, 0x80, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
        assert_eq!(&sense[20..], [2, 6, 0, 0, 0x80, 0, 9, 0]);
        assert_eq!(Sense::NONE.encode(true), [0x72, 0, 0, 0, 0, 0, 0, 0]);
    }
}
