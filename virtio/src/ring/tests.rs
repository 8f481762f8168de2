//! The event comparison and the sizes of the parts.

use super::*;

#[test]
fn need_event_is_true_exactly_when_the_event_lies_in_the_batch() {
    for base in [0u16, 1, 32767, 65530, 65535] {
        for batch in 0u16..20 {
            let new = base.wrapping_add(batch);
            for distance in 0u16..40 {
                let event = base.wrapping_sub(10).wrapping_add(distance);
                let inside = event.wrapping_sub(base) < batch;
                assert_eq!(
                    need_event(event, new, base),
                    inside,
                    "{event} in {base}..{new}"
                );
            }
        }
    }
}

#[test]
fn sizes_of_the_parts_are_those_of_the_specification() {
    assert_eq!(desc_bytes(256), 4096);
    assert_eq!(avail_bytes(256, true), 6 + 512);
    assert_eq!(avail_bytes(256, false), 4 + 512);
    assert_eq!(used_bytes(256, true), 6 + 2048);
    assert_eq!(used_bytes(32768, true), 6 + 262_144);
}
