use super::*;

#[test]
fn base64_with_padding_and_line_breaks_decodes() {
    assert_eq!(decode_base64("RFNE\nVAA=\n"), b"DSDT\0");
}
