use std::process::Output;

use super::*;

const STATUS: &str = "Name:\tx\nUid:\t1000\t0\t1000\t1000\nCapEff:\t0000000000201000\n";

#[test]
fn privileges_are_read_from_the_status_of_a_process() {
    assert_eq!(effective_uid(STATUS), Some(0));
    assert_eq!(effective_uid(""), None);
    let both = (1 << Capability::NetAdmin as u32) | (1 << Capability::SysAdmin as u32);
    assert_eq!(effective_capabilities(STATUS), both);
    assert_eq!(effective_capabilities(""), 0);
}

/// The next two tests run this one in a separate process with an environment of their choice.
#[test]
#[ignore = "part of other tests"]
fn a_program_that_does_not_exist() {
    if program("splitring-no-such-program", "none") {
        unreachable!();
    }
}

fn run(environment: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(env::current_exe().expect("this program"));
    command
        .args([
            "--ignored",
            "--exact",
            "tests::a_program_that_does_not_exist",
        ])
        .env_remove(REQUIRE_TOOLS)
        .env_remove(SKIPPED);
    for (name, value) in environment {
        command.env(name, value);
    }
    command.output().expect("run this program")
}

#[test]
fn a_skipped_test_passes_and_is_recorded() {
    let file = env::temp_dir().join(format!("splitring-needs-{}", std::process::id()));
    for _ in 0..2 {
        assert!(run(&[(SKIPPED, &file)]).status.success());
    }
    let noted = fs::read_to_string(&file).expect("two notes");
    fs::remove_file(&file).expect("remove the notes");
    assert_eq!(noted.lines().count(), 2, "{noted}");
    let line = noted.lines().next().expect("a note");
    assert!(
        line.ends_with("splitring-no-such-program is not installed (package none)"),
        "{line}"
    );
}

#[test]
fn a_test_that_lacks_what_is_required_fails() {
    assert!(run(&[]).status.success());
    let output = run(&[(REQUIRE_TOOLS, Path::new("1"))]);
    assert!(!output.status.success(), "it passed");
}
