use super::*;

#[test]
fn a_test_in_a_soak_module_runs_in_the_soak_tier_only() {
    let (plain, long) = ("blk::power::cuts", "blk::power::soak::cuts_100");
    assert!(runs_in(Tier::Plain, plain) && runs_in(Tier::Soak, plain));
    assert!(!runs_in(Tier::Plain, long) && runs_in(Tier::Soak, long));
    // The name of a test decides nothing.
    assert!(runs_in(Tier::Plain, "blk::power::soak_cuts"));
}
