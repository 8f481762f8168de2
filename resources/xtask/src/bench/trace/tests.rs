use super::*;

const TRACE: &str = "\
# tracer: nop
 vmm-7 [000] ..... 10.000000: sched_process_exec: filename=/x/vmm pid=7 old_pid=7
 vcpu-8 [000] ...1. 10.020000: kvm_entry: vcpu 0, rip 0xfff0
 vcpu-8 [000] ...1. 10.020100: kvm_exit: reason EXIT_IOIO rip 0xfff0 info 0 0
 vcpu-8 [000] ..... 10.020200: kvm_userspace_exit: reason KVM_EXIT_IO (2)
 vcpu-8 [000] ...1. 10.020300: kvm_entry: vcpu 0, rip 0xfff0
 bench-1 [000] ..... 11.000000: tracing_mark_write: bench: first line
 vcpu-8 [000] ...1. 11.020100: kvm_exit: reason EXIT_IOIO rip 0xfff0 info 0 0
";

#[test]
fn counts_run_from_exec_to_the_first_line() {
    let boot = count(TRACE, "/x/vmm").expect("a whole boot");
    assert!((boot.first_entry_ms - 20.0).abs() < 1e-6);
    assert_eq!((boot.user_exits, boot.exits), (1, 1));
}

#[test]
fn a_trace_of_another_program_is_refused() {
    assert!(count(TRACE, "/x/other").is_err());
    assert!(count("", "/x/vmm").is_err());
}
