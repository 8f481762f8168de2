//! Medians and ranges of a few runs.

use std::fmt;

/// One figure over several runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sample(Vec<f64>);

impl Sample {
    /// Adds a run.
    pub(crate) fn add(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    /// Returns the median; for an even number of runs the mean of the middle two.
    pub(crate) fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        let upper = self.0.get(middle).copied().unwrap_or(f64::NAN);
        if self.0.len() % 2 == 1 {
            return upper;
        }
        let lower = middle.checked_sub(1).and_then(|at| self.0.get(at));
        lower.map_or(f64::NAN, |lower| f64::midpoint(*lower, upper))
    }
}

/// Median and range, with a decimal only where it is significant.
impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(least), Some(most)) = (self.0.first(), self.0.last()) else {
            return f.write_str("-");
        };
        let digits = usize::from(*most < 1000.0);
        write!(
            f,
            "{:.digits$} ({least:.digits$}–{most:.digits$})",
            self.median()
        )
    }
}

#[cfg(test)]
mod tests;
