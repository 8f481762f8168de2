//! The kernel's trace of what is asked of it to free and zero blocks: every fallocate(2), through
//! io_uring or not, BLKDISCARD, vectored writes, and the requests that a block device gets.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use splitring_needs as needs;

const TRACING: &str = "/sys/kernel/tracing";
/// `FALLOC_FL_PUNCH_HOLE` and `FALLOC_FL_ZERO_RANGE`.
const PUNCH_HOLE: u64 = 0x02;
const ZERO_RANGE: u64 = 0x10;
const BLKDISCARD: u32 = 0x1277;

/// Whether the kernel can be traced here.
pub(super) fn possible() -> bool {
    let probes = Path::new(TRACING).join("kprobe_events");
    probes.exists() || needs::lack("no tracefs with kprobe events is mounted")
}

/// A trace that runs.
pub(super) struct Recorder {
    instance: PathBuf,
    group: String,
    range: Range<u64>,
}

/// What a trace says.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Calls by their names; of calls that follow one another and are alike, the first.
    calls: Vec<&'static str>,
    /// Bytes per kind of request that the device got, reads aside.
    pub(super) storage: BTreeMap<char, u64>,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.calls.join("+"))?;
        self.storage
            .keys()
            .try_for_each(|kind| write!(f, " {kind}"))
    }
}

impl Recorder {
    /// Records what happens to this range of a file, or of block device `device`.
    pub(super) fn start(device: Option<(u32, u32)>, range: Range<u64>) -> Self {
        let group = format!("splitring{}", std::process::id());
        let instance = Path::new(TRACING).join("instances").join(&group);
        probe(&format!(
            "p:{group}/fallocate vfs_fallocate mode=%si:u32 offset=%dx:s64 len=%cx:s64"
        ));
        fs::create_dir(&instance).expect("an instance of the trace");
        let recorder = Self {
            instance,
            group,
            range,
        };
        recorder.enable(&format!("{}/fallocate", recorder.group), None);
        let discard = format!("cmd == {BLKDISCARD}");
        recorder.enable("syscalls/sys_enter_ioctl", Some(&discard));
        for call in ["pwrite64", "pwritev", "pwritev2"] {
            recorder.enable(&format!("syscalls/sys_enter_{call}"), None);
        }
        if let Some((major, minor)) = device {
            let filter = format!("dev == {}", (major << 20) | minor);
            recorder.enable("block/block_bio_queue", Some(&filter));
        }
        recorder
    }

    fn enable(&self, event: &str, filter: Option<&str>) {
        let dir = self.instance.join("events").join(event);
        let write = |name: &str, text: &str| {
            let file = dir.join(name);
            fs::write(&file, text).unwrap_or_else(|why| panic!("{}: {why}", file.display()));
        };
        if let Some(filter) = filter {
            write("filter", filter);
        }
        write("enable", "1");
    }

    /// Ends it.
    pub(super) fn stop(self) -> Seen {
        fs::write(self.instance.join("tracing_on"), "0").expect("stopped");
        let trace = fs::read_to_string(self.instance.join("trace")).expect("the trace");
        let mut seen = Seen::default();
        for line in trace.lines().filter(|line| !line.starts_with('#')) {
            self.judge(line, &mut seen);
        }
        seen.calls.dedup();
        seen
    }

    fn judge(&self, line: &str, seen: &mut Seen) {
        let number = |name: &str| -> u64 {
            let rest = line.split_once(name).expect(name).1;
            let digits = rest.split(' ').next().unwrap_or(rest);
            digits.parse().unwrap_or_else(|_| panic!("{line}"))
        };
        if line.contains(" fallocate: ") {
            if self.range.contains(&number(" offset=")) {
                seen.calls.push(match number(" mode=") {
                    mode if mode & PUNCH_HOLE != 0 => "punch",
                    mode if mode & ZERO_RANGE != 0 => "zero",
                    _ => "fallocate",
                });
            }
        } else if line.contains(" sys_ioctl(") {
            seen.calls.push("discard");
        } else if line.contains(" sys_pwrite") {
            seen.calls.push("write");
        } else if let Some((_, request)) = line.split_once(" block_bio_queue: ") {
            // 7,0 DS 2048 + 16 [comm]
            let words: Vec<_> = request.split(' ').collect();
            let [_, kind, start, "+", sectors, ..] = words[..] else {
                panic!("{line}");
            };
            let start: u64 = start.parse().expect("a sector");
            let sectors: u64 = sectors.parse().expect("sectors");
            let kind = kind.trim_start_matches('F').chars().next();
            let counts = |kind: &char| *kind != 'R' && self.range.contains(&(start * 512));
            if let Some(kind) = kind.filter(counts).filter(|_| sectors > 0) {
                *seen.storage.entry(kind).or_default() += sectors * 512;
            }
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        drop(fs::remove_dir(&self.instance));
        probe(&format!("-:{}/fallocate", self.group));
    }
}

/// Adds a line to the kernel's list of probes.
fn probe(line: &str) {
    use std::io::Write;
    let file = Path::new(TRACING).join("kprobe_events");
    let added = fs::File::options()
        .append(true)
        .open(file)
        .and_then(|mut file| file.write_all(line.as_bytes()));
    if let Err(why) = added
        && !std::thread::panicking()
    {
        panic!("{line}: {why}");
    }
}
