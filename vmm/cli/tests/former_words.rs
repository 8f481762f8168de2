//! Former words of the command line and of configuration files are accepted for one release, and
//! their successors printed.

use std::process::{Command, Output};

fn print_config(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_splitring"))
        .args(["run", "--print-config"])
        .args(words)
        .output()
        .expect("run")
}

#[test]
fn former_values_of_aio_work_and_name_their_successors() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("vm.toml");
    for (old, new) in [("ring", "io_uring"), ("plain", "threads")] {
        let disk = format!("path=/d,aio={old}");
        let text = format!("[[disk]]\npath = \"/d\"\naio = \"{old}\"\n");
        std::fs::write(&file, text).expect("write");
        let file = file.to_str().expect("UTF-8");
        for words in [&["--disk", &disk][..], &[file]] {
            let output = print_config(words);
            assert!(output.status.success(), "{output:?}");
            let config = String::from_utf8_lossy(&output.stdout);
            assert!(config.contains(&format!("aio = \"{new}\"")), "{config}");
            let errors = String::from_utf8_lossy(&output.stderr);
            let successor = format!("`{old}` is now called `{new}`");
            assert_eq!(errors.matches(&successor).count(), 1, "{errors}");
        }
        let output = print_config(&["--disk", &format!("path=/d,aio={new}")]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    }
}
