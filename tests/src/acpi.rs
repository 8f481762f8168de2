//! Disassembles the ACPI tables that the guest sees, with `iasl`.

use std::fs;
use std::process::Command;

use crate::guest::Guest;

/// The directory in which a Linux guest shows its tables.
const TABLES: &str = "/sys/firmware/acpi/tables";

/// A disassembled table.
#[derive(Debug)]
pub struct Table {
    /// The table's signature.
    pub name: String,
    /// The output of `iasl -d`.
    pub verdict: String,
    /// The disassembly.
    pub source: String,
}

/// Reads every table over the console and disassembles it.
pub fn disassemble(guest: &mut Guest) -> Vec<Table> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let names = guest.succeed(&format!("cd {TABLES} && find . -maxdepth 1 -type f"));
    names
        .lines()
        .map(|line| {
            let name = line.trim_start_matches("./").to_owned();
            let text = guest.succeed(&format!("base64 {TABLES}/{name}"));
            let file = dir.path().join(format!("{name}.dat"));
            fs::write(&file, decode_base64(&text)).expect("room for a table");
            let output = Command::new("iasl")
                .arg("-d")
                .arg(&file)
                .output()
                .expect("iasl runs");
            let source = fs::read_to_string(file.with_extension("dsl")).unwrap_or_default();
            let verdict = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "iasl -d {name} failed: {verdict}");
            Table {
                name,
                verdict,
                source,
            }
        })
        .collect()
}

/// Decodes base64 (RFC 4648) with line breaks.
fn decode_base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::new();
    let (mut buffer, mut bits) = (0u32, 0);
    for symbol in text.bytes() {
        let Some(value) = (0u32..).zip(ALPHABET).find(|(_, known)| **known == symbol) else {
            continue;
        };
        buffer = (buffer << 6) | value.0;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from((buffer >> bits) & 0xff).expect("masked"));
        }
    }
    bytes
}

#[cfg(test)]
mod tests;
