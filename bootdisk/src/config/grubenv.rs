//! GRUB's environment block: `name=value` lines, padded with `#` to 1024 bytes.

use alloc::string::String;
use alloc::vec::Vec;

/// The first line of every block.
const SIGNATURE: &str = "# GRUB Environment Block\n";

/// Returns the variables of a block; none if it isn't one.
pub(crate) fn parse(text: &str) -> Vec<(String, String)> {
    let Some(body) = text.strip_prefix(SIGNATURE) else {
        return Vec::new();
    };
    let mut variables = Vec::new();
    let mut line = String::new();
    let mut escaped = false;
    for character in body.chars() {
        match character {
            // A backslash takes the next character as it is, a line break included.
            _ if escaped => {
                line.push(character);
                escaped = false;
            }
            '\\' => escaped = true,
            '\n' => variables.extend(variable(&core::mem::take(&mut line))),
            _ => line.push(character),
        }
    }
    variables
}

fn variable(line: &str) -> Option<(String, String)> {
    if line.starts_with('#') {
        return None;
    }
    let (name, value) = line.split_once('=')?;
    Some((String::from(name), String::from(value)))
}

#[cfg(test)]
mod tests {
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
}
