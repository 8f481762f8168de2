//! What the cache keeps, trusts and repairs.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use super::images::{BzImageFile, ElfFile, pack};
use super::*;

fn vmlinuz(elf: &ElfFile) -> Vec<u8> {
    BzImageFile {
        payload: pack(&elf.build(), Format::Gzip),
        ..BzImageFile::default()
    }
    .build()
}

/// Returns the names in the cache that end with `suffix`.
fn names(directory: &KernelDirectory, suffix: &str) -> Vec<PathBuf> {
    let mut names: Vec<_> = fs::read_dir(directory.cache_directory())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.retain(|path| path.to_string_lossy().ends_with(suffix));
    names
}

fn image(directory: &KernelDirectory) -> PathBuf {
    let mut images = names(directory, ".image");
    assert_eq!(images.len(), 1);
    images.remove(0)
}

/// Opens a kernel and saves it in the cache for the next start.
fn open_and_save(path: &Path, policy: &CachePolicy) -> Kernel {
    let mut kernel = Kernel::open(path, policy).unwrap();
    if let Some(unsaved) = kernel.take_unsaved() {
        unsaved.save();
    }
    kernel
}

/// Opens a kernel that must be in the cache.
fn open_saved(path: &Path, policy: &CachePolicy) -> Kernel {
    let kernel = Kernel::open(path, policy).unwrap();
    assert!(kernel.unsaved.is_none());
    kernel
}

#[test]
fn an_unpacked_kernel_is_cached_completely() {
    let directory = KernelDirectory::new();
    let elf = ElfFile::kernel();
    let path = directory.file("kernel", &vmlinuz(&elf));
    for saved in [false, true] {
        let mut kernel = Kernel::open(&path, &directory.cache()).unwrap();
        assert_eq!(
            (kernel.entry(), kernel.range()),
            (EntryPoint::Pvh(0x100_0010), elf.range())
        );
        assert_eq!(copied(&kernel), elf.memory());
        let unsaved = kernel.take_unsaved();
        assert_eq!(unsaved.is_none(), saved);
        unsaved.into_iter().for_each(Unsaved::save);
        assert!(
            kernel.plan.pieces.len() > 2,
            "the long zero run inside the data is a hole"
        );
    }
    assert_eq!(names(&directory, ".image").len(), 1);
    assert!(names(&directory, ".tmp").is_empty());
}

/// A copy in the cache would keep the whole image in memory during the first boot, for nothing.
#[test]
fn zeros_of_an_elf_file_are_known_at_the_second_start_and_not_copied() {
    let directory = KernelDirectory::new();
    let elf = ElfFile::kernel();
    let path = directory.file("vmlinux", &elf.build());
    open_and_save(&path, &directory.cache());
    assert!(
        names(&directory, ".note").is_empty(),
        "a file this young may change without a new timestamp"
    );
    std::thread::sleep(Duration::from_millis(1100));
    let first = open_and_save(&path, &directory.cache());
    assert_eq!(first.plan.pieces.len(), 2);
    let kernel = open_saved(&path, &directory.cache());
    assert_eq!(kernel.plan.pieces.len(), 3);
    assert_eq!(copied(&kernel), elf.memory());
    assert!(
        names(&directory, ".image").is_empty(),
        "nothing is copied into the cache"
    );
    // A note that is damaged, or about another kernel, is not used.
    let note = names(&directory, ".note").remove(0);
    let text = fs::read_to_string(&note).unwrap();
    fs::write(&note, text.replace("kernel", "kernal")).unwrap();
    assert!(
        Kernel::open(&path, &directory.cache())
            .unwrap()
            .unsaved
            .is_some()
    );
    let other = KernelNote {
        entry: EntryPoint::Pvh(0x100_0020),
        range: elf.range(),
        spans: std::iter::once(0x100_0000..0x100_1000).collect(),
    };
    let cache = Cache::open(&directory.cache()).unwrap();
    let file = File::open(&path).unwrap();
    let state = FileState::of(&file).unwrap();
    cache.store_note((&file, &state), &other.encode()).unwrap();
    let kernel = Kernel::open(&path, &directory.cache()).unwrap();
    assert!(kernel.unsaved.is_some());
    assert_eq!(copied(&kernel), elf.memory());
}

#[test]
fn old_notes_are_removed() {
    let directory = KernelDirectory::new();
    let cache = Cache::open(&directory.cache()).unwrap();
    for number in 0..300 {
        let name = format!("{number}.note");
        fs::write(directory.cache_directory().join(name), "").unwrap();
    }
    let path = directory.file("vmlinux", &ElfFile::kernel().build());
    std::thread::sleep(Duration::from_millis(1100));
    let file = File::open(&path).unwrap();
    let state = FileState::of(&file).unwrap();
    cache.store_note((&file, &state), "text").unwrap();
    assert_eq!(names(&directory, ".note").len(), 256);
    assert_eq!(cache.find_note(&state).as_deref(), Some("text"));
}

#[test]
fn a_settled_file_is_found_by_its_state_and_a_changed_one_is_not() {
    let directory = KernelDirectory::new();
    let elf = ElfFile::kernel();
    let path = directory.file("vmlinuz", &vmlinuz(&elf));
    open_and_save(&path, &directory.cache());
    assert_eq!(
        names(&directory, ".record").len(),
        1,
        "a file this young may change without a new timestamp"
    );
    std::thread::sleep(Duration::from_millis(1100));
    open_saved(&path, &directory.cache());
    let records = names(&directory, ".record");
    assert_eq!(records.len(), 2);
    // Only the record by state is left: nothing needs the content's digest any more.
    let digest = image(&directory).with_extension("record");
    fs::remove_file(digest).unwrap();
    assert_eq!(copied(&open_saved(&path, &directory.cache())), elf.memory());
    let mut other = elf.clone();
    other.segments[0].1[0x100] ^= 0xff;
    fs::write(&path, vmlinuz(&other)).unwrap();
    assert_eq!(
        copied(&Kernel::open(&path, &directory.cache()).unwrap()),
        other.memory()
    );
}

#[test]
fn copies_of_a_kernel_share_an_image() {
    let directory = KernelDirectory::new();
    let elf = ElfFile::kernel();
    let inodes: Vec<_> = ["one", "two"]
        .map(|name| {
            open_and_save(&directory.file(name, &vmlinuz(&elf)), &directory.cache());
            fs::metadata(image(&directory)).unwrap().ino()
        })
        .to_vec();
    assert_eq!(inodes[0], inodes[1]);
    let mut other = elf.clone();
    other.segments[0].1[0x100] ^= 0xff;
    for (name, hashed) in [("three", false), ("four", true)] {
        let path = directory.file(name, &vmlinuz(&other));
        let mut kernel = Kernel::open(&path, &directory.cache()).unwrap();
        assert_eq!(kernel.unsaved.is_none(), hashed);
        kernel.take_unsaved().into_iter().for_each(Unsaved::save);
    }
}

#[test]
fn damaged_entries_are_made_again() {
    type Damage = fn(&KernelDirectory);
    let damages: [(&str, Damage); 8] = [
        ("a flipped byte", |directory| {
            rewrite(&image(directory), |bytes| bytes[5] ^= 1)
        }),
        ("cut off", |directory| {
            rewrite(&image(directory), |bytes| bytes.truncate(4096))
        }),
        ("cut off within a page", |directory| {
            rewrite(&image(directory), |bytes| bytes.truncate(4095))
        }),
        ("emptied", |directory| {
            rewrite(&image(directory), Vec::clear)
        }),
        ("deleted", |directory| {
            fs::remove_file(image(directory)).unwrap()
        }),
        ("a symbolic link", |directory| {
            let path = image(directory);
            let moved = directory.root.path().join("moved");
            fs::rename(&path, &moved).unwrap();
            std::os::unix::fs::symlink(moved, path).unwrap();
        }),
        ("records flipped", |directory| {
            names(directory, ".record")
                .iter()
                .for_each(|path| rewrite(path, |bytes| bytes[100] ^= 1))
        }),
        ("records emptied", |directory| {
            names(directory, ".record")
                .iter()
                .for_each(|path| rewrite(path, Vec::clear))
        }),
    ];
    for (name, damage) in damages {
        let directory = KernelDirectory::new();
        let elf = ElfFile::kernel();
        let path = directory.file("vmlinuz", &vmlinuz(&elf));
        open_and_save(&path, &directory.cache());
        damage(&directory);
        let kernel = open_and_save(&path, &directory.cache());
        assert_eq!(copied(&kernel), elf.memory(), "{name}");
        let kernel = open_saved(&path, &directory.cache());
        assert_eq!(copied(&kernel), elf.memory(), "{name}");
        assert!(
            fs::symlink_metadata(image(&directory)).unwrap().is_file(),
            "{name}"
        );
    }
}

fn rewrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn an_image_that_was_only_touched_is_trusted_again() {
    let directory = KernelDirectory::new();
    let path = directory.file("vmlinuz", &vmlinuz(&ElfFile::kernel()));
    open_and_save(&path, &directory.cache());
    let before = fs::metadata(image(&directory)).unwrap().ino();
    rewrite(&image(&directory), |_| {});
    open_saved(&path, &directory.cache());
    assert_eq!(fs::metadata(image(&directory)).unwrap().ino(), before);
}

#[test]
fn without_a_cache_no_file_is_written_and_an_unusable_one_is_ignored() {
    let elf = ElfFile::kernel();
    let directory = KernelDirectory::new();
    let path = directory.file("vmlinuz", &vmlinuz(&elf));
    let kernel = Kernel::open(&path, &CachePolicy::Off).unwrap();
    assert!(!directory.cache_directory().exists());
    assert_eq!(copied(&kernel), elf.memory());
    let not_a_directory = CachePolicy::Directory(path.clone());
    fs::create_dir(directory.cache_directory()).unwrap();
    fs::set_permissions(directory.cache_directory(), Permissions::from_mode(0o777)).unwrap();
    for policy in [not_a_directory, directory.cache()] {
        let kernel = open_saved(&path, &policy);
        assert_eq!(copied(&kernel), elf.memory());
    }
    assert!(
        names(&directory, "").is_empty(),
        "a directory that others may write to is not used"
    );
}

#[test]
fn a_start_does_not_wait_for_a_busy_cache() {
    let directory = KernelDirectory::new();
    let elf = ElfFile::kernel();
    let path = directory.file("vmlinuz", &vmlinuz(&elf));
    fs::create_dir(directory.cache_directory()).unwrap();
    let lock = File::create(directory.cache_directory().join("lock")).unwrap();
    lock.lock().unwrap();
    let kernel = open_and_save(&path, &directory.cache());
    assert_eq!(copied(&kernel), elf.memory());
    assert!(names(&directory, ".image").is_empty());
    lock.unlock().unwrap();
    open_and_save(&path, &directory.cache());
    open_saved(&path, &directory.cache());
}

#[test]
fn an_image_in_use_survives_its_removal() {
    let directory = KernelDirectory::new();
    let elf = ElfFile::kernel();
    let path = directory.file("vmlinuz", &vmlinuz(&elf));
    open_and_save(&path, &directory.cache());
    let kernel = open_saved(&path, &directory.cache());
    fs::remove_dir_all(directory.cache_directory()).unwrap();
    assert_eq!(copied(&kernel), elf.memory());
}

#[test]
fn a_kernel_whose_memory_was_released_is_unpacked_again() {
    let directory = KernelDirectory::new();
    let elf = ElfFile::kernel();
    let path = directory.file("vmlinuz", &vmlinuz(&elf));
    let mut kernel = Kernel::open(&path, &CachePolicy::Off).unwrap();
    kernel.release_memory();
    // The file that was opened counts, not the one that is at its path now.
    fs::remove_file(&path).unwrap();
    for _ in 0..2 {
        assert_eq!(copied(&kernel), elf.memory());
    }
}

#[test]
fn a_kernel_that_changed_in_place_is_not_booted_again() {
    let directory = KernelDirectory::new();
    let mut elf = ElfFile::kernel();
    let path = directory.file("vmlinuz", &vmlinuz(&elf));
    let mut kernel = Kernel::open(&path, &CachePolicy::Off).unwrap();
    kernel.release_memory();
    elf.move_to(elf.range().start + (2 << 20));
    fs::write(&path, vmlinuz(&elf)).unwrap();
    let error = kernel.copy_into(&memory()).unwrap_err();
    assert!(error.to_string().contains("changed"), "{error}");
}
