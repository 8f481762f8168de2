use super::*;

#[test]
fn a_kvm_that_splitring_run_refuses_is_not_used() {
    let flags = "flags\t\t: fpu svm npt\n";
    assert_eq!(judge(flags, |_| false), HostKvm::Hardware);
    assert_eq!(judge(flags, |module| module == "kvm_pvm"), HostKvm::Pvm);
    assert_eq!(judge(flags, |_| true), HostKvm::Hardware);
    assert_eq!(judge("flags\t\t: fpu\n", |_| true), HostKvm::Pvm);
    assert_eq!(judge("", |_| false), HostKvm::NoExtensions);
}

#[test]
fn slots_count_whole_labs_only() {
    assert_eq!(
        memory_slots("MemTotal:       24684084 kB\nMemFree: 1 kB\n", 8192),
        2
    );
    assert_eq!(memory_slots("", 8192), 0);
}
