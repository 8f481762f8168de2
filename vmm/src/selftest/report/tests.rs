//! Lines of the report, and their summary.

use super::*;

#[test]
fn lines_are_read_as_the_guest_writes_them() {
    let failed = TestOutcome::Failed("byte 3 is wrong".into());
    let test = |name: &str, outcome| {
        ReportLine::Test(Test {
            name: name.into(),
            outcome,
        })
    };
    assert_eq!(
        ReportLine::parse("test blk bio direct ok"),
        test("blk bio direct", TestOutcome::Ok)
    );
    assert_eq!(
        ReportLine::parse("test net echo big failed: byte 3 is wrong"),
        test("net echo big", failed)
    );
    assert_eq!(
        ReportLine::parse("time blk 4k-read qd1 12 3456"),
        ReportLine::Time("blk 4k-read qd1".into(), 12, 3456)
    );
    assert_eq!(ReportLine::parse("end"), ReportLine::End);
    assert!(matches!(
        ReportLine::parse("time nonsense"),
        ReportLine::Note(_)
    ));
}

#[test]
fn a_report_without_tests_is_not_ok_and_one_failure_spoils_it() {
    let mut report = SelftestReport::default();
    assert!(!report.ok());
    report.take(ReportLine::parse("test a ok"), 0);
    report.take(ReportLine::parse("test b skipped: not offered"), 0);
    assert!(report.ok());
    report.take(ReportLine::parse("test c failed: x"), 0);
    assert!(!report.ok());
}

#[test]
fn exits_are_those_between_the_lines_of_a_loop() {
    let mut report = SelftestReport::default();
    report.take(ReportLine::parse("begin x"), 100);
    report.take(ReportLine::parse("time x 10 1000"), 105);
    let [done] = &report.loops[..] else {
        panic!("one loop")
    };
    assert_eq!((done.exits, done.each()), (5, 100));
}
