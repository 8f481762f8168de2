use super::*;

#[test]
fn long_zero_runs_are_left_out_and_short_ones_are_not() {
    let page = usize::try_from(PAGE).unwrap();
    let mut bytes = vec![0; 64 * page];
    bytes[0] = 1;
    bytes[10 * page] = 1;
    bytes[40 * page + 5] = 1;
    let start = 0x20_0000;
    let at = |pages: u64| start + pages * PAGE;
    assert_eq!(spans(&[(start, &bytes)]), [at(0)..at(11), at(40)..at(41)]);
    // The start is not aligned: the page that holds the first byte counts.
    assert_eq!(
        spans(&[(start + 8, &bytes[..1])]),
        std::slice::from_ref(&(at(0)..at(1)))
    );
    assert!(spans(&[(start, &bytes[page..9 * page])]).is_empty());
}

#[test]
fn many_zero_runs_do_not_make_many_pieces() {
    let page = usize::try_from(PAGE).unwrap();
    let bytes: Vec<u8> = (0..200 * 20 * page)
        .map(|at| u8::from(at % (20 * page) == 0))
        .collect();
    assert!(spans(&[(0x20_0000, &bytes)]).len() <= MAX_SPANS);
}

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
