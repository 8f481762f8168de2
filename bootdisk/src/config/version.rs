//! The version order of the Boot Loader Specification (UAPI.10, "Version Format Specification").

#[cfg(test)]
mod tests;

use core::cmp::Ordering;

/// Compares two versions, the older one being less.
pub(crate) fn compare(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left.as_bytes(), right.as_bytes());
    loop {
        left = skip_ignored(left);
        right = skip_ignored(right);
        if left.is_empty() && right.is_empty() {
            return Ordering::Equal;
        }
        // What ends earlier is older, unless the other goes on with `~`, which sorts before
        // everything, then `-` before `^` before `.`.
        for separator in [b'~', b'\0', b'-', b'^', b'.'] {
            let has = |text: &[u8]| match separator {
                b'\0' => text.is_empty(),
                separator => text.first() == Some(&separator),
            };
            match (has(left), has(right)) {
                (true, true) => {
                    left = left.get(1..).unwrap_or_default();
                    right = right.get(1..).unwrap_or_default();
                    break;
                }
                (true, false) => return Ordering::Less,
                (false, true) => return Ordering::Greater,
                (false, false) => {}
            }
        }
        let digits = |text: &[u8]| text.first().is_some_and(u8::is_ascii_digit);
        let order = if digits(left) || digits(right) {
            let (one, rest_left) = prefix(left, u8::is_ascii_digit);
            let (other, rest_right) = prefix(right, u8::is_ascii_digit);
            (left, right) = (rest_left, rest_right);
            compare_numbers(one, other)
        } else {
            let (one, rest_left) = prefix(left, u8::is_ascii_alphabetic);
            let (other, rest_right) = prefix(right, u8::is_ascii_alphabetic);
            (left, right) = (rest_left, rest_right);
            compare_letters(one, other)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

fn skip_ignored(text: &[u8]) -> &[u8] {
    let known = |byte: &u8| byte.is_ascii_alphanumeric() || b"~-^.".contains(byte);
    let start = text.iter().position(known).unwrap_or(text.len());
    text.get(start..).unwrap_or_default()
}

fn prefix(text: &[u8], belongs: impl Fn(&u8) -> bool) -> (&[u8], &[u8]) {
    let end = text.iter().position(|byte| !belongs(byte));
    text.split_at_checked(end.unwrap_or(text.len()))
        .unwrap_or((text, &[]))
}

/// Numbers of any length. No digits at all are less than a number.
fn compare_numbers(left: &[u8], right: &[u8]) -> Ordering {
    if left.is_empty() || right.is_empty() {
        return left.len().cmp(&right.len());
    }
    let strip = |digits: &[u8]| {
        let start = digits.iter().position(|digit| *digit != b'0');
        digits
            .get(start.unwrap_or(digits.len())..)
            .unwrap_or_default()
            .to_vec()
    };
    let (left, right) = (strip(left), strip(right));
    left.len().cmp(&right.len()).then_with(|| left.cmp(&right))
}

/// Capital letters are less than small ones, and a prefix is less than what it begins.
fn compare_letters(left: &[u8], right: &[u8]) -> Ordering {
    left.cmp(right)
}
