//! The cache of external assets: Debian packages, which are unpacked and never installed.
//!
//! An asset is a directory that appears complete, by a rename, or not at all. The second run needs
//! no network.

pub(crate) mod suites;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cleanup::Scratch;
use crate::host;
use crate::progress::Step;

/// The cache directory.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Opens `$XDG_CACHE_HOME/splitring`, or `~/.cache/splitring`.
    pub(crate) fn open() -> Result<Self> {
        let base = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .filter(|dir| dir.is_absolute())
            .or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
            .context("no cache directory: neither XDG_CACHE_HOME nor HOME is set")?;
        let dir = base.join("splitring");
        fs::create_dir_all(&dir)
            .with_context(|| format!("cannot make the cache directory {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// Creates a scratch directory for one run, on the cache's file system.
    pub(crate) fn scratch(&self, prefix: &str) -> Result<Scratch> {
        Scratch::new(&self.dir.join("run"), prefix)
    }

    /// Returns the directory of the asset `name`. If there is none, `build` makes it in a scratch
    /// directory, with "`what`" as the progress message.
    pub(crate) fn asset(
        &self,
        name: &str,
        what: &str,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let place = self.dir.join(name);
        if place.exists() {
            return Ok(place);
        }
        let lock_path = self.dir.join("lock");
        let lock = File::create(&lock_path)
            .with_context(|| format!("cannot create {}", lock_path.display()))?;
        let _step = Step::start(what);
        lock.lock()
            .with_context(|| format!("cannot lock {}", lock_path.display()))?;
        if place.exists() {
            return Ok(place);
        }
        let scratch = self.scratch("build-")?;
        let made = scratch.path().join("asset");
        fs::create_dir(&made).context("cannot make a directory in the cache")?;
        build(&made).with_context(|| format!("{what} failed"))?;
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent).context("cannot make a directory in the cache")?;
        }
        fs::rename(&made, &place)
            .with_context(|| format!("cannot move an asset to {}", place.display()))?;
        Ok(place)
    }

    /// Returns the asset `name` in the version `key`, and deletes versions that have not been used
    /// for a long time. Other working copies of the project may still use other versions.
    pub(crate) fn versioned(
        &self,
        name: &str,
        key: &str,
        what: &str,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let versions = self.dir.join(name);
        let fresh = !versions.join(key).exists();
        let place = self.asset(&format!("{name}/{key}"), what, build)?;
        if fresh {
            for entry in fs::read_dir(&versions)?.filter_map(Result::ok) {
                if entry.path() != place && is_old(&entry) {
                    // Another user may own it; it only costs space.
                    drop(fs::remove_dir_all(entry.path()));
                }
            }
        }
        Ok(place)
    }

    /// Returns the files of the Debian package `package`, or of the one package that it depends on.
    pub(crate) fn package(&self, package: &str) -> Result<PathBuf> {
        let what = format!("fetching the Debian package {package}");
        self.asset(&format!("packages/{package}"), &what, |into| {
            let scratch = self.scratch("apt-")?;
            let archive = self.download(package, scratch.path())?;
            unpack(&archive, into)
        })
    }

    /// Returns the directory `name` with the files of Debian packages from `suite`. The system's
    /// own sources need not name the suite: it is read from the same mirror, with package lists in
    /// the cache.
    pub(crate) fn packages_from(
        &self,
        suite: &str,
        name: &str,
        packages: &[&str],
    ) -> Result<PathBuf> {
        let what = format!("fetching {name} from {suite}");
        self.asset(&format!("packages/{suite}/{name}"), &what, |into| {
            let lists = self.dir.join("apt").join(suite);
            fs::create_dir_all(lists.join("lists/partial"))
                .context("cannot make apt's directory")?;
            let sources = lists.join("sources.list");
            fs::write(&sources, suites::source(suite)?)
                .with_context(|| format!("cannot write {}", sources.display()))?;
            let apt = Apt {
                lists: Some(lists),
                sources: Some(sources),
            };
            run(apt.command("apt-get").arg("update"))
                .with_context(|| format!("cannot read the package lists of {suite}"))?;
            for package in packages {
                let scratch = self.scratch("apt-")?;
                let archive = apt.download(package, scratch.path())?;
                unpack(&archive, into)?;
            }
            Ok(())
        })
    }

    /// Downloads `package`, with the system's package lists if they have it, otherwise with fresh
    /// ones.
    fn download(&self, package: &str, into: &Path) -> Result<PathBuf> {
        let system = Apt {
            lists: None,
            sources: None,
        };
        if let Ok(archive) = system.download(package, into) {
            return Ok(archive);
        }
        let lists = self.dir.join("apt");
        fs::create_dir_all(lists.join("lists/partial")).context("cannot make apt's directory")?;
        let own = Apt {
            lists: Some(lists),
            sources: None,
        };
        run(own.command("apt-get").arg("update")).context("cannot update the package lists")?;
        own.download(package, into).with_context(|| {
            format!("cannot download the Debian package {package}; this needs Debian's package sources and the network, once")
        })
    }
}

/// Returns whether an asset was made days ago.
fn is_old(entry: &fs::DirEntry) -> bool {
    const KEPT: Duration = Duration::from_secs(3 * 24 * 3600);
    entry
        .metadata()
        .and_then(|data| data.modified())
        .is_ok_and(|made| made.elapsed().is_ok_and(|age| age > KEPT))
}

/// Options for a separate sources file: no other sources, no installed or pinned packages, and an
/// early error if the network is missing.
const OWN_SOURCES: [&str; 7] = [
    "-oDir::Etc::SourceParts=/dev/null",
    "-oDir::State::Status=/dev/null",
    "-oDir::Etc::Preferences=/dev/null",
    "-oDir::Etc::PreferencesParts=/dev/null",
    "-oAPT::Update::Error-Mode=any",
    "-oAcquire::Retries=1",
    "-oAcquire::http::Timeout=15",
];

/// apt with the system's package lists or with separate ones, which need no privilege, and with the
/// system's sources or a separate sources file.
struct Apt {
    lists: Option<PathBuf>,
    sources: Option<PathBuf>,
}

impl Apt {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        if let Some(dir) = &self.lists {
            command
                .arg("-o")
                .arg(format!("Dir::State::Lists={}", dir.join("lists").display()));
            command
                .arg("-o")
                .arg(format!("Dir::Cache={}", dir.display()));
        }
        if let Some(file) = &self.sources {
            command
                .arg("-o")
                .arg(format!("Dir::Etc::SourceList={}", file.display()))
                .args(OWN_SOURCES);
        }
        if host::is_root() {
            // Otherwise apt warns that its own user can't write to the download directory.
            command.args(["-o", "APT::Sandbox::User=root"]);
        }
        command
    }

    /// Returns the package to download. A kernel's metapackage contains only a dependency on the
    /// image.
    fn resolve(&self, package: &str) -> Result<String> {
        if !package.starts_with("linux-image-") {
            return Ok(package.to_owned());
        }
        let output = self
            .command("apt-cache")
            .args(["depends", "--important", package])
            .output()
            .context("cannot run apt-cache")?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with("linux-image-"))
            .map(str::to_owned)
            .with_context(|| format!("apt knows no package {package}"))
    }

    fn download(&self, package: &str, into: &Path) -> Result<PathBuf> {
        let image = self.resolve(package)?;
        run(self
            .command("apt-get")
            .args(["-q", "download"])
            .arg(&image)
            .current_dir(into))?;
        fs::read_dir(into)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get download {image} left no package behind"))
    }
}

/// Unpacks a package. Debian 13 has all programs and libraries below `usr`. The directory gets the
/// same layout, with links at the old paths.
fn unpack(archive: &Path, into: &Path) -> Result<()> {
    run(Command::new("dpkg").arg("-x").arg(archive).arg(into))?;
    for name in ["bin", "lib", "sbin"] {
        let (old, new) = (into.join(name), Path::new("usr").join(name));
        if !old.exists() && into.join(&new).exists() {
            symlink(&new, &old).with_context(|| format!("cannot make {}", old.display()))?;
        }
    }
    Ok(())
}

/// Runs a helper program. Its error output becomes the error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().display().to_string();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        bail!(
            "{name} failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
