//! Escape keys in typed bytes.

use super::*;

#[test]
fn escape_keys_are_found_across_reads() {
    let mut keyboard = Keyboard::default();
    assert_eq!(keyboard.read(b"ls\x01"), [Key::Input(b"ls".to_vec())]);
    assert_eq!(keyboard.read(b"xq"), [Key::Stop, Key::Input(b"q".to_vec())]);
    assert_eq!(
        keyboard.read(b"\x01c\x01\x01\x01s"),
        [Key::Keys, Key::Input(vec![1]), Key::PowerButton]
    );
}
