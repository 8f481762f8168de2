//! Common to all tables: their OEM identification and their encoding.

use acpi_tables::Aml;

pub(super) const OEM: [u8; 6] = *b"SPLITR";
pub(super) const OEM_TABLE: [u8; 8] = *b"SPLITRIN";
pub(super) const OEM_REVISION: u32 = 1;

pub(super) fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}
