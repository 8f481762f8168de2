use super::*;

#[test]
fn skipped_steps_and_skipped_tests_are_listed_together() {
    let skipped = Skipped::new().expect("a file");
    let environment = skipped.environment(Tier::Quick);
    let (name, notes) = environment[0];
    assert_eq!(name, SKIPPED);
    assert!(environment.iter().all(|(name, _)| *name != REQUIRE_TOOLS));
    fs::write(notes, "a test: no root\n").expect("a note");
    for _ in 0..2 {
        skipped.note("a step: no KVM").expect("a note");
    }
    assert_eq!(skipped.lines(), ["a step: no KVM", "a test: no root"]);
    let plain = skipped.environment(Tier::Plain);
    assert!(plain.iter().any(|(name, _)| *name == REQUIRE_TOOLS));
}
