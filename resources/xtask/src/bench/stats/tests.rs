use super::*;

#[test]
fn a_median_is_the_middle_whatever_the_order() {
    let mut sample = Sample::default();
    for value in [9.0, 1.0, 4.0] {
        sample.add(value);
    }
    assert!((sample.median() - 4.0).abs() < f64::EPSILON);
    assert_eq!(sample.to_string(), "4.0 (1.0–9.0)");
    sample.add(6.0);
    assert!((sample.median() - 5.0).abs() < f64::EPSILON);
}
