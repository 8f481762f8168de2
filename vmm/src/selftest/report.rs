//! The lines of the guest's report, and their summary.

use std::os::fd::OwnedFd;

use serde::Serialize;

/// Bytes read from the report at a time.
const CHUNK: usize = 64 << 10;

/// A line of the guest's report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReportLine {
    /// The result of a test.
    Test(Test),
    /// The start of a timed loop.
    Begin(String),
    /// The result of a timed loop: name, operations, nanoseconds.
    Time(String, u64, u64),
    /// The guest panicked.
    Panic(String),
    /// The end of the report.
    End,
    /// Other information, such as the version and the memory in use.
    Note(String),
}

/// A test and its outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Test {
    /// Device, test and variant.
    pub name: String,
    /// The outcome.
    pub outcome: TestOutcome,
}

/// The outcome of a test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TestOutcome {
    /// It passed.
    Ok,
    /// It was skipped, for this reason.
    Skipped(String),
    /// It failed, for this reason.
    Failed(String),
}

/// A timed loop.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TimedLoop {
    /// Device, operation, variant and depth.
    pub name: String,
    /// Number of operations.
    pub operations: u64,
    /// Duration in nanoseconds.
    pub nanoseconds: u64,
    /// Exits to user space of all vCPUs during the loop.
    pub exits: u64,
}

impl TimedLoop {
    /// Returns the operations per second.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn rate(&self) -> f64 {
        self.operations as f64 * 1e9 / self.nanoseconds.max(1) as f64
    }

    /// Returns the nanoseconds per operation.
    #[must_use]
    pub fn each(&self) -> u64 {
        self.nanoseconds / self.operations.max(1)
    }

    /// Returns the exits to user space per operation.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn exits_each(&self) -> f64 {
        self.exits as f64 / self.operations.max(1) as f64
    }
}

/// The guest's report.
#[derive(Debug, Default, Serialize)]
pub struct SelftestReport {
    /// The tests, in order.
    pub tests: Vec<Test>,
    /// The timed loops, in order.
    pub loops: Vec<TimedLoop>,
    #[serde(skip)]
    pub(super) ended: bool,
    #[serde(skip)]
    pub(super) panic: Option<String>,
    /// Number of exits when the current loop started.
    #[serde(skip)]
    began: u64,
}

impl SelftestReport {
    /// Returns whether there are tests and none failed.
    #[must_use]
    pub fn ok(&self) -> bool {
        !self.tests.is_empty()
            && !self
                .tests
                .iter()
                .any(|test| matches!(test.outcome, TestOutcome::Failed(_)))
    }

    /// Adds a line. `exits` is the machine's number of exits to user space when the line was read.
    pub(super) fn take(&mut self, line: ReportLine, exits: u64) {
        match line {
            ReportLine::Test(test) => self.tests.push(test),
            ReportLine::Begin(_) => self.began = exits,
            ReportLine::Time(name, operations, nanoseconds) => self.loops.push(TimedLoop {
                name,
                operations,
                nanoseconds,
                exits: exits.saturating_sub(self.began),
            }),
            ReportLine::Panic(text) => self.panic = Some(text),
            ReportLine::End => self.ended = true,
            ReportLine::Note(_) => {}
        }
    }
}

impl ReportLine {
    /// Parses a line; an unknown line becomes a note.
    pub(super) fn parse(text: &str) -> Self {
        let note = || Self::Note(text.to_owned());
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        match word {
            "test" => test(rest).map_or_else(note, Self::Test),
            "begin" => Self::Begin(rest.to_owned()),
            "time" => time(rest).unwrap_or_else(note),
            "panic" => Self::Panic(rest.to_owned()),
            "end" => Self::End,
            _ => note(),
        }
    }
}

fn test(text: &str) -> Option<Test> {
    let found = |name: &str, outcome| {
        Some(Test {
            name: name.to_owned(),
            outcome,
        })
    };
    if let Some((name, why)) = text.split_once(" failed: ") {
        return found(name, TestOutcome::Failed(why.to_owned()));
    }
    if let Some((name, why)) = text.split_once(" skipped: ") {
        return found(name, TestOutcome::Skipped(why.to_owned()));
    }
    found(text.strip_suffix(" ok")?, TestOutcome::Ok)
}

fn time(text: &str) -> Option<ReportLine> {
    let mut words = text.rsplitn(3, ' ');
    let nanoseconds = words.next()?.parse().ok()?;
    let operations = words.next()?.parse().ok()?;
    Some(ReportLine::Time(
        words.next()?.to_owned(),
        operations,
        nanoseconds,
    ))
}

/// Reads the report as it grows.
#[derive(Debug, Default)]
pub(super) struct ReportReader {
    offset: u64,
    partial: Vec<u8>,
    /// The last complete line.
    pub(super) last: String,
}

impl ReportReader {
    /// Returns the new complete lines.
    pub(super) fn lines(&mut self, report: &OwnedFd) -> Vec<ReportLine> {
        let mut buffer = vec![0; CHUNK];
        let count = rustix::io::pread(report, &mut buffer, self.offset).unwrap_or(0);
        let text = buffer.iter().take(count).take_while(|byte| **byte != 0);
        let before = self.partial.len();
        self.partial.extend(text);
        self.offset += (self.partial.len() - before) as u64;
        let mut lines = Vec::new();
        while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            self.last = String::from_utf8_lossy(&line).trim_end().to_owned();
            lines.push(ReportLine::parse(&self.last));
        }
        lines
    }
}

#[cfg(test)]
mod tests;
