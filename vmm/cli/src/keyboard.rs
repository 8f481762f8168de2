//! The escape keys of the terminal.

/// Ctrl-A, as in QEMU and screen.
const ESCAPE: u8 = 0x01;

/// The list of escape keys that Ctrl-A c prints.
pub(crate) const KEYS: &str = "\r\n\
Ctrl-A x  stop the virtual machine\r\n\
Ctrl-A s  press its power button\r\n\
Ctrl-A c  print this list\r\n\
Ctrl-A Ctrl-A  send Ctrl-A to the guest\r\n";

/// The meaning of typed bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// Input for the guest.
    Input(Vec<u8>),
    Stop,
    PowerButton,
    Keys,
}

/// Finds the escape keys in typed bytes.
#[derive(Debug, Default)]
pub(crate) struct Keyboard {
    escaped: bool,
}

impl Keyboard {
    /// Splits `bytes` into input for the guest and escape keys, in order.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Vec<Key> {
        let mut keys = Vec::new();
        let mut input = Vec::new();
        for &byte in bytes {
            let key = match (std::mem::take(&mut self.escaped), byte) {
                (false, ESCAPE) => {
                    self.escaped = true;
                    continue;
                }
                (true, b'x' | b'X') => Key::Stop,
                (true, b's' | b'S') => Key::PowerButton,
                (true, b'c' | b'C' | b'?' | b'h') => Key::Keys,
                // Any other key after the escape goes to the guest, without the escape.
                (_, byte) => {
                    input.push(byte);
                    continue;
                }
            };
            if !input.is_empty() {
                keys.push(Key::Input(std::mem::take(&mut input)));
            }
            keys.push(key);
        }
        if !input.is_empty() {
            keys.push(Key::Input(input));
        }
        keys
    }
}

#[cfg(test)]
mod tests;
