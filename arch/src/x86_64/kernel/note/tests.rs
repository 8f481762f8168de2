use super::*;

#[test]
fn notes_round_trip_and_malformed_ones_are_refused() {
    let note = KernelNote {
        entry: EntryPoint::Pvh(0x100_0850),
        range: 0x100_0000..0x3e0_0000,
        spans: vec![0x100_0000..0x180_0000, 0x200_0000..0x210_0000],
    };
    assert_eq!(KernelNote::decode(&note.encode()), Some(note.clone()));
    for bad in [
        "",
        "kernel",
        "kernel pvh 1 2 3",
        "kernel pvh 1 2 3 100000 200001",
        "kernel pvh 1 2 3 300000 200000",
        "initrd 1",
    ] {
        assert_eq!(KernelNote::decode(bad), None, "{bad}");
    }
    assert_eq!(
        KernelNote::decode(&note.encode().replace("pvh", "xen")),
        None
    );
    let below = KernelNote {
        spans: vec![0x1000..0x2000, 0x3000..0x4000],
        ..note
    };
    assert_eq!(
        KernelNote::decode(&below.encode()),
        None,
        "boot structures live below 1 MiB"
    );
}
