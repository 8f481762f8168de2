//! Debian's stock kernels: the image, and the modules in load order.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::assets::{Cache, suites};

/// A stock kernel of Debian 12, or of Debian 13 if that is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// 6.12, cloud configuration: for the demo and the lab.
    Cloud612,
    /// 6.1, cloud configuration: the default of Debian 12.
    Cloud61,
    /// 6.12, the configuration for all hardware: most drivers and ext4 are modules.
    Generic612,
}

impl Flavour {
    /// All of them, starting with the demo's.
    pub(crate) const ALL: [Self; 3] = [Self::Cloud612, Self::Cloud61, Self::Generic612];

    /// The package in Debian 12's sources.
    fn package(self) -> &'static str {
        match self {
            Self::Cloud612 => "linux-image-6.12-cloud-amd64",
            Self::Cloud61 => "linux-image-cloud-amd64",
            Self::Generic612 => "linux-image-6.12-amd64",
        }
    }

    /// Suite and package on a system whose sources have no kernels of Debian 12: 6.12 is the
    /// default of Debian 13.
    fn elsewhere(self) -> (&'static str, &'static str) {
        match self {
            Self::Cloud612 => ("trixie", "linux-image-cloud-amd64"),
            Self::Cloud61 => ("bookworm", "linux-image-cloud-amd64"),
            Self::Generic612 => ("trixie", "linux-image-amd64"),
        }
    }

    /// The name for tests and messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cloud612 => "6.12-cloud",
            Self::Cloud61 => "6.1-cloud",
            Self::Generic612 => "6.12-generic",
        }
    }
}

/// A kernel in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    root: PathBuf,
    release: String,
    modules: HashMap<String, PathBuf>,
}

impl Kernel {
    /// Gets `flavour`; fetches it if necessary.
    pub(crate) fn get(cache: &Cache, flavour: Flavour) -> Result<Self> {
        let root = match suites::release() {
            Some(release) if release.codename != "bookworm" => {
                let (suite, package) = flavour.elsewhere();
                cache.packages_from(suite, package, &[package])?
            }
            _ => cache.package(flavour.package())?,
        };
        let boot = root.join("boot");
        let release = fs::read_dir(&boot)
            .with_context(|| format!("cannot list {}", boot.display()))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .find_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned))
            .with_context(|| format!("no vmlinuz in {}", boot.display()))?;
        let mut modules = HashMap::new();
        collect(
            &root.join("lib/modules").join(&release).join("kernel"),
            &mut modules,
        )?;
        Ok(Self {
            root,
            release,
            modules,
        })
    }

    /// Returns the output of `uname -r`.
    pub(crate) fn release(&self) -> &str {
        &self.release
    }

    /// Returns the compressed image as Debian ships it.
    pub(crate) fn vmlinuz(&self) -> PathBuf {
        self.root
            .join("boot")
            .join(format!("vmlinuz-{}", self.release))
    }

    /// Returns whether `name` is a module of this kernel, instead of built in or absent.
    pub(crate) fn has_module(&self, name: &str) -> bool {
        self.modules.contains_key(name)
    }

    /// Returns unpacked `.ko` files in the cache for `names` and all of their dependencies,
    /// dependencies first. No name may be built into this kernel (see [`Self::has_module`]).
    pub(crate) fn modules(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut order = Vec::new();
        for name in names {
            self.visit(name, &mut order)?;
        }
        Ok(order)
    }

    fn visit(&self, name: &str, order: &mut Vec<PathBuf>) -> Result<()> {
        let unpacked = self.unpack(name)?;
        if order.contains(&unpacked) {
            return Ok(());
        }
        let image =
            fs::read(&unpacked).with_context(|| format!("cannot read {}", unpacked.display()))?;
        for dependency in dependencies(&image) {
            self.visit(&dependency, order)?;
        }
        order.push(unpacked);
        Ok(())
    }

    /// Unpacks a module. Stock kernels compress modules with xz, which busybox's insmod can't read.
    fn unpack(&self, name: &str) -> Result<PathBuf> {
        let packed = self
            .modules
            .get(name)
            .with_context(|| format!("kernel {} has no module {name}", self.release))?;
        if packed
            .extension()
            .is_some_and(|extension| extension == "ko")
        {
            return Ok(packed.clone());
        }
        let plain = packed.with_extension("");
        if !plain.exists() {
            let file = fs::File::open(packed)
                .with_context(|| format!("cannot open {}", packed.display()))?;
            let mut image = Vec::new();
            liblzma::read::XzDecoder::new(file)
                .read_to_end(&mut image)
                .with_context(|| format!("cannot unpack {}", packed.display()))?;
            // Two labs that start at the same time may both do this.
            let dir = plain.parent().unwrap_or(Path::new("."));
            tempfile::NamedTempFile::new_in(dir)
                .and_then(|mut part| part.write_all(&image).map(|()| part))
                .and_then(|part| Ok(part.persist(&plain)?))
                .with_context(|| format!("cannot write {}", plain.display()))?;
        }
        Ok(plain)
    }
}

/// Extracts the ELF image from a bzImage. It is found by the setup header (Linux boot protocol
/// 2.08) and compressed as Debian does it: in legacy LZ4 frames or with zstd.
pub(crate) fn extract_vmlinux(bzimage: &[u8]) -> Result<Vec<u8>> {
    const SECTOR: usize = 512;
    const DEFAULT_SETUP_SECTORS: u8 = 4;
    const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
    const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
    let field = |at: usize| -> Result<usize> {
        let bytes = bzimage.get(at..at + 4).context("the image is truncated")?;
        Ok(usize::try_from(u32::from_le_bytes(bytes.try_into()?))?)
    };
    if bzimage.get(0x202..0x206) != Some(b"HdrS") {
        bail!("not a bzImage");
    }
    let setup = bzimage
        .get(0x1f1)
        .copied()
        .filter(|&n| n != 0)
        .unwrap_or(DEFAULT_SETUP_SECTORS);
    let start = (usize::from(setup) + 1) * SECTOR + field(0x248)?;
    let payload = bzimage
        .get(start..start + field(0x24c)?)
        .context("the payload is truncated")?;
    // The last four bytes are the unpacked size, for the kernel's own decompressor.
    let body = payload
        .get(4..payload.len().saturating_sub(4))
        .context("the payload is empty")?;
    match payload.get(..4).unwrap_or_default() {
        magic if magic == LZ4_LEGACY => unpack_lz4(body),
        magic if magic == ZSTD => {
            let mut image = Vec::new();
            zstd::Decoder::new(payload)?
                .single_frame()
                .read_to_end(&mut image)?;
            Ok(image)
        }
        other => bail!("unknown payload format {other:02x?}"),
    }
}

/// Unpacks blocks of at most 8 MiB, each preceded by its compressed size.
fn unpack_lz4(mut blocks: &[u8]) -> Result<Vec<u8>> {
    const BLOCK: usize = 8 << 20;
    let mut image = Vec::new();
    while let Some((size, rest)) = blocks.split_first_chunk::<4>() {
        let size = usize::try_from(u32::from_le_bytes(*size))?;
        let (block, rest) = rest
            .split_at_checked(size)
            .context("an LZ4 block is truncated")?;
        image.extend(lz4_flex::block::decompress(block, BLOCK)?);
        blocks = rest;
    }
    Ok(image)
}

/// Collects the files of all modules below `dir`, by module name (with `_` instead of `-`, as in
/// the kernel).
fn collect(dir: &Path, modules: &mut HashMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, modules)?;
            continue;
        }
        let Some(file) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let Some((name, suffix)) = file.split_once(".ko") else {
            continue;
        };
        match suffix {
            "" => drop(modules.entry(name.replace('-', "_")).or_insert(path)),
            ".xz" => drop(modules.insert(name.replace('-', "_"), path)),
            _ => {}
        }
    }
    if modules.is_empty() {
        bail!("no kernel module under {}", dir.display());
    }
    Ok(())
}

/// Returns the `depends=` entry of a module's `.modinfo` section.
fn dependencies(image: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = image.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = image.get(at + KEY.len()..).unwrap_or_default();
    let end = value
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default())
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests;
