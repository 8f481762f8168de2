//! Debian's stock kernels: the image, and modules in the order in which they load.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::assets::Cache;

/// A stock kernel of Debian 12.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// 6.12, cloud configuration: the demo's and the lab's.
    Cloud612,
}

impl Flavour {
    fn package(self) -> &'static str {
        match self {
            Self::Cloud612 => "linux-image-6.12-cloud-amd64",
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
    /// Gets `flavour`, from the network if need be.
    pub(crate) fn get(cache: &Cache, flavour: Flavour) -> Result<Self> {
        let root = cache.package(flavour.package())?;
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

    /// What `uname -r` says.
    pub(crate) fn release(&self) -> &str {
        &self.release
    }

    /// The compressed image as Debian ships it.
    pub(crate) fn vmlinuz(&self) -> PathBuf {
        self.root
            .join("boot")
            .join(format!("vmlinuz-{}", self.release))
    }

    /// Unpacked `.ko` files in the cache for `names` and all they depend on, dependencies first.
    /// A name that is built into this kernel must not be asked for.
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

    /// Stock kernels ship modules under xz, which a small insmod can't read.
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
            let part = plain.with_extension(format!("part{}", std::process::id()));
            fs::write(&part, image)
                .and_then(|()| fs::rename(&part, &plain))
                .with_context(|| format!("cannot write {}", plain.display()))?;
        }
        Ok(plain)
    }
}

/// Files of all modules under `dir`, by module name (with `_` for `-`, as the kernel has it).
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
            // A part file of another run.
            _ => {}
        }
    }
    if modules.is_empty() {
        bail!("no kernel module under {}", dir.display());
    }
    Ok(())
}

/// The `depends=` entry of a module's `.modinfo` section.
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
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        let image = b"\x7fELF...\0license=GPL\0depends=kvm,ccp-core\0intree=Y\0";
        assert_eq!(dependencies(image), ["kvm", "ccp_core"]);
        assert!(dependencies(b"\0depends=\0name=irqbypass\0").is_empty());
    }
}
