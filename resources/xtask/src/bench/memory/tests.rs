use super::*;

#[test]
fn guest_memory_in_several_mappings_is_not_counted() {
    let smaps = "\
1000-2000 r-xp 0 00:00 0 /vmm
Rss:                   4 kB
4000-5000 rw-p 0 00:00 0
Rss:                 100 kB
Anonymous:            60 kB
5000-8000 rw-p 0 00:00 1 /kernel
Rss:                 200 kB
9000-a000 rw-p 0 00:00 0 [stack]
Rss:                   8 kB
";
    let mappings = parse(smaps);
    assert_eq!(mappings.len(), 4);
    assert_eq!(
        (mappings[1].resident_kib, mappings[1].anonymous_kib),
        (100, 60)
    );
    assert_eq!(guest_range(&mappings, 0x4000), Some((0x4000, 0x8000)));
    assert_eq!(guest_range(&mappings, 0x9000), None);
}
