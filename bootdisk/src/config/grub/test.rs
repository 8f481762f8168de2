//! `[` and `test`.

use alloc::string::String;

use super::eval::{Machine, Stop};

/// How deep parentheses and `!` may be nested.
const MAX_DEPTH: u32 = 32;

/// Evaluates the arguments of the command `name`.
pub(super) fn evaluate(
    machine: &Machine<'_>,
    name: &str,
    arguments: &[String],
) -> Result<bool, Stop> {
    let arguments = match arguments.split_last() {
        Some((last, rest)) if name == "[" && last == "]" => rest,
        _ => arguments,
    };
    let mut test = Test {
        machine,
        rest: arguments,
        depth: 0,
    };
    test.any()
}

struct Test<'t> {
    machine: &'t Machine<'t>,
    rest: &'t [String],
    depth: u32,
}

impl Test<'_> {
    fn peek(&self) -> &str {
        self.rest.first().map_or("", String::as_str)
    }

    fn next(&mut self) -> &str {
        match self.rest.split_first() {
            Some((word, rest)) => {
                self.rest = rest;
                word
            }
            None => "",
        }
    }

    /// Terms with `-o` between them.
    fn any(&mut self) -> Result<bool, Stop> {
        self.depth = self.depth.saturating_add(1);
        if self.depth > MAX_DEPTH {
            return Err(Stop::Endless("a test is nested more than 32 deep"));
        }
        let mut truth = self.all()?;
        while self.peek() == "-o" {
            self.next();
            truth |= self.all()?;
        }
        self.depth = self.depth.saturating_sub(1);
        Ok(truth)
    }

    /// Terms with `-a`, or nothing, between them.
    fn all(&mut self) -> Result<bool, Stop> {
        let mut truth = !self.rest.is_empty() && self.negated()?;
        loop {
            match self.peek() {
                "-a" => {
                    self.next();
                }
                "-o" | ")" => break,
                _ if self.rest.is_empty() => break,
                _ => {}
            }
            truth &= self.negated()?;
        }
        Ok(truth)
    }

    fn negated(&mut self) -> Result<bool, Stop> {
        let mut truth = true;
        while self.peek() == "!" && self.rest.len() > 1 {
            self.next();
            truth = !truth;
        }
        Ok(self.term()? == truth)
    }

    fn term(&mut self) -> Result<bool, Stop> {
        if let [left, operator, right, ..] = self.rest
            && let Some(truth) = compare(left, operator, right)
        {
            self.rest = self.rest.get(3..).unwrap_or_default();
            return Ok(truth);
        }
        if self.peek() == "(" && self.rest.len() > 1 {
            self.next();
            let truth = self.any()?;
            if self.peek() == ")" {
                self.next();
            }
            return Ok(truth);
        }
        if let [
            operator @ ("-n" | "-z" | "-e" | "-f" | "-d" | "-s"),
            operand,
            ..,
        ] = self
            .rest
            .iter()
            .map(String::as_str)
            .take(2)
            .collect::<alloc::vec::Vec<_>>()[..]
        {
            let truth = self.unary(operator, operand);
            self.rest = self.rest.get(2..).unwrap_or_default();
            return truth;
        }
        Ok(!self.next().is_empty())
    }

    fn unary(&self, operator: &str, operand: &str) -> Result<bool, Stop> {
        match operator {
            "-n" => return Ok(!operand.is_empty()),
            "-z" => return Ok(operand.is_empty()),
            _ => {}
        }
        let named = self.machine.named(operand);
        let found = self.machine.host.stat(&named.device, &named.path)?;
        Ok(match (operator, found) {
            (_, None) => false,
            ("-d", Some(size)) => size.is_none(),
            ("-f", Some(size)) => size.is_some(),
            ("-s", Some(size)) => size != Some(0),
            _ => true,
        })
    }
}

/// A comparison; nothing if `operator` is none.
fn compare(left: &str, operator: &str, right: &str) -> Option<bool> {
    let numbers = || (number(left), number(right));
    Some(match operator {
        "=" | "==" => left == right,
        "!=" => left != right,
        "<" => left < right,
        "<=" => left <= right,
        ">" => left > right,
        ">=" => left >= right,
        "-eq" => {
            let (left, right) = numbers();
            left == right
        }
        "-ne" => {
            let (left, right) = numbers();
            left != right
        }
        "-lt" => {
            let (left, right) = numbers();
            left < right
        }
        "-le" => {
            let (left, right) = numbers();
            left <= right
        }
        "-gt" => {
            let (left, right) = numbers();
            left > right
        }
        "-ge" => {
            let (left, right) = numbers();
            left >= right
        }
        // Files' times are not looked at.
        "-nt" | "-ot" | "-pgt" | "-plt" => false,
        _ => return None,
    })
}

/// The number at the start of a text; 0 if there is none.
fn number(text: &str) -> i64 {
    let text = text.trim_start();
    let digits = text.strip_prefix('-').unwrap_or(text);
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    let value = digits
        .get(..end)
        .unwrap_or_default()
        .parse::<i64>()
        .unwrap_or(0);
    if text.starts_with('-') {
        value.saturating_neg()
    } else {
        value
    }
}
