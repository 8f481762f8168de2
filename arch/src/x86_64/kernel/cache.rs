//! A cache directory of unpacked kernels, so that later boots only copy them.
//!
//! This module knows files and digests. It does not know kernels: a [`CacheRecord`] has the
//! loader's note about an image.
//!
//! ```text
//! DIR/lock                     held while an image is added; a process that finds it held goes on
//!                              without the cache
//! DIR/<size>-<digest>.image    whole pages, read-only, never changed
//! DIR/<size>-<digest>.record   the record, by size and BLAKE3 digest of the original file
//! DIR/<dev-ino-size-mtime-ctime>.record   the same record, by the state of the original file
//! DIR/<dev-ino-size-mtime-ctime>.note     a note about a file that needs no image
//! ```
//!
//! Reading 12 MB to find a kernel by its digest would cost more than the rest of the start, so the
//! records of the second kind are looked up first. They are safe because a file can't change its
//! content without a new ctime; a file that changed within the last second is not looked up that
//! way. The digest finds copies of a file, and prevents that two users of one cache are given each
//! other's kernels by a crafted collision. The size in front of it tells without hashing that a
//! file is not a copy.
//!
//! An image is trusted if its inode has not changed since the image was finished, within the same
//! boot of the host. After a reboot (a crash may have lost unwritten pages) or any change its
//! checksum is verified once. An image that fails is removed and made again.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::layout::{MIB, PAGE};

/// Limit on the total size of all images. The oldest are removed first.
const MAX_TOTAL: u64 = 2048 * MIB;
/// Size limit of a record; records have a few hundred bytes.
const MAX_RECORD: u64 = 4096;
/// Two changes within this time may leave the same timestamp.
const TIMESTAMP_GRAIN: Duration = Duration::from_secs(1);
/// Limit on the number of notes without an image. The oldest are removed first.
const MAX_NOTES: usize = 256;
/// A temporary file of this age was left behind by a process that died.
const ABANDONED: Duration = Duration::from_secs(3600);
const FIRST_LINE: &str = "splitring cache 1";
const NOTE_LINE: &str = "splitring note 1";
const CHUNK: usize = 1 << 20;

/// Where unpacked kernels are cached.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum CachePolicy {
    /// In this directory, which is created if it does not exist.
    Directory(PathBuf),
    /// Nowhere.
    #[default]
    Off,
}

/// The state of a file. It changes whenever the content does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileState(String);

impl FileState {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let m = file.metadata()?;
        let (mtime, ctime) = ((m.mtime(), m.mtime_nsec()), (m.ctime(), m.ctime_nsec()));
        Ok(Self(format!(
            "{:x}-{:x}-{:x}-{}.{:09}-{}.{:09}",
            m.dev(),
            m.ino(),
            m.size(),
            mtime.0,
            mtime.1,
            ctime.0,
            ctime.1
        )))
    }
}

/// Size and digest of a file's content.
#[derive(Debug)]
pub(super) struct FileContent {
    len: u64,
    digest: blake3::Hash,
}

impl FileContent {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self {
            len: bytes.len() as u64,
            digest: blake3::hash(bytes),
        }
    }

    fn key(&self) -> String {
        format!("{}{}", size_prefix(self.len), self.digest)
    }
}

/// Returns the prefix of the names of everything made from files of this size.
fn size_prefix(len: u64) -> String {
    format!("{len:x}-")
}

/// Returns whether `file` has been unchanged for long enough that its timestamps reveal the next
/// change.
fn settled(file: &File) -> io::Result<bool> {
    let metadata = file.metadata()?;
    let part = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
    let nanoseconds = u32::try_from(metadata.ctime_nsec()).unwrap_or(0);
    let changed = Duration::from_secs(part(metadata.ctime()))
        .saturating_add(Duration::from_nanos(nanoseconds.into()));
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Ok(changed.saturating_add(TIMESTAMP_GRAIN) < now)
}

/// The record of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
struct CacheRecord {
    image: String,
    stamp: String,
    boot: String,
    checksum: String,
    /// The loader's note about the image.
    note: String,
}

impl CacheRecord {
    fn encode(&self) -> String {
        seal(&format!(
            "{FIRST_LINE}\n{}\n{}\n{}\n{}\n{}\n",
            self.image, self.stamp, self.boot, self.checksum, self.note
        ))
    }

    fn decode(text: &str) -> Option<Self> {
        let mut lines = unseal(text)?.lines();
        let mut next = || lines.next().map(str::to_owned);
        if next()? != FIRST_LINE {
            return None;
        }
        let record = Self {
            image: next()?,
            stamp: next()?,
            boot: next()?,
            checksum: next()?,
            note: next()?,
        };
        (!record.image.contains('/')).then_some(record)
    }
}

/// Appends a digest to whole lines, so that a file that was only partly written is recognised.
fn seal(lines: &str) -> String {
    format!("{lines}{}\n", blake3::hash(lines.as_bytes()))
}

/// Returns the lines to which [`seal`] appended their digest.
fn unseal(text: &str) -> Option<&str> {
    let digest_at = text.strip_suffix('\n')?.rfind('\n')? + 1;
    let (lines, digest) = text.split_at(digest_at);
    (blake3::hash(lines.as_bytes()).to_string() == digest.trim_end()).then_some(lines)
}

/// A part of an image: bytes at an offset. The gaps between parts read as zero.
pub(super) struct ImagePart<'a> {
    pub(super) offset: u64,
    pub(super) bytes: &'a [u8],
}

/// An image in the cache.
#[derive(Debug)]
pub(super) struct CachedImage {
    pub(super) file: File,
    pub(super) note: String,
}

/// An open cache directory that belongs to this user.
#[derive(Debug)]
pub(super) struct Cache {
    directory: PathBuf,
    boot: String,
}

impl Cache {
    /// Opens the cache that `policy` names. Returns `None` if there is none, or if it can't be
    /// trusted: a start without a cache is slower, but works.
    pub(super) fn open(policy: &CachePolicy) -> Option<Self> {
        let directory = match policy {
            CachePolicy::Off => return None,
            CachePolicy::Directory(directory) => directory.clone(),
        };
        match prepare(&directory) {
            Ok(()) => Some(Self {
                directory,
                boot: boot_id(),
            }),
            Err(error) => {
                tracing::warn!(directory = %directory.display(), %error, "kernels are not cached");
                None
            }
        }
    }

    /// Returns the image made from a file in the state `source`.
    pub(super) fn find(&self, source: &FileState) -> Option<CachedImage> {
        self.lookup(&source.0)
    }

    /// Returns whether there may be an image made from a file of this size. If not,
    /// [`Cache::find_content`] finds nothing.
    pub(super) fn may_hold(&self, len: u64) -> bool {
        let prefix = size_prefix(len);
        fs::read_dir(&self.directory).is_ok_and(|mut entries| {
            entries.any(|entry| {
                entry.is_ok_and(|entry| {
                    let name = entry.file_name();
                    name.as_encoded_bytes().starts_with(prefix.as_bytes())
                })
            })
        })
    }

    /// Returns the image made from a file with this content. From now on `file`, in the state
    /// `source`, is found by its state.
    pub(super) fn find_content(
        &self,
        content: &FileContent,
        file: &File,
        source: &FileState,
    ) -> Option<CachedImage> {
        let key = content.key();
        let cached = self.lookup(&key)?;
        if let Some(record) = self.read_record(&key) {
            self.remember(&record, file, source);
        }
        Some(cached)
    }

    fn lookup(&self, key: &str) -> Option<CachedImage> {
        let record = self.read_record(key)?;
        let file = match open_image(&self.directory.join(&record.image)) {
            Ok(file) => file,
            Err(error) => {
                tracing::debug!(image = record.image, %error, "cached image is gone");
                return None;
            }
        };
        if FileState::of(&file).ok()?.0 == record.stamp && record.boot == self.boot {
            return Some(CachedImage {
                file,
                note: record.note,
            });
        }
        self.revalidate(key, record, file)
    }

    /// Verifies the checksum of the whole image, so that it is trusted again.
    fn revalidate(&self, key: &str, mut record: CacheRecord, file: File) -> Option<CachedImage> {
        let sound = file.metadata().ok()?.size().is_multiple_of(PAGE)
            && checksum(&file).ok()?.to_string() == record.checksum;
        if !sound {
            tracing::warn!(
                image = record.image,
                "cached image is damaged and is made again"
            );
            for name in [&record.image, &format!("{key}.record")] {
                let _ = fs::remove_file(self.directory.join(name));
            }
            return None;
        }
        record.stamp = FileState::of(&file).ok()?.0;
        record.boot.clone_from(&self.boot);
        let content = record.image.trim_end_matches(".image");
        for name in [key, content] {
            if let Err(error) = self.write_record(name, &record) {
                tracing::debug!(%error, "cannot refresh a cache record");
            }
        }
        Some(CachedImage {
            file,
            note: record.note,
        })
    }

    /// Adds an image of `len` bytes (whole pages), made from `source`, whose content is `content`.
    /// After an error nothing is left behind.
    pub(super) fn store(
        &self,
        content: &FileContent,
        (source_file, source): (&File, &FileState),
        parts: &[ImagePart<'_>],
        len: u64,
        note: String,
    ) -> io::Result<()> {
        let _lock = self.lock()?;
        self.prune(len)?;
        let key = content.key();
        let image = format!("{key}.image");
        let checksum = self.write_image(&image, parts, len)?;
        let file = open_image(&self.directory.join(&image))?;
        let record = CacheRecord {
            image,
            stamp: FileState::of(&file)?.0,
            boot: self.boot.clone(),
            checksum: checksum.to_string(),
            note,
        };
        self.write_record(&key, &record)?;
        self.remember(&record, source_file, source);
        Ok(())
    }

    /// Returns the note about a file in the state `source`.
    pub(super) fn find_note(&self, source: &FileState) -> Option<String> {
        let text = self.read_text(&format!("{}.note", source.0))?;
        let note = unseal(&text)?.strip_prefix(NOTE_LINE)?;
        Some(note.trim().to_owned())
    }

    /// Adds a note about `source`, a file that is used as it is, unless the file could still change
    /// without a new state.
    pub(super) fn store_note(
        &self,
        (file, source): (&File, &FileState),
        note: &str,
    ) -> io::Result<()> {
        if FileState::of(file)? != *source || !settled(file)? {
            return Ok(());
        }
        let _lock = self.lock()?;
        self.prune(0)?;
        let text = seal(&format!("{NOTE_LINE}\n{note}\n"));
        self.write_text(&format!("{}.note", source.0), &text)
    }

    /// Adds a record by the state of `file`, unless the file could still change without a new
    /// state.
    fn remember(&self, record: &CacheRecord, file: &File, source: &FileState) {
        let unchanged = FileState::of(file).is_ok_and(|now| now == *source);
        if unchanged
            && settled(file).unwrap_or(false)
            && let Err(error) = self.write_record(&source.0, record)
        {
            tracing::debug!(%error, "cannot write a cache record");
        }
    }

    fn write_image(&self, name: &str, parts: &[ImagePart<'_>], len: u64) -> io::Result<u32> {
        let temporary = TemporaryFile::create(&self.directory)?;
        let mut hasher = crc32fast::Hasher::new();
        let mut at = 0;
        for part in parts {
            add_zeros(&mut hasher, part.offset - at);
            hasher.update(part.bytes);
            temporary.file.write_all_at(part.bytes, part.offset)?;
            at = part.offset + part.bytes.len() as u64;
        }
        add_zeros(&mut hasher, len - at);
        temporary.file.set_len(len)?;
        temporary
            .file
            .set_permissions(Permissions::from_mode(0o400))?;
        temporary.rename(&self.directory.join(name))?;
        Ok(hasher.finalize())
    }

    /// Takes the lock of everything that adds to the cache, until the file is closed.
    fn lock(&self) -> io::Result<File> {
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(self.directory.join("lock"))?;
        lock.try_lock()?;
        Ok(lock)
    }

    fn read_record(&self, key: &str) -> Option<CacheRecord> {
        CacheRecord::decode(&self.read_text(&format!("{key}.record"))?)
    }

    fn write_record(&self, key: &str, record: &CacheRecord) -> io::Result<()> {
        self.write_text(&format!("{key}.record"), &record.encode())
    }

    fn read_text(&self, name: &str) -> Option<String> {
        let file = open_image(&self.directory.join(name)).ok()?;
        let mut text = String::new();
        file.take(MAX_RECORD).read_to_string(&mut text).ok()?;
        Some(text)
    }

    fn write_text(&self, name: &str, text: &str) -> io::Result<()> {
        let temporary = TemporaryFile::create(&self.directory)?;
        (&temporary.file).write_all(text.as_bytes())?;
        temporary.rename(&self.directory.join(name))
    }

    /// Makes space for `incoming` bytes: removes abandoned files, the oldest images and notes above
    /// the limits, and records without an image.
    fn prune(&self, incoming: u64) -> io::Result<()> {
        let mut images = Vec::new();
        let mut records = Vec::new();
        let mut notes = Vec::new();
        for entry in fs::read_dir(&self.directory)?.flatten() {
            let (name, Ok(metadata)) = (entry.file_name(), entry.metadata()) else {
                continue;
            };
            let modified = metadata.modified()?;
            match Path::new(&name)
                .extension()
                .and_then(|extension| extension.to_str())
            {
                Some("image") => images.push((modified, metadata.blocks() * 512, entry.path())),
                Some("record") => records.push((entry.path(), name)),
                Some("note") => notes.push((modified, entry.path())),
                Some("tmp") if modified.elapsed().is_ok_and(|age| age > ABANDONED) => {
                    fs::remove_file(entry.path())?
                }
                _ => {}
            }
        }
        images.sort();
        let mut total = incoming + images.iter().map(|(_, size, _)| size).sum::<u64>();
        for (_, size, path) in images {
            if total <= MAX_TOTAL {
                break;
            }
            // A process that is copying the image keeps it until it has finished.
            fs::remove_file(path)?;
            total -= size;
        }
        notes.sort();
        for (_, path) in notes.iter().rev().skip(MAX_NOTES - 1) {
            fs::remove_file(path)?;
        }
        for (path, name) in records {
            let key = name.to_string_lossy();
            let image = self
                .read_record(key.trim_end_matches(".record"))
                .map(|record| self.directory.join(record.image));
            if image.is_none_or(|image| !image.exists()) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

/// A file that is removed on drop unless it has been renamed.
struct TemporaryFile {
    file: File,
    path: Option<PathBuf>,
}

impl TemporaryFile {
    fn create(directory: &Path) -> io::Result<Self> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("{}-{unique}.tmp", std::process::id()));
        // A dead process with the same process ID may have left one.
        let _ = fs::remove_file(&path);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        Ok(Self {
            file,
            path: Some(path),
        })
    }

    fn rename(mut self, to: &Path) -> io::Result<()> {
        if let Some(path) = &self.path {
            fs::rename(path, to)?;
        }
        self.path = None;
        Ok(())
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// Creates the directory. Fails if other users could put a kernel into it.
fn prepare(directory: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let metadata = fs::metadata(directory)?;
    if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the cache directory belongs to, or is writable by, another user",
        ));
    }
    Ok(())
}

fn open_image(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc_nofollow())
        .open(path)
}

/// `O_NOFOLLOW`.
fn libc_nofollow() -> i32 {
    rustix::fs::OFlags::NOFOLLOW.bits().cast_signed()
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// Returns the CRC-32 of a whole file. It detects accidents only: who may write to the directory
/// owns it.
fn checksum(file: &File) -> io::Result<u32> {
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    loop {
        let read = file.read_at(&mut buffer, offset)?;
        if read == 0 {
            return Ok(hasher.finalize());
        }
        hasher.update(&buffer[..read]);
        offset += read as u64;
    }
}

fn add_zeros(hasher: &mut crc32fast::Hasher, mut len: u64) {
    const ZEROS: [u8; 4096] = [0; 4096];
    while len > 0 {
        let step = len.min(ZEROS.len() as u64);
        hasher.update(&ZEROS[..usize::try_from(step).unwrap_or(ZEROS.len())]);
        len -= step;
    }
}
