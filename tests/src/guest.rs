//! A running Splitring and its guest, driven over the serial console.
//!
//! The guest's process 1 answers typed lines: `@@ ready` once, then `@@ STATUS` after each line.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::assets::{self, Image, Kernel};
use crate::terminal::Terminal;
use crate::user::User;

/// Time limit of every single wait. Under software emulation a boot takes seconds, and several
/// times as long with four CPUs on two cores.
const TIMEOUT: Duration = Duration::from_secs(180);
/// How long output may still arrive after the process has ended.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(20);
/// Number of console lines in a failure message.
const LINES_SHOWN: usize = 40;
const READY: &str = "@@ ready";
const ANSWER: &str = "@@ ";

/// How to start Splitring.
#[derive(Debug)]
pub struct Launch {
    /// The program that runs the binary as another user, if any.
    prefix: Vec<OsString>,
    binary: PathBuf,
    arguments: Vec<OsString>,
    cmdline: Vec<String>,
    disks: usize,
}

impl Launch {
    /// Boots `kernel` with one CPU, 256 MiB and typed lines on the console, unless changed.
    pub fn new(kernel: &Kernel, image: Image) -> Self {
        Self::of_file(kernel, &kernel.image(image))
    }

    /// Like [`Launch::new`] with the image file at `path`, and `kernel`'s other files.
    pub fn of_file(kernel: &Kernel, path: &Path) -> Self {
        let launch = Self {
            prefix: Vec::new(),
            binary: assets::binary(),
            arguments: vec!["run".into()],
            cmdline: ["console=ttyS0", "quiet", "session=typed"]
                .map(str::to_owned)
                .into(),
            disks: 0,
        };
        launch
            .option("--kernel", path)
            .option("--initrd", kernel.initramfs())
    }

    /// Starts another build.
    pub fn binary(mut self, path: PathBuf) -> Self {
        self.binary = path;
        self
    }

    /// Adds an option and its value.
    pub fn option(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.arguments.push(name.into());
        self.arguments.push(value.into());
        self
    }

    /// Adds an option without a value.
    pub fn flag(mut self, name: &str) -> Self {
        self.arguments.push(name.into());
        self
    }

    /// Sets the number of CPUs.
    pub fn cpus(self, count: u32) -> Self {
        self.option("--cpus", count.to_string())
    }

    /// Sets the memory size (`256M`, `6G`).
    pub fn memory(self, size: &str) -> Self {
        self.option("--memory", size)
    }

    /// Adds a virtio-blk disk with the root file system. It must be the first disk.
    pub fn root_disk(mut self, path: &Path) -> Self {
        assert_eq!(self.disks, 0, "the root disk comes first");
        self.cmdline.push("root=/dev/vda".to_owned());
        self = self.disk(path, "");
        self
    }

    /// Adds a SCSI disk with a root file system of this type. It must be the first disk.
    pub fn scsi_root_disk(mut self, path: &Path, kind: &str) -> Self {
        assert_eq!(self.disks, 0, "the root disk comes first");
        self.cmdline
            .push(format!("root=/dev/sda rootfstype={kind}"));
        self.disk(path, ",bus=scsi")
    }

    /// Adds a virtio-blk disk with more sub-keys (`,ro=on`).
    pub fn disk(mut self, path: &Path, keys: &str) -> Self {
        self.disks += 1;
        self.option("--disk", format!("path={}{keys}", path.display()))
    }

    /// Runs copies of the binary and the kernel as an ordinary user, in the network namespace at
    /// `net`.
    pub fn by(mut self, user: &User, net: &Path) -> Self {
        self.prefix = user.prefix(net);
        self.binary = user.path("splitring");
        for (option, name) in [("--kernel", "vmlinux"), ("--initrd", "initramfs")] {
            let given = self.arguments.iter().position(|word| word == option);
            let value = given.and_then(|at| self.arguments.get_mut(at + 1));
            *value.expect("given by `new`") = user.path(name).into();
        }
        self
    }

    /// Adds a word to the kernel's command line.
    pub fn cmdline(mut self, word: &str) -> Self {
        self.cmdline.push(word.to_owned());
        self
    }

    /// Starts Splitring, without waiting for the guest.
    pub fn start(self) -> Guest {
        Guest::start(self.command())
    }

    /// Starts Splitring on a terminal, without waiting for the guest.
    pub fn start_on(self, terminal: &Terminal) -> Guest {
        Guest::start_on(self.command(), terminal)
    }

    /// Returns the command.
    pub fn command(self) -> Command {
        let cmdline = self.cmdline.join(" ");
        let Self {
            prefix,
            binary,
            arguments,
            ..
        } = self.option("--cmdline", cmdline);
        let mut words = prefix.into_iter().chain([binary.into()]).chain(arguments);
        let mut command = Command::new(words.next().expect("at least the binary"));
        command.args(words);
        command
    }

    /// Starts Splitring and waits until the guest accepts typed lines.
    pub fn boot(self) -> Guest {
        let mut guest = self.start();
        guest.wait_until_ready();
        guest
    }
}

/// The result of a typed line.
#[derive(Debug)]
pub struct Reply {
    /// Its output, with lines ended by `\n`.
    pub output: String,
    /// Its exit status.
    pub status: i32,
}

/// How Splitring ended.
#[derive(Debug)]
pub struct Exit {
    /// Its exit code; none if it was killed by a signal.
    pub code: Option<i32>,
    /// The whole output of the console.
    pub console: String,
    /// The whole of standard error.
    pub errors: String,
}

/// A running Splitring; killed on drop.
pub struct Guest {
    child: Child,
    input: Box<dyn Write + Send>,
    output: Receiver<Vec<u8>>,
    errors: Receiver<Vec<u8>>,
    console: String,
    /// Length of the console output that has been searched.
    seen: usize,
}

impl Guest {
    /// Starts `command` with its console on pipes.
    fn start(command: Command) -> Self {
        Self::on_pipes(spawn(command, Stdio::piped(), Stdio::piped()))
    }

    fn on_pipes(mut child: Child) -> Self {
        let input = Box::new(child.stdin.take().expect("piped"));
        let output = pump(child.stdout.take().expect("piped"));
        Self::of(child, input, output)
    }

    /// Starts another VMM whose guest answers typed lines in the same way.
    pub fn start_peer(command: Command) -> Self {
        Self::start(command)
    }

    /// Starts `command` with its console on `terminal`.
    fn start_on(command: Command, terminal: &Terminal) -> Self {
        let child = spawn(command, terminal.end().into(), terminal.end().into());
        let output = pump(terminal.master());
        Self::of(child, Box::new(terminal.master()), output)
    }

    fn of(mut child: Child, input: Box<dyn Write + Send>, output: Receiver<Vec<u8>>) -> Self {
        let errors = pump(child.stderr.take().expect("piped"));
        Self {
            child,
            input,
            output,
            errors,
            console: String::new(),
            seen: 0,
        }
    }

    /// Returns Splitring's process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the guest accepts typed lines, also after a reboot.
    pub fn wait_until_ready(&mut self) {
        self.wait_for(READY);
    }

    /// Waits for a line that starts with `text`. Returns the lines before it.
    pub fn wait_for(&mut self, text: &str) -> String {
        self.lines_until(text).0
    }

    /// Waits for a line that starts with `text`. Returns the rest of it.
    pub fn wait_for_line(&mut self, text: &str) -> String {
        let (_, line) = self.lines_until(text);
        line.strip_prefix(text)
            .unwrap_or_default()
            .trim()
            .to_owned()
    }

    /// Types `line` and waits for its exit status.
    pub fn run(&mut self, line: &str) -> Reply {
        self.type_line(line);
        let (output, answer) = self.lines_until(ANSWER);
        let status = answer.trim_start_matches(ANSWER).trim();
        let status = status
            .parse()
            .unwrap_or_else(|_| self.fail(&format!("`{line}` was answered by {answer:?}")));
        Reply { output, status }
    }

    /// Types `line`, which must succeed. Returns its output.
    pub fn succeed(&mut self, line: &str) -> String {
        let reply = self.run(line);
        if reply.status != 0 {
            self.fail(&format!(
                "`{line}` ended with {}: {}",
                reply.status, reply.output
            ));
        }
        reply.output
    }

    /// Types `line` without waiting.
    pub fn type_line(&mut self, line: &str) {
        let typed = writeln!(self.input, "{line}").and_then(|()| self.input.flush());
        if let Err(why) = typed {
            self.fail(&format!("cannot type `{line}`: {why}"));
        }
    }

    /// Types `keys` without a line end.
    pub fn press(&mut self, keys: &[u8]) {
        self.input.write_all(keys).expect("a console to type on");
    }

    /// Sends Splitring a signal by its name (`TERM`).
    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let sent = Command::new("kill")
            .args(["-s", name, &pid])
            .status()
            .expect("kill runs");
        assert!(sent.success(), "SIG{name} was not sent");
    }

    /// Loads extra modules from the disk `device`, which has [`Kernel::extra_modules`] on it:
    /// `last` and all before it.
    pub fn load_extra(&mut self, device: &str, last: &str) {
        self.succeed(&format!(
            "mkdir -p /tmp/extra && tar -xf {device} -C /tmp/extra && while read -r module; do \
             insmod /tmp/extra/$module 2>/dev/null; [ $module = {last}.ko ] && break; done </tmp/extra/order; \
             grep -q '^{last} ' /proc/modules"
        ));
    }

    /// Waits until Splitring ends.
    pub fn finish(mut self) -> Exit {
        let started = Instant::now();
        let status = loop {
            match self.child.try_wait().expect("a child to wait for") {
                Some(status) => break status,
                None if started.elapsed() > TIMEOUT => self.fail("splitring did not end"),
                None => std::thread::sleep(POLL),
            }
        };
        // The other end of a terminal may never close: output that comes late is ignored.
        while let Ok(chunk) = self.output.recv_timeout(DRAIN_TIMEOUT) {
            self.console.push_str(&clean(&chunk));
        }
        let errors: Vec<u8> = self.errors.iter().flatten().collect();
        Exit {
            code: status.code(),
            console: std::mem::take(&mut self.console),
            errors: String::from_utf8_lossy(&errors).into_owned(),
        }
    }

    /// Powers the guest off from inside. Splitring must then end with exit code 0.
    pub fn power_off(mut self) -> Exit {
        self.type_line("sync; poweroff -f");
        let exit = self.finish();
        assert_eq!(
            exit.code,
            Some(0),
            "after a power-off; standard error: {}",
            exit.errors
        );
        exit
    }

    /// Reads until a line starts with `text`. Returns the lines before it, and that line.
    fn lines_until(&mut self, text: &str) -> (String, String) {
        let started = Instant::now();
        let mut before = String::new();
        loop {
            while let Some(end) = self.console[self.seen..].find('\n') {
                let line = self.console[self.seen..self.seen + end].to_owned();
                self.seen += end + 1;
                if line.starts_with(text) {
                    return (before, line);
                }
                before.push_str(&line);
                before.push('\n');
            }
            let left = TIMEOUT.saturating_sub(started.elapsed());
            match self.output.recv_timeout(left) {
                Ok(chunk) => self.console.push_str(&clean(&chunk)),
                Err(RecvTimeoutError::Timeout) => self.fail(&format!("no {text:?} in time")),
                Err(RecvTimeoutError::Disconnected) => {
                    self.fail(&format!("splitring ended before {text:?}"))
                }
            }
        }
    }

    /// Panics with `why`, the console's last lines and standard error.
    fn fail(&mut self, why: &str) -> ! {
        // The pipes close shortly before the process has ended, and may still have its last output.
        std::thread::sleep(DRAIN_TIMEOUT);
        for chunk in self.output.try_iter() {
            self.console.push_str(&clean(&chunk));
        }
        let ended = match self.child.try_wait() {
            Ok(Some(status)) => format!("; splitring had ended: {status}"),
            _ => String::new(),
        };
        // Standard error is complete only after the end.
        self.child.kill().expect("a child to kill");
        let lines: Vec<_> = self.console.lines().collect();
        let shown = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n");
        let errors: Vec<u8> = self.errors.iter().flatten().collect();
        let errors = String::from_utf8_lossy(&errors);
        panic!("{why}{ended}\n--- console\n{shown}\n--- standard error\n{errors}");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn spawn(mut command: Command, input: Stdio, output: Stdio) -> Child {
    command
        .stdin(input)
        .stdout(output)
        .stderr(Stdio::piped())
        .spawn()
        .expect("splitring starts")
}

/// Removes the CR that the guest's terminal adds to line ends.
fn clean(chunk: &[u8]) -> String {
    String::from_utf8_lossy(chunk).replace('\r', "")
}

/// Starts a thread that reads `from` to its end.
fn pump(mut from: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (send, receive) = channel();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if send.send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    receive
}
