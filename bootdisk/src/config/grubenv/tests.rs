use super::*;

#[test]
fn variables_are_read_up_to_the_padding() {
    let block = "# GRUB Environment Block\n# WARNING: do not edit\nsaved_entry=a>b\nkernelopts=root=UUID=1 \
                 ro\nodd=back\\\\slash\\\nbreak\n####";
    let variables = parse(block);
    let expected = [
        ("saved_entry", "a>b"),
        ("kernelopts", "root=UUID=1 ro"),
        ("odd", "back\\slash\nbreak"),
    ];
    assert_eq!(variables.len(), expected.len());
    for ((name, value), expected) in variables.iter().zip(expected) {
        assert_eq!((name.as_str(), value.as_str()), expected);
    }
}

#[test]
fn another_file_has_no_variables() {
    assert!(parse("saved_entry=1\n").is_empty());
    assert!(parse("").is_empty());
}
