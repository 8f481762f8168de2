#![expect(unsafe_code, reason = "memfd_create and madvise")]
//! Guest memory: host mappings behind guest-physical ranges, private or shared, on ordinary or huge pages.
//!
//! Knows neither KVM nor where the ranges come from.

mod live;

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;

use splitring_devices::dirty::DirtyPages;
use splitring_devices::ram::Region;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
};

use crate::config::MemoryConfig;

pub(crate) use live::{LiveError, LiveMemory};
pub(crate) use splitring_devices::ram::Mapping as GuestMemory;

const HUGE_PAGE: u64 = 2 << 20;

/// Guest memory that other processes can map, such as a device's backend of its own.
#[derive(Debug)]
#[non_exhaustive]
pub struct SharedMemory {
    /// Guest-physical address of the first byte.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    /// The memory, as a file.
    pub file: OwnedFd,
    /// Where it begins in the file.
    pub offset: u64,
}

/// The ranges of `memory` that have a file behind them.
pub(crate) fn shared(memory: &GuestMemory) -> io::Result<Vec<SharedMemory>> {
    let ranges = memory.iter().filter_map(|region| {
        let file = region.file_offset()?;
        Some(file.file().try_clone().map(|copy| SharedMemory {
            guest: region.start_addr().0,
            size: region.len(),
            file: copy.into(),
            offset: file.start(),
        }))
    });
    ranges.collect()
}

/// Why guest memory can't be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    /// mmap refused.
    #[error("memory: cannot map {mib} MiB{kind}: {error}; {remedy}")]
    Map {
        /// Its size.
        mib: u64,
        /// " of huge pages" or nothing.
        kind: &'static str,
        /// Of the system.
        error: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// memfd_create or ftruncate refused.
    #[error("memory: cannot create {mib} MiB of shared memory: {error}; {remedy}", remedy = shared_remedy(error))]
    Shared {
        /// Its size.
        mib: u64,
        /// Of the system.
        error: io::Error,
    },
    /// A bug in the address map.
    #[error("memory: {0}")]
    Layout(String),
}

/// Maps host memory for each of `ranges` (guest address, bytes), which don't overlap.
pub(crate) fn create(
    ranges: &[(u64, u64)],
    config: &MemoryConfig,
) -> Result<GuestMemory, MemoryError> {
    let total = ranges.iter().map(|(_, len)| len).sum();
    let shared = config
        .shared
        .then(|| shared_file(total, config.hugepages))
        .transpose()?;
    let mut regions = Vec::new();
    let mut offset = 0;
    for &(guest, len) in ranges {
        let file = match &shared {
            Some(file) => {
                let file = file
                    .try_clone()
                    .map_err(|error| shared_error(total, error))?;
                Some(FileOffset::new(file, offset))
            }
            None => None,
        };
        offset += len;
        regions.push(Arc::new(region(guest, len, file, config.hugepages)?));
    }
    GuestMemoryMmap::from_arc_regions(regions)
        .map_err(|error| MemoryError::Layout(error.to_string()))
}

fn region(
    guest: u64,
    len: u64,
    file: Option<FileOffset>,
    hugepages: bool,
) -> Result<Region, MemoryError> {
    let size = usize::try_from(len).map_err(|_| too_large(len))?;
    let private = file.is_none();
    let mut flags = if private {
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS
    } else {
        libc::MAP_SHARED
    };
    if !hugepages {
        flags |= libc::MAP_NORESERVE;
    } else if private {
        flags |= libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
    }
    // Without MAP_NORESERVE the kernel sets huge pages aside for the whole mapping, a shared one, too, or refuses. So
    // pages that are not there fail here, and not as SIGBUS in the middle of a guest, which would end every machine of
    // the process.
    let mut builder = MmapRegionBuilder::new_with_bitmap(size, DirtyPages::new(size))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(flags)
        .with_hugetlbfs(hugepages);
    if let Some(file) = file {
        builder = builder.with_file_offset(file);
    }
    let region = builder
        .build()
        .map_err(|error| map_error(len, hugepages, error))?;
    if private && !hugepages {
        // Fewer nested page faults, and fewer entries to walk. A kernel without transparent huge pages answers EINVAL; ordinary pages do.
        // SAFETY: the range is the mapping just made.
        let _ = unsafe { libc::madvise(region.as_ptr().cast(), size, libc::MADV_HUGEPAGE) };
    }
    GuestRegionMmap::new(region, GuestAddress(guest))
        .ok_or_else(|| MemoryError::Layout(format!("the range at {guest:#x} wraps around")))
}

fn too_large(len: u64) -> MemoryError {
    MemoryError::Map {
        mib: len >> 20,
        kind: "",
        error: io::Error::from_raw_os_error(libc::ENOMEM),
        remedy: "ask for less memory",
    }
}

fn map_error(len: u64, hugepages: bool, error: MmapRegionError) -> MemoryError {
    let error = match error {
        MmapRegionError::Mmap(error) => error,
        other => return MemoryError::Layout(other.to_string()),
    };
    let (kind, remedy) = if hugepages {
        (
            " of huge pages",
            "reserve them in /proc/sys/vm/nr_hugepages (2 MiB each)",
        )
    } else {
        (
            "",
            "ask for less memory, or raise the limit on address space (ulimit -v) or vm.overcommit_memory",
        )
    };
    MemoryError::Map {
        mib: len >> 20,
        kind,
        error,
        remedy,
    }
}

/// What may help where no memfd is to be had.
fn shared_remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::ENODEV | libc::ENOSYS) => {
            "this kernel has no such memory: leave hugepages=on out, or shared=on"
        }
        Some(libc::EFBIG) => "raise the limit on the size of files (`ulimit -f`)",
        _ => "raise the limit on open files (`ulimit -n`), or free memory on the host",
    }
}

fn shared_error(total: u64, error: io::Error) -> MemoryError {
    MemoryError::Shared {
        mib: total >> 20,
        error,
    }
}

/// A memfd of `total` bytes, so that another process can be given the same memory.
fn shared_file(total: u64, hugepages: bool) -> Result<File, MemoryError> {
    let mut flags = libc::MFD_CLOEXEC;
    if hugepages {
        flags |= libc::MFD_HUGETLB | libc::MFD_HUGE_2MB;
    }
    // SAFETY: the name is a C string; the result is checked.
    let fd = unsafe { libc::memfd_create(c"guest-memory".as_ptr(), flags) };
    if fd < 0 {
        return Err(shared_error(total, io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is new and nobody else's.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let len = total.next_multiple_of(if hugepages { HUGE_PAGE } else { 1 });
    file.set_len(len)
        .map_err(|error| shared_error(total, error))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_is_one_file_over_all_ranges() {
        let config = MemoryConfig {
            shared: true,
            ..Default::default()
        };
        let memory = create(&[(0, 1 << 20), (1 << 32, 1 << 20)], &config).expect("memory");
        let offsets: Vec<_> = memory
            .iter()
            .map(|region| region.file_offset().map(FileOffset::start))
            .collect();
        assert_eq!(offsets, [Some(0), Some(1 << 20)]);
    }
}
