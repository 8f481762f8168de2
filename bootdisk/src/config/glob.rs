//! Shell patterns, as `default` in `loader.conf` has them: `*`, `?` and `[...]`.

#[cfg(test)]
mod tests;

/// Returns whether `text` matches `pattern`, without regard to the case of ASCII letters.
///
/// The time is bounded by the product of both lengths.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let pattern = pattern.to_ascii_lowercase();
    let text = text.to_ascii_lowercase();
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut position) = (0usize, 0usize);
    // Where to go on when the last star has to take one character more.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let rest = pattern.get(at..).unwrap_or_default();
        if rest.first() == Some(&b'*') {
            at = at.saturating_add(1);
            retry = Some((at, position));
            continue;
        }
        match (text.get(position), one(rest, text.get(position))) {
            (None, _) if rest.is_empty() => return true,
            (Some(_), Some(length)) => {
                at = at.saturating_add(length);
                position = position.saturating_add(1);
            }
            _ => match &mut retry {
                Some((star, from)) if *from < text.len() => {
                    *from = from.saturating_add(1);
                    (at, position) = (*star, *from);
                }
                _ => return false,
            },
        }
    }
}

/// How long the part of the pattern is that matches this character, if it does.
fn one(pattern: &[u8], byte: Option<&u8>) -> Option<usize> {
    let byte = *byte?;
    match pattern.first()? {
        b'?' => Some(1),
        b'[' => {
            let close = pattern
                .iter()
                .skip(2)
                .position(|byte| *byte == b']')?
                .checked_add(2)?;
            let set = pattern.get(1..close)?;
            let negated = matches!(set.first(), Some(b'!' | b'^'));
            let set = if negated { set.get(1..)? } else { set };
            (in_set(set, byte) != negated).then(|| close.saturating_add(1))
        }
        literal => (*literal == byte).then_some(1),
    }
}

fn in_set(set: &[u8], byte: u8) -> bool {
    let range = |window: &[u8]| matches!(window, [from, b'-', to] if (*from..=*to).contains(&byte));
    set.contains(&byte) || set.windows(3).any(range)
}
