//! Results by workload and subject, with medians, ranges and ratios.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

/// One row: a workload, and each subject's results.
#[derive(Debug)]
struct Row {
    workload: String,
    subjects: Vec<(String, Vec<f64>)>,
}

/// All results.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<Row>);

impl Table {
    /// Adds a result.
    pub(crate) fn add(&mut self, workload: &str, subject: &str, value: f64) {
        let at = self
            .0
            .iter()
            .position(|row| row.workload == workload)
            .unwrap_or_else(|| {
                self.0.push(Row {
                    workload: workload.to_owned(),
                    subjects: Vec::new(),
                });
                self.0.len() - 1
            });
        let subjects = &mut self.0[at].subjects;
        match subjects.iter_mut().find(|(name, _)| name == subject) {
            Some((_, values)) => values.push(value),
            None => subjects.push((subject.to_owned(), vec![value])),
        }
    }

    /// Moves `subject` to the front: it is compared with the others.
    pub(crate) fn first(mut self, subject: &str) -> Self {
        for row in &mut self.0 {
            row.subjects.sort_by_key(|(name, _)| name != subject);
        }
        self
    }

    /// Appends all results to a file, one per line.
    pub(crate) fn append(&self, file: &Path) {
        let mut lines = String::new();
        for Row { workload, subjects } in &self.0 {
            for (subject, values) in subjects {
                for value in values {
                    lines += &format!("{workload}\t{subject}\t{value}\n");
                }
            }
        }
        let mut file = OpenOptions::new().append(true).create(true).open(file);
        let file = file.as_mut().expect("a file for the figures");
        file.write_all(lines.as_bytes()).expect("room");
    }

    /// Reads the results in a file.
    pub(crate) fn read(file: &Path) -> Self {
        let mut table = Self::default();
        for line in fs::read_to_string(file).expect("figures").lines() {
            let mut words = line.split('\t');
            let mut word = || words.next().expect("three words");
            table.add(word(), word(), word().parse().expect("a figure"));
        }
        table
    }

    /// Prints a line for each row and subject, and the medians of the ratios.
    pub(crate) fn print(&self, device: &str, unit: &str) {
        println!("{device}: {unit}; medians, range");
        let mut ratios = Vec::new();
        for Row { workload, subjects } in &self.0 {
            for (name, values) in subjects {
                let (least, most) = range(values);
                println!(
                    "{workload:<18} {name:<18} {:>12.2} ({least:.2}–{most:.2})",
                    median(values)
                );
            }
            let ((_, first), others) = subjects.split_first().expect("a row has figures");
            for (name, values) in others {
                // By pairs: what disturbs the machine disturbs both of a pair.
                let pairs: Vec<f64> = first.iter().zip(values).map(|(a, b)| a / b).collect();
                let (least, most) = range(&pairs);
                let ratio = median(&pairs);
                println!("{workload:<18} / {name:<16} {ratio:>12.2} ({least:.2}–{most:.2})");
                ratios.push(format!("{workload} {ratio:.2} of {name}"));
            }
        }
        println!("bench {device}, {unit}: {}", ratios.join("; "));
    }
}

fn range(values: &[f64]) -> (f64, f64) {
    values.iter().fold(
        (f64::INFINITY, f64::NEG_INFINITY),
        |(least, most), value| (least.min(*value), most.max(*value)),
    )
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    }
}
