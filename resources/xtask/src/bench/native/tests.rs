use super::*;

#[test]
fn a_loop_is_read_as_the_guest_reports_it() {
    let (name, rate) = rate("blk 4k-read auto qd32 50000 1000000000").unwrap();
    assert_eq!(name, "blk 4k-read auto qd32");
    assert!((rate - 50000.0).abs() < 0.1);
    assert!(super::rate("nonsense").is_err());
}
