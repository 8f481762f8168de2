//! The descriptors that a machine's process passes to the programs it starts: only those that are
//! meant for them.

use splitring_needs::tiny;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);
/// A script that writes its process id and keeps running as a program that inherited the script's
/// descriptors.
const FAKE_PASST: &str = "#!/bin/sh\necho $$ > \"$PASST_PID.new\"\nmv \"$PASST_PID.new\" \"$PASST_PID\"\nexec sleep 60\n";

/// A `splitring run` whose guest does nothing, with a disk, a SCSI disk and a network card that
/// starts our `passt`.
struct Running {
    program: Child,
    passt: u32,
}

impl Running {
    fn start(dir: &Path) -> Self {
        let kernel = tiny::kernel(dir, tiny::SPIN);
        let script = dir.join("passt");
        fs::write(&script, FAKE_PASST).expect("write the script");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("chmod");
        for name in ["disk", "unit"] {
            fs::write(dir.join(name), [0; 4096]).expect("write an image");
        }
        let pid = dir.join("passt.pid");
        let path = std::env::var("PATH").unwrap_or_default();
        let program = Command::new(env!("CARGO_BIN_EXE_splitring"))
            .args(["run", "--any-kvm", "--serial", "null", "--kernel"])
            .arg(kernel)
            .args(["--net", "passt", "--cpus", "2"])
            .arg("--disk")
            .arg(dir.join("disk"))
            .arg("--disk")
            .arg(format!("{},bus=scsi", dir.join("unit").display()))
            .env("PATH", format!("{}:{path}", dir.display()))
            .env("PASST_PID", &pid)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("start the program");
        let mut running = Self { program, passt: 0 };
        running.wait(|running| {
            let text = fs::read_to_string(&pid).ok()?;
            running.passt = text.trim().parse().ok()?;
            // The script's own descriptors are closed by exec.
            let name = fs::read_to_string(format!("/proc/{}/comm", running.passt)).ok()?;
            (name.trim() == "sleep" && running.has_vcpus()).then_some(())
        });
        running
    }

    fn has_vcpus(&self) -> bool {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.program.id()));
        let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok();
        let mut names = tasks.into_iter().flatten().flatten().filter_map(name);
        names.any(|name| name.starts_with("vcpu1"))
    }

    fn wait(&mut self, mut ready: impl FnMut(&mut Self) -> Option<()>) {
        let start = Instant::now();
        while ready(self).is_none() {
            let ended = self.program.try_wait().expect("wait");
            assert!(ended.is_none(), "it ended: {ended:?}");
            assert!(start.elapsed() < PATIENCE, "the machine does not run");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
        // The program may not have ended it.
        let _ = Command::new("kill").arg(self.passt.to_string()).status();
    }
}

/// Returns the descriptors of a process and what each refers to.
fn descriptors(pid: u32) -> BTreeMap<u32, PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("list descriptors");
    entries
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, fs::read_link(entry.path()).ok()?))
        })
        .collect()
}

/// Returns the descriptors that a program started by this process inherits.
fn inheritable(pid: u32) -> BTreeMap<u32, PathBuf> {
    let mut all = descriptors(pid);
    all.retain(|number, _| {
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        flags.is_some_and(|flags| {
            let flags = i32::from_str_radix(flags.trim(), 8).expect("octal");
            flags & libc::O_CLOEXEC == 0
        })
    });
    all
}

#[test]
fn a_machines_descriptors_are_closed_on_exec_and_passt_gets_its_socket_only() {
    let Some(dir) = tiny::directory() else { return };
    // The test runner may have left some open: every process inherits them.
    let mut expected: Vec<u32> = inheritable(std::process::id()).into_keys().collect();
    expected.retain(|number| *number > 2);
    expected.splice(..0, 0..=2);
    let running = Running::start(dir.path());
    let own = inheritable(running.program.id());
    assert_eq!(
        own.keys().copied().collect::<Vec<_>>(),
        expected,
        "the machine's process: {own:?}"
    );
    let all = descriptors(running.program.id());
    assert!(
        all.len() > own.len() + 20,
        "it has many descriptors of its own: {all:?}"
    );
    let passt = descriptors(running.passt);
    let socket = passt.get(&3).expect("a descriptor 3");
    assert!(socket.to_string_lossy().starts_with("socket:"), "{passt:?}");
    if !expected.contains(&3) {
        expected.push(3);
        expected.sort_unstable();
    }
    assert_eq!(
        passt.keys().copied().collect::<Vec<_>>(),
        expected,
        "passt: {passt:?}"
    );
}
