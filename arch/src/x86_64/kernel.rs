//! A kernel file on its path into guest memory: recognise, unpack, plan, load.
//!
//! This module knows file formats and guest addresses. It does not know boot parameters (see
//! [`crate::boot`]) or how guest memory is made.
//!
//! ```text
//! vmlinux ─ its segments                                       (entry: PVH or 64-bit)
//! vmlinuz ─ payload ─ unpack ─ flatten ─ cache ─ flat image    (entry: PVH)
//!         └ the bzImage itself, if the payload can't be unpacked or has no PVH note
//!                                                  (entry: 64-bit; decompresses itself)
//! ```
//!
//! An ELF file is loaded from its own file: a copy in the cache would save nothing. Booting an ELF
//! file loads it at its link address, so that the guest gives up KASLR.

mod bzimage;
mod cache;
mod elf;
mod entry;
mod error;
mod flat;
mod initrd;
mod note;
mod plan;
mod spans;
mod unpack;
mod unsaved;

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use linux_loader::bootparam::setup_header;
use linux_loader::loader::{BzImage as BzImageLoader, KernelLoader};
use vm_memory::{GuestAddress, GuestMemoryBackend};

pub use cache::CachePolicy;
pub use entry::EntryPoint;
pub use error::KernelError;
pub use initrd::Initrd;
pub use unpack::Format;
pub use unsaved::Unsaved;

use crate::layout::{Layout, MIB};
use bzimage::BzImage;
use cache::{Cache, FileContent, FileState};
use elf::ElfImage;
use flat::{FlatImage, Placement};
use note::KernelNote;
use plan::{BoxError, ImageFile, LoadPlan, Piece, Source, with_reader};
use unpack::UnpackError;
use unsaved::{OriginalFile, UnsavedContent};

/// A kernel file that is open, recognised and ready to be loaded.
#[derive(Debug)]
pub struct Kernel {
    path: PathBuf,
    image: KernelImage,
    plan: LoadPlan,
    entry: EntryPoint,
    range: Range<u64>,
    unsaved: Option<Unsaved>,
    /// The opened file, if the image was unpacked from it into this process's memory.
    packed: Option<File>,
}

/// The source of the plan's pieces.
#[derive(Debug)]
enum KernelImage {
    /// An ELF file.
    Elf(Source),
    /// A bzImage that is booted as such.
    BzImage(Source, Box<setup_header>),
    /// An image of guest memory. The plan has all of its pieces.
    Flat,
    /// An image that was unpacked and released; see [`Kernel::release_memory`].
    Released,
}

/// The bytes that identify a format and hold the whole setup header.
const HEAD: usize = 1024;

impl Kernel {
    /// Opens and recognises the kernel at `path`. The payload of a bzImage is unpacked, or taken
    /// from the cache if that has it.
    ///
    /// # Errors
    ///
    /// The file can't be read, or is not a kernel that can be booted.
    pub fn open(path: &Path, cache: &CachePolicy) -> Result<Self, KernelError> {
        Self::from_file(open_regular(path)?, path, cache)
    }

    /// Like [`Kernel::open`], for a file that is already open; `path` is used in messages only.
    ///
    /// # Errors
    ///
    /// The file can't be read, or is not a kernel that can be booted.
    pub fn from_file(file: File, path: &Path, cache: &CachePolicy) -> Result<Self, KernelError> {
        let cache = Cache::open(cache);
        let opened = OpenedFile::new(file, path)?;
        if let Some(cached) = cache.as_ref().and_then(|cache| cache.find(&opened.stamp))
            && let Some(placement) = flat::from_cache(cached)
        {
            return Ok(Self::flat(path, placement));
        }
        let len = opened.len;
        let mut head = [0; HEAD];
        let head = &mut head[..usize::try_from(len).unwrap_or(HEAD).min(HEAD)];
        let source = Source::File(ImageFile::new(
            opened
                .file
                .try_clone()
                .map_err(|source| io_error(path, "read", source))?,
        ));
        source
            .read_exact_at(head, 0)
            .map_err(|source| io_error(path, "read", source))?;
        if head.starts_with(&elf::MAGIC) {
            let image = ElfImage::parse(&source, len).map_err(|error| error.at(path, len))?;
            return Ok(opened.elf(&image, source, cache));
        }
        if !bzimage::recognise(head) {
            return Err(KernelError::NotAKernel {
                path: path.to_owned(),
                found: describe(head),
            });
        }
        let wrapper = BzImage::parse(head, len).map_err(|error| error.at(path, len))?;
        opened.unwrap_bzimage(&wrapper, source, cache)
    }

    /// Returns the entry point.
    #[must_use]
    pub fn entry(&self) -> EntryPoint {
        self.entry
    }

    /// Returns the guest addresses that the kernel occupies, including its zero-initialised data
    /// and, for a bzImage, the space for decompression.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Takes the kernel that is still to be saved in the cache, if there is one.
    pub fn take_unsaved(&mut self) -> Option<Unsaved> {
        self.unsaved.take()
    }

    /// Returns the setup header of a bzImage that is booted by its own 64-bit entry.
    #[must_use]
    pub fn setup_header(&self) -> Option<&setup_header> {
        match &self.image {
            KernelImage::BzImage(_, header) => Some(header),
            KernelImage::Elf(_) | KernelImage::Flat | KernelImage::Released => None,
        }
    }

    /// Checks that the kernel lies in `layout`'s RAM below the 32-bit hole.
    ///
    /// # Errors
    ///
    /// RAM is too small.
    pub fn check_fits(&self, layout: &Layout) -> Result<(), KernelError> {
        if self.range.end <= layout.low_end() {
            return Ok(());
        }
        Err(KernelError::KernelDoesNotFit {
            path: self.path.clone(),
            needed: self.range.end,
            available: layout.low_end(),
            remedy: self.range.end.div_ceil(MIB),
        })
    }

    /// Copies the kernel into fresh `memory`. Opens no file; unpacks the opened file again if its
    /// memory was released.
    ///
    /// # Errors
    ///
    /// The file can't be read, or has changed since it was opened.
    pub fn copy_into<M: GuestMemoryBackend>(&self, memory: &M) -> Result<(), KernelError> {
        let result = match &self.image {
            KernelImage::Released => return self.unpack_again()?.copy_into(memory),
            // The plan was checked, so it is what is copied: linux-loader would parse the headers
            // again, by its own rules.
            KernelImage::Flat | KernelImage::Elf(_) => self.plan.copy_into(memory),
            KernelImage::BzImage(source, _) => {
                load_with::<BzImageLoader, _>(source, memory, Some(GuestAddress(self.range.start)))
            }
        };
        result.map_err(|source| KernelError::Copy {
            path: self.path.clone(),
            source,
        })
    }

    /// Frees the memory of an image that was unpacked into this process: tens of megabytes that are
    /// not needed until the machine is built again.
    pub fn release_memory(&mut self) {
        if self.packed.is_some() {
            self.image = KernelImage::Released;
            self.plan.pieces.clear();
        }
    }

    fn unpack_again(&self) -> Result<Self, KernelError> {
        let file = self.packed.as_ref().map(File::try_clone).transpose();
        let file = file.map_err(|source| io_error(&self.path, "read", source))?;
        let changed = || KernelError::Malformed {
            path: self.path.clone(),
            what: "kernel",
            reason: "its file changed since the machine was started",
        };
        let kernel = Self::from_file(file.ok_or_else(changed)?, &self.path, &CachePolicy::Off)?;
        let same = kernel.entry == self.entry && kernel.range == self.range;
        same.then_some(kernel).ok_or_else(changed)
    }

    fn elf(path: &Path, image: &ElfImage, source: Source) -> Self {
        let mut plan = LoadPlan::default();
        for segment in &image.segments {
            if segment.file_len > 0 {
                let source = source.clone();
                plan.pieces.push(Piece {
                    guest: segment.guest,
                    source,
                    offset: segment.offset,
                    len: segment.file_len,
                });
            }
        }
        Self {
            path: path.to_owned(),
            image: KernelImage::Elf(source),
            plan,
            entry: image.entry,
            range: image.range(),
            unsaved: None,
            packed: None,
        }
    }

    fn flat(path: &Path, placement: Placement) -> Self {
        Self {
            path: path.to_owned(),
            image: KernelImage::Flat,
            plan: placement.plan,
            entry: placement.entry,
            range: placement.range,
            unsaved: None,
            packed: None,
        }
    }

    /// Returns an ELF kernel as a flat image, or `None` if it is too sparse.
    fn flatten(&self) -> io::Result<Option<FlatImage>> {
        match &self.image {
            KernelImage::Elf(source) => FlatImage::of(source, &self.plan, self.entry, &self.range),
            KernelImage::BzImage(..) | KernelImage::Flat | KernelImage::Released => {
                Err(io::ErrorKind::InvalidInput.into())
            }
        }
    }

    fn bzimage(path: &Path, wrapper: &BzImage, source: Source, range: Range<u64>) -> Self {
        let (offset, len) = (
            wrapper.protected.start,
            wrapper.protected.end - wrapper.protected.start,
        );
        let piece = Piece {
            guest: range.start,
            source: source.clone(),
            offset,
            len,
        };
        let plan = LoadPlan {
            pieces: vec![piece],
        };
        let image = KernelImage::BzImage(source, Box::new(wrapper.header));
        Self {
            path: path.to_owned(),
            image,
            plan,
            entry: EntryPoint::Linux64(BzImage::entry(range.start)),
            range,
            unsaved: None,
            packed: None,
        }
    }
}

fn load_with<L: KernelLoader, M: GuestMemoryBackend>(
    source: &Source,
    memory: &M,
    at: Option<GuestAddress>,
) -> Result<(), BoxError> {
    with_reader!(source, 0, reader => L::load(memory, at, reader, None))
        .map_err(|error: io::Error| BoxError::from(error))??;
    Ok(())
}

/// A kernel file that is not yet recognised.
struct OpenedFile<'a> {
    path: &'a Path,
    file: File,
    len: u64,
    stamp: FileState,
}

impl<'a> OpenedFile<'a> {
    fn new(file: File, path: &'a Path) -> Result<Self, KernelError> {
        let metadata = file
            .metadata()
            .map_err(|source| io_error(path, "read", source))?;
        check_regular(path, &metadata)?;
        let stamp = FileState::of(&file).map_err(|source| io_error(path, "read", source))?;
        Ok(Self {
            path,
            file,
            len: metadata.len(),
            stamp,
        })
    }

    /// Returns the kernel in an ELF file. The cache may know which parts of it are zero.
    fn elf(self, image: &ElfImage, source: Source, cache: Option<Cache>) -> Kernel {
        let mut kernel = Kernel::elf(self.path, image, source.clone());
        let Some(cache) = cache else {
            return kernel;
        };
        let known = cache
            .find_note(&self.stamp)
            .and_then(|note| KernelNote::decode(&note))
            .filter(|note| note.entry == kernel.entry && note.range == kernel.range);
        if let Some(note) = known {
            kernel.plan.pieces = note.cut(&kernel.plan.pieces, &source);
            return kernel;
        }
        kernel.unsaved = Some(Unsaved {
            path: self.path.to_owned(),
            file: self.file,
            stamp: self.stamp,
            cache,
            content: UnsavedContent::Spans {
                note: KernelNote {
                    entry: kernel.entry,
                    range: kernel.range.clone(),
                    spans: Vec::new(),
                },
                pieces: kernel.plan.pieces.clone(),
            },
        });
        kernel
    }

    /// Returns the payload of a bzImage if it can be booted directly, otherwise the bzImage itself.
    fn unwrap_bzimage(
        self,
        wrapper: &BzImage,
        source: Source,
        cache: Option<Cache>,
    ) -> Result<Kernel, KernelError> {
        let bytes = Arc::new(self.read_all()?);
        let missing = match cache.map(|cache| self.find_copy(cache, &bytes)) {
            Some(Ok(copy)) => return Ok(copy),
            Some(Err(missing)) => Some(missing),
            None => None,
        };
        let reason = match self.payload(wrapper, &bytes)? {
            Ok(kernel) => {
                let file = self.file.try_clone();
                let mut kernel = match kernel.flatten() {
                    Ok(Some(flat)) => self.flat(flat, missing),
                    _ => kernel,
                };
                // Without a second descriptor the image can't be unpacked again: it stays in
                // memory.
                kernel.packed = file.ok();
                return Ok(kernel);
            }
            Err(reason) => reason,
        };
        tracing::warn!(kernel = %self.path.display(), reason, "the kernel decompresses itself, which takes longer");
        let Some(range) = wrapper.range() else {
            let [minor, major] = wrapper.header.version.to_le_bytes();
            return Err(KernelError::NoEntry {
                path: self.path.to_owned(),
                payload: reason,
                major,
                minor,
            });
        };
        Ok(Kernel::bzimage(self.path, wrapper, source, range))
    }

    /// Returns the kernel in the payload. The inner error says why it can't be booted directly.
    fn payload(
        &self,
        wrapper: &BzImage,
        bytes: &[u8],
    ) -> Result<Result<Kernel, String>, KernelError> {
        let range = usize::try_from(wrapper.payload.start)
            .ok()
            .zip(usize::try_from(wrapper.payload.end).ok());
        let payload = range
            .and_then(|(start, end)| bytes.get(start..end))
            .unwrap_or_default();
        let Some(format) = unpack::recognise(payload) else {
            return Ok(Err("its format is unknown".to_owned()));
        };
        let unpacked = match unpack::unpack(payload, format) {
            Ok(unpacked) => unpacked,
            Err(UnpackError::Unsupported(reason)) => return Ok(Err(reason)),
            Err(UnpackError::Corrupt(reason)) => {
                return Err(KernelError::Payload {
                    path: self.path.to_owned(),
                    format,
                    reason,
                });
            }
        };
        if !unpacked.starts_with(&elf::MAGIC) {
            return Ok(Err("it is not an ELF file".to_owned()));
        }
        let len = unpacked.len() as u64;
        let source = Source::Bytes(Arc::new(unpacked));
        // Relocations for the decompressor may follow the ELF file; its headers don't refer to
        // them.
        match ElfImage::parse(&source, len) {
            Ok(image) if matches!(image.entry, EntryPoint::Pvh(_)) => {
                Ok(Ok(Kernel::elf(self.path, &image, source)))
            }
            Ok(_) => Ok(Err("it has no PVH entry".to_owned())),
            Err(error) => Ok(Err(error.at(self.path, len).to_string())),
        }
    }

    /// Returns the kernel that was made from another file with the same bytes; otherwise the cache
    /// that does not have it.
    fn find_copy(
        &self,
        cache: Cache,
        bytes: &Arc<Vec<u8>>,
    ) -> Result<Kernel, (Cache, OriginalFile)> {
        if !cache.may_hold(self.len) {
            return Err((cache, OriginalFile::Bytes(Arc::clone(bytes))));
        }
        let content = FileContent::of(bytes);
        cache
            .find_content(&content, &self.file, &self.stamp)
            .and_then(flat::from_cache)
            .map(|placement| Kernel::flat(self.path, placement))
            .ok_or((cache, OriginalFile::Hashed(content)))
    }

    /// Returns the kernel in `flat`. It is to be saved in `missing`, the cache that does not have
    /// it.
    fn flat(self, flat: FlatImage, missing: Option<(Cache, OriginalFile)>) -> Kernel {
        let mut kernel = Kernel::flat(self.path, flat.placement());
        kernel.unsaved = missing.map(|(cache, original)| Unsaved {
            path: self.path.to_owned(),
            file: self.file,
            stamp: self.stamp,
            cache,
            content: UnsavedContent::Image { original, flat },
        });
        kernel
    }

    fn read_all(&self) -> Result<Vec<u8>, KernelError> {
        let mut bytes = vec![0; usize::try_from(self.len).unwrap_or(usize::MAX)];
        std::os::unix::fs::FileExt::read_exact_at(&self.file, &mut bytes, 0)
            .map_err(|source| io_error(self.path, "read", source))?;
        Ok(bytes)
    }
}

/// Returns a guess at what a file is that is not a kernel.
fn describe(head: &[u8]) -> &'static str {
    const KNOWN: [(&[u8], &str); 7] = [
        (
            b"\x1f\x8b",
            "gzip-compressed data; unpack it first, or give it as initrd",
        ),
        (
            b"\x28\xb5\x2f\xfd",
            "zstd-compressed data; unpack it first, or give it as initrd",
        ),
        (
            b"\xfd7zXZ",
            "xz-compressed data; unpack it first, or give it as initrd",
        ),
        (b"0707", "a cpio archive; that is an initrd"),
        (b"QFI\xfb", "a qcow2 disk image"),
        (b"!<arch>", "an archive or Debian package"),
        (b"#!", "a script"),
    ];
    KNOWN
        .iter()
        .find(|(magic, _)| head.starts_with(magic))
        .map_or("unknown format", |(_, name)| name)
}

fn io_error(path: &Path, operation: &'static str, source: io::Error) -> KernelError {
    KernelError::Io {
        path: path.to_owned(),
        operation,
        source,
    }
}

/// Opens a regular file. Does not wait for a writer if it is a FIFO.
fn open_regular(path: &Path) -> Result<File, KernelError> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nonblocking)
        .open(path)
        .map_err(|source| io_error(path, "open", source))?;
    Ok(file)
}

fn check_regular(path: &Path, metadata: &std::fs::Metadata) -> Result<(), KernelError> {
    let kind = metadata.file_type();
    let what = match kind {
        _ if kind.is_file() && metadata.len() == 0 => {
            return Err(KernelError::Empty {
                path: path.to_owned(),
            });
        }
        _ if kind.is_file() => return Ok(()),
        _ if kind.is_dir() => "a directory",
        _ if kind.is_fifo() => "a pipe",
        _ if kind.is_block_device() || kind.is_char_device() => "a device",
        _ => "a special file",
    };
    Err(KernelError::NotAFile {
        path: path.to_owned(),
        what,
    })
}

#[cfg(test)]
pub(crate) mod tests;
