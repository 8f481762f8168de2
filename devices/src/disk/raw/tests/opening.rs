//! What an image is found to be, and what is refused.

use super::*;

#[test]
fn a_larger_image_is_a_larger_disk_after_a_rescan() {
    everywhere(|scratch, disk, stream| {
        let segments = [stream.segment(0, 512)];
        scratch.file().set_len(2 * LEN + 100).expect("grow");
        assert_eq!(disk.geometry().capacity, LEN);
        assert_eq!(
            disk.rescan().expect("a file").capacity,
            2 * LEN,
            "cut to whole blocks"
        );
        let write = DiskOp::Write {
            offset: 2 * LEN - 512,
            data: Data::Guest(&segments),
            fua: false,
        };
        assert_eq!(stream.run(write), Ok(512));
        scratch.file().set_len(LEN).expect("shrink");
        assert_eq!(disk.rescan().expect("a file").capacity, LEN);
        let write = DiskOp::Write {
            offset: LEN,
            data: Data::Guest(&segments),
            fua: false,
        };
        assert_eq!(stream.run(write), Err(IoFault::OutOfRange));
        scratch.file().set_len(0).expect("empty");
        assert!(disk.rescan().is_err());
        assert_eq!(
            disk.geometry().capacity,
            LEN,
            "a failed rescan changes nothing"
        );
    });
}

#[test]
fn a_read_only_disk_writes_nothing() {
    for aio in [Aio::Threads, Aio::Auto] {
        let mut scratch = Scratch::new(LEN);
        (scratch.config.readonly, scratch.config.aio) = (true, aio);
        let disk = scratch.open().expect("image");
        let geometry = disk.geometry();
        assert!(geometry.read_only && geometry.discard.is_none());
        let mut stream = Stream::new(&disk);
        let segments = [stream.segment(0, 512)];
        let write = DiskOp::Write {
            offset: 0,
            data: Data::Guest(&segments),
            fua: false,
        };
        assert_eq!(stream.run(write), Err(IoFault::ReadOnly));
        let zero = DiskOp::WriteZeroes {
            offset: 0,
            len: 512,
            may_unmap: true,
            fua: false,
        };
        assert_eq!(stream.run(zero), Err(IoFault::ReadOnly));
        assert_eq!(stream.run(DiskOp::Flush), Ok(0));
    }
}

#[test]
fn writethrough_and_discard_keys_show_in_the_geometry() {
    let mut scratch = Scratch::new(LEN);
    (scratch.config.cache, scratch.config.discard) = (Cache::Writethrough, false);
    scratch.config.block_size = Some(4096);
    let geometry = scratch.open().expect("image").geometry();
    assert!(!geometry.write_cache && geometry.discard.is_none());
    assert_eq!(
        (geometry.logical_block, geometry.physical_block),
        (4096, 4096)
    );
}

#[test]
fn the_same_image_is_not_opened_twice_for_writing() {
    let mut scratch = Scratch::new(LEN);
    let first = scratch.open().expect("image");
    let error = scratch.open().expect_err("locked").to_string();
    assert!(
        error.contains("in use") && error.contains("share=on"),
        "{error}"
    );
    scratch.config.share = true;
    assert!(scratch.open().is_err(), "the first does not share");
    drop(first);
    let first = scratch.open().expect("shared");
    scratch.open().expect("both share");
    scratch.config.share = false;
    assert!(scratch.open().is_err(), "the second does not share");
    drop(first);
    scratch.config.readonly = true;
    let _first = scratch.open().expect("a reader");
    scratch.open().expect("another reader");
}

#[test]
fn an_image_of_no_whole_blocks_is_cut_to_those_it_has() {
    let mut scratch = Scratch::new(LEN + 1536);
    assert_eq!(
        scratch.open().expect("image").geometry().capacity,
        LEN + 1536
    );
    scratch.config.block_size = Some(4096);
    let geometry = scratch.open().expect("image").geometry();
    assert_eq!((geometry.capacity, geometry.logical_block), (LEN, 4096));
    let small = Scratch::new(4095);
    let config = DiskConfig {
        block_size: Some(4096),
        ..small.config.clone()
    };
    let refused = RawDisk::open(&config, 1, 1).expect_err("refused");
    assert!(
        refused
            .to_string()
            .contains("no whole block of 4096; make it larger"),
        "{refused}"
    );
}

#[test]
fn o_direct_on_a_file_system_without_it_is_refused_with_a_remedy() {
    let config = DiskConfig {
        direct: true,
        readonly: true,
        ..DiskConfig::new("/proc/version")
    };
    let error = RawDisk::open(&config, 1, 1).expect_err("refused");
    let wanted =
        "cannot use /proc/version as a disk: its file system has no O_DIRECT; use direct=off";
    assert_eq!(error.to_string(), wanted);
}

#[test]
fn what_can_not_be_a_disk_is_refused_with_its_name_and_a_remedy() {
    let dir = tempfile::tempdir().expect("directory");
    let empty = dir.path().join("empty");
    File::create(&empty).expect("file");
    let cases: [(PathBuf, &str); 4] = [
        (dir.path().join("missing"), "No such file"),
        (
            dir.path().to_owned(),
            "it is a directory; give a regular file",
        ),
        ("/dev/null".into(), "it is a character device"),
        (empty, "no whole block"),
    ];
    for (path, wanted) in cases {
        let error = RawDisk::open(&DiskConfig::new(&path), 1, 1)
            .expect_err("refused")
            .to_string();
        assert!(
            error.contains(wanted) && error.contains(&path.display().to_string()),
            "{error}"
        );
    }
}
