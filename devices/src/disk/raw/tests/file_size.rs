//! The limit on file sizes (RLIMIT_FSIZE): a write beyond it sends SIGXFSZ, whose default is to
//! kill the process.

use std::process::Command;

use rustix::process::{Resource, Rlimit, setrlimit};
use splitring_virtio::spec::blk::{request, status};

use super::*;
use crate::blk::Blk;
use crate::testing::logged;
use crate::testing::pci::Guest;

/// In a process of its own, which has the limit: where the image is, and the backend.
const IMAGE: &str = "SPLITRING_TEST_IMAGE";
const AIO: &str = "SPLITRING_TEST_AIO";
const LIMIT: u64 = LEN / 4;

/// What a guest's write of a sector is answered with.
fn written(guest: &mut Guest, sector: u64) -> u8 {
    const HEADER: u64 = 0x1000;
    const DATA: u64 = 0x2000;
    const STATUS: u64 = 0x3000;
    guest.poke(HEADER, &u64::from(request::OUT).to_le_bytes());
    guest.poke(HEADER + 8, &sector.to_le_bytes());
    guest.poke(STATUS, &[0xee]);
    let buffers = [(HEADER, 16, false), (DATA, 512, false), (STATUS, 1, true)];
    guest.offer(0, &buffers);
    guest.kick(0);
    guest.wait_used(0, 1);
    guest.peek(STATUS, 1)[0]
}

#[test]
fn a_write_beyond_the_limit_on_file_sizes_fails_and_kills_nobody() {
    if let Some(path) = std::env::var_os(IMAGE) {
        let aio = std::env::var(AIO).expect("both are set");
        let limit = Rlimit {
            current: Some(LIMIT),
            maximum: Some(LIMIT),
        };
        setrlimit(Resource::Fsize, limit).expect("lower");
        let config = DiskConfig {
            aio: if aio == "Ring" {
                Aio::IoUring
            } else {
                Aio::Threads
            },
            ..DiskConfig::new(path)
        };
        let mut disk = None;
        let lines = logged(|| disk = RawDisk::open(&config, 1, DEPTH).ok());
        let disk = disk.expect("image");
        let told = |line: &&String| line.contains("WARN") && line.contains("`ulimit -f`");
        assert_eq!(lines.iter().filter(told).count(), 1, "{lines:?}");
        let fault = IoFault::from_errno(libc::EFBIG).to_string();
        assert!(fault.contains("`ulimit -f`"), "{fault}");
        let blk = Blk::new("disk0", Arc::new(disk), 1, 16, "");
        let mut guest = Guest::started(Arc::new(blk));
        assert_eq!(written(&mut guest, 0), status::OK);
        assert_eq!(written(&mut guest, LIMIT / 512), status::IOERR);
        assert_eq!(written(&mut guest, LIMIT / 512 - 1), status::OK);
        return;
    }
    for dir in [std::env::temp_dir(), "/dev/shm".into()] {
        let Ok(dir) = tempfile::tempdir_in(dir) else {
            needs::lack("no /dev/shm");
            continue;
        };
        let scratch = Scratch::at(dir, LEN);
        for aio in ["Ring", "Plain"] {
            let name = "a_write_beyond_the_limit_on_file_sizes_fails_and_kills_nobody";
            let output = Command::new(std::env::current_exe().expect("this test"))
                .args([&format!(
                    "{}::{name}",
                    module_path!().split_once("::").expect("a crate").1
                )])
                .args(["--exact", "--nocapture"])
                .env(IMAGE, &scratch.config.path)
                .env(AIO, aio)
                .output()
                .expect("run");
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{aio}: {} {text}", output.status);
            assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
        }
    }
}
