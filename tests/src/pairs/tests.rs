use super::*;

#[test]
fn any_two_values_of_any_two_factors_meet() {
    let levels = [5, 2, 3, 4, 2];
    let rows = sample(levels);
    for first in 0..levels.len() {
        for second in first + 1..levels.len() {
            let met: BTreeSet<_> = rows.iter().map(|row| (row[first], row[second])).collect();
            assert_eq!(met.len(), levels[first] * levels[second]);
        }
    }
    assert!(rows.len() <= 30, "{} rows are no small sample", rows.len());
}
