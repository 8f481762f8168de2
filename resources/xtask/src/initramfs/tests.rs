use super::*;

#[test]
fn an_entry_is_a_header_a_name_and_data_each_padded_to_four() {
    let mut archive = CpioArchive::default();
    archive.file("a", 0o644, b"12345").expect("small");
    let text = String::from_utf8(archive.bytes).expect("ASCII");
    assert_eq!(&text[..6], "070701");
    assert_eq!(&text[14..22], "000081a4", "regular file, 0644");
    assert_eq!(&text[54..62], "00000005", "file size");
    assert_eq!(
        &text[94..102],
        "00000002",
        "name size counts the terminator"
    );
    assert_eq!(&text[110..], "a\0".to_owned() + "12345\0\0\0");
}

#[test]
fn an_archive_ends_with_its_trailer() {
    let bytes = CpioArchive::default().finish().expect("small");
    assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    assert_eq!(bytes.len() % ALIGNMENT, 0);
}
