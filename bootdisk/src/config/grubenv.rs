//! GRUB's environment block: `name=value` lines, padded with `#` to 1024 bytes.

#[cfg(test)]
mod tests;

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
