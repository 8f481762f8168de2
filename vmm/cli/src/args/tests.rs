//! The command line, its help, and the configuration that it results in.

use splitring::config::BalloonConfig;

use super::*;

fn run_args(words: &[&str]) -> RunArgs {
    let words = ["splitring", "run"].iter().chain(words);
    match Cli::try_parse_from(words).expect("parses").command {
        Command::Run(args) => *args,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_command_line_is_consistent() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

#[test]
fn help_has_tuning_in_a_section_of_its_own_and_nothing_for_tests() {
    use clap::CommandFactory;
    let mut command = Cli::command();
    let run = command.find_subcommand_mut("run").expect("run");
    let help = run.render_help().to_string();
    let (daily, tuning) = help.split_once("\nTuning:\n").expect("a section");
    for flag in ["--workers", "--poll-us", "--pci-ports"] {
        assert!(tuning.contains(flag) && !daily.contains(flag), "{flag}");
    }
    for word in ["hide", "null, which", "for tests"] {
        assert!(!help.contains(word), "{word}: {help}");
    }
    for disk in ["/d,hide=event-idx", "/d,format=null"] {
        assert!(run_args(&["--disk", disk]).config().is_ok(), "{disk}");
    }
    let net = "tap=t,hide=mq";
    assert!(run_args(&["--net", net]).config().is_ok(), "{net}");
}

#[test]
fn flags_override_the_file() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("vm.toml");
    let text = "kernel = \"/a\"\ncpus = 4\nmemory = { size = \"1G\" }\n[[disk]]\npath = \"/d0\"\nid = \"root\"\n";
    fs::write(&file, text).expect("write");
    let file = file.to_str().expect("utf-8");
    let args = run_args(&[
        file,
        "--kernel",
        "/b",
        "--disk",
        "/d1,id=root",
        "--disk",
        "path=/d2",
    ]);
    let Ok(config) = args.config() else {
        panic!("refused")
    };
    assert_eq!((config.kernel, config.cpus), (Some("/b".into()), 4));
    assert_eq!(config.memory.size.0, 1 << 30);
    let paths: Vec<_> = config.disk.iter().map(|disk| disk.path.clone()).collect();
    assert_eq!(paths, [PathBuf::from("/d1"), PathBuf::from("/d2")]);
}

#[test]
fn a_device_that_is_a_switch_is_switched_by_its_flag() {
    let config = |words: &[&str]| run_args(words).config();
    let rng = |words: &[&str]| config(words).map(|config| config.rng).ok();
    assert_eq!(rng(&[]), Some(true));
    assert_eq!(rng(&["--rng", "off"]), Some(false));
    assert_eq!(rng(&["--rng", "on"]), Some(true));
    let Err(Failure::Usage(error)) = config(&["--rng", "maybe"]) else {
        panic!("accepted")
    };
    assert_eq!(
        format!("{error:#}"),
        "--rng maybe is not valid: `maybe` is neither on nor off; see `splitring run --help`"
    );
    let mut untouched = VmConfig::default();
    assert!(!untouched.take_device("cpus", VmConfig::default().cpus(2)));
    assert_eq!(untouched, VmConfig::default());
}

#[test]
fn a_device_with_keys_is_on_off_or_on_with_some_of_them() {
    let balloon = |words: &[&str]| {
        let config = run_args(words).config();
        config.map(|config| config.balloon).map_err(|failure| {
            let Failure::Usage(error) = failure else {
                panic!("another failure")
            };
            format!("{error:#}")
        })
    };
    assert_eq!(balloon(&[]), Ok(None));
    assert_eq!(balloon(&["--balloon", "off"]), Ok(None));
    let plain = BalloonConfig::new();
    assert_eq!(balloon(&["--balloon", "on"]), Ok(Some(plain.clone())));
    let keys = "size=512M,deflate-on-oom=on,free-page-reporting=on,stats-interval=5";
    let full = plain
        .size(Bytes::mib(512))
        .deflate_on_oom(true)
        .free_page_reporting(true)
        .stats_interval(5);
    assert_eq!(balloon(&["--balloon", keys]), Ok(Some(full.clone())));
    for (text, why) in [
        ("maybe", "`maybe` is not key=value"),
        ("sice=1G", "unknown field `sice`"),
        ("size=x", "`x`"),
        ("deflate-on-oom=perhaps", "neither on nor off"),
    ] {
        let refused = balloon(&["--balloon", text]).expect_err(text);
        assert!(refused.contains(why), "{refused}");
    }
    // The file has the same keys, and a flag takes the place of all of them.
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("vm.toml");
    let text = "kernel = \"/a\"\n[balloon]\nsize = \"512M\"\ndeflate-on-oom = true\n\
                free-page-reporting = true\nstats-interval = 5\n";
    fs::write(&file, text).expect("write");
    let file = file.to_str().expect("utf-8");
    assert_eq!(balloon(&[file]), Ok(Some(full)));
    assert_eq!(balloon(&[file, "--balloon", "off"]), Ok(None));
}

#[test]
fn a_key_of_memory_overrides_that_key_of_the_file_only() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("vm.toml");
    let text = "kernel = \"/a\"\nmemory = { size = \"1G\", shared = true, hugepages = true }\n";
    fs::write(&file, text).expect("write");
    let memory = |flag: &str| {
        let args = run_args(&[file.to_str().expect("utf-8"), "--memory", flag]);
        let Ok(config) = args.config() else {
            panic!("{flag} is refused")
        };
        config.memory
    };
    let in_file = MemoryConfig::new(Bytes::gib(1))
        .shared(true)
        .hugepages(true);
    assert_eq!(memory("2G"), in_file.clone().size(Bytes::gib(2)));
    assert_eq!(memory("shared=off"), in_file.clone().shared(false));
    assert_eq!(memory("hugepages=off"), in_file.hugepages(false));
}

#[test]
fn every_key_of_memory_can_be_given_as_a_flag() {
    for (key, _) in MemoryConfig::KEYS {
        let value = if *key == "size" { "1G" } else { "on" };
        let args = run_args(&["--memory", &format!("{key}={value}")]);
        assert!(args.config().is_ok(), "{key}");
    }
}

#[test]
fn a_printed_configuration_reads_back_as_itself() {
    let args = run_args(&[
        "--kernel",
        "/k",
        "--memory",
        "2G,shared=on",
        "--disk",
        "/d,readonly=on",
    ]);
    let Ok(config) = args.config() else {
        panic!("refused")
    };
    let text = config.to_toml().expect("serialises");
    assert_eq!(VmConfig::from_toml(&text), Ok(config));
}

#[test]
fn passt_is_switched_on_by_its_name() {
    let args = run_args(&[
        "--net",
        "passt,tcp=8080:80",
        "--net",
        "passt",
        "--net",
        "passt=on",
    ]);
    let Ok(config) = args.config() else {
        panic!("refused")
    };
    assert!(config.net.iter().all(|net| net.passt));
    assert_eq!(config.net[0].tcp.as_deref(), Some("8080:80"));
}

#[test]
fn unknown_keys_are_usage_errors() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("vm.toml");
    fs::write(&file, "kernal = \"/a\"\n").expect("write");
    let unknown_in_file = run_args(&[file.to_str().expect("utf-8")]).config();
    assert!(matches!(unknown_in_file, Err(Failure::Usage(_))));
    let unknown_sub_key = run_args(&["--disk", "path=/d,colour=red"]).config();
    assert!(matches!(unknown_sub_key, Err(Failure::Usage(_))));
}
