use super::*;

#[test]
fn an_entry_is_read_with_its_repeated_keys() {
    let text = "# kernel\ntitle  Some Linux\nversion 6.1\nlinux\t/k\ninitrd /ucode.img $extra\n\
                initrd /initrd\noptions root=/dev/vda\noptions ro $tuned_params\nunknown key\n";
    let entry = Entry::parse("abc-6.1+2-1.conf", text);
    assert_eq!(entry.id, "abc-6.1");
    assert!(!entry.bad);
    assert_eq!(entry.title.as_deref(), Some("Some Linux"));
    assert_eq!(entry.linux.as_deref(), Some("/k"));
    assert_eq!(entry.initrds, ["/ucode.img", "$extra", "/initrd"]);
    assert_eq!(entry.options, ["root=/dev/vda", "ro $tuned_params"]);
}

#[test]
fn entries_sort_by_key_machine_version_and_name() {
    let make = |name: &str, text: &str| Entry::parse(name, text);
    let mut entries = [
        make("old-kernel-6.1.conf", ""),
        make("old-kernel-6.10.conf", ""),
        make("z.conf", "sort-key b\nversion 1"),
        make("y.conf", "sort-key a\nversion 1"),
        make("x.conf", "sort-key a\nversion 10"),
        make("w+0-3.conf", "sort-key a\nversion 99"),
    ];
    entries.sort_by(order);
    let ids: Vec<_> = entries.iter().map(|entry| entry.id.as_str()).collect();
    let expected = ["x", "y", "z", "old-kernel-6.10", "old-kernel-6.1", "w"];
    assert_eq!(ids, expected);
}

#[test]
fn known_variables_are_filled_in_and_others_vanish() {
    let value = |name: &str| (name == "kernelopts").then_some("ro quiet");
    assert_eq!(expand("$kernelopts ${none}x$none", value), "ro quiet x");
    assert_eq!(expand("a$ b$", value), "a$ b$");
    assert_eq!(expand("${kernelopts}", value), "ro quiet");
}

#[test]
fn the_default_is_a_pattern_unless_firmware_keeps_it() {
    assert_eq!(
        default_pattern("timeout 3\ndefault arch-*\n").as_deref(),
        Some("arch-*")
    );
    assert_eq!(default_pattern("default @saved\n"), None);
    assert_eq!(default_pattern("#default x\ntimeout 3\n"), None);
}
