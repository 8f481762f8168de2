//! Pairwise samples of a matrix: few rows in which any two values of any two factors occur
//! together.

use std::collections::BTreeSet;

/// Two factors with one value each.
type Pair = ((usize, usize), (usize, usize));

/// Returns rows with one value per factor, below `levels`: every pair of values of every two
/// factors is in at least one of them.
pub fn sample<const FACTORS: usize>(levels: [usize; FACTORS]) -> Vec<[usize; FACTORS]> {
    let values = |factor: usize| (0..levels[factor]).map(move |value| (factor, value));
    let mut open: BTreeSet<Pair> = BTreeSet::new();
    for first in 0..FACTORS {
        for second in first + 1..FACTORS {
            open.extend(values(first).flat_map(|one| values(second).map(move |two| (one, two))));
        }
    }
    let mut rows = Vec::new();
    while let Some(&(one, two)) = open.first() {
        let mut chosen = vec![one, two];
        for factor in (0..FACTORS).filter(|factor| ![one.0, two.0].contains(factor)) {
            let met = |value: usize| {
                let pairs = chosen.iter().map(|other| pair(*other, (factor, value)));
                pairs.filter(|pair| open.contains(pair)).count()
            };
            // Of equally good values a different one in each row.
            let turned = (0..levels[factor]).map(|value| (value + rows.len()) % levels[factor]);
            let best = turned.max_by_key(|value| met(*value)).expect("a value");
            chosen.push((factor, best));
        }
        chosen.sort_unstable();
        for (at, one) in chosen.iter().enumerate() {
            for two in &chosen[at + 1..] {
                open.remove(&(*one, *two));
            }
        }
        rows.push(std::array::from_fn(|factor| chosen[factor].1));
    }
    rows
}

fn pair(one: (usize, usize), two: (usize, usize)) -> Pair {
    (one.min(two), one.max(two))
}

#[cfg(test)]
mod tests;
