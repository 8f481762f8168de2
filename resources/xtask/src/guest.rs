//! What guests boot from, ready in the cache: kernels with their initramfs, and root disks.
//!
//! Each is a directory named after a hash of all that went into it, so that a changed script or
//! module list makes a new one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::assets::{Cache, run};
use crate::host;
use crate::initramfs;
use crate::kernel::{Flavour, Kernel, extract_vmlinux};
use crate::tools;

const ROOT_INIT: &str = include_str!("../../rootfs/init");
const ROOT_SESSION: &str = include_str!("../../rootfs/session");
/// What the harness of the tests crate reads from the environment: the VMM, and the directory that
/// [`lay_out`] fills.
pub(crate) const BINARY: &str = "SPLITRING_BIN";
pub(crate) const ASSETS: &str = "SPLITRING_ASSETS";
/// Debian's name for its release 12.
const SUITE: &str = "bookworm";

/// Modules a test may load by itself: a CD-ROM's file system, tagged VLANs, a packet generator, the kernel's own SCSI
/// target.
const EXTRA_MODULES: &[&str] = &["isofs", "8021q", "pktgen", "scsi_debug"];

/// A kernel ready to boot: `vmlinuz`, `vmlinux`, `initramfs`, `release` and `extra.tar` in one directory.
#[derive(Debug, Clone)]
pub(crate) struct GuestKernel {
    dir: PathBuf,
    release: String,
}

impl GuestKernel {
    /// Gets and prepares `flavour`.
    pub(crate) fn get(cache: &Cache, flavour: Flavour) -> Result<Self> {
        let kernel = Kernel::get(cache, flavour)?;
        let busybox = cache.package("busybox-static")?.join("bin/busybox");
        let modules = [initramfs::MODULES, EXTRA_MODULES].concat().join(" ");
        let key = key(&[
            kernel.release(),
            initramfs::INIT,
            initramfs::CONSOLE,
            &modules,
        ]);
        let name = format!("kernels/{}", flavour.name());
        let what = format!("preparing the {} kernel", flavour.name());
        let dir = cache.versioned(&name, &key, &what, |into| {
            let image = fs::read(kernel.vmlinuz()).context("cannot read the kernel")?;
            fs::write(into.join("vmlinux"), extract_vmlinux(&image)?)?;
            fs::write(into.join("vmlinuz"), image)?;
            let archive = initramfs::build(&kernel, &busybox, initramfs::MODULES)?;
            fs::write(into.join("initramfs"), archive)?;
            fs::write(into.join("release"), kernel.release())?;
            pack_extra_modules(&kernel, into)
        })?;
        Ok(Self {
            dir,
            release: kernel.release().to_owned(),
        })
    }

    /// The directory with the files.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file of it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What `uname -r` says.
    pub(crate) fn release(&self) -> &str {
        &self.release
    }
}

/// Puts the extra modules into `extra.tar`, which a guest reads from a disk; `order` says how they load.
fn pack_extra_modules(kernel: &Kernel, into: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.arg("-cf").arg(into.join("extra.tar"));
    let mut order = String::new();
    for module in kernel.modules(EXTRA_MODULES)? {
        let (dir, name) = module
            .parent()
            .zip(module.file_name())
            .context("odd module name")?;
        tar.arg("-C").arg(dir).arg(name);
        order.push_str(&format!("{}\n", name.display()));
    }
    fs::write(into.join("order"), order)?;
    run(tar.arg("-C").arg(into).arg("order"))
}

/// A root disk with Debian on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RootDisk {
    name: &'static str,
    packages: &'static str,
    size: &'static str,
}

/// The demo's, and for tests that need no tools.
pub(crate) const DEMO_ROOT: RootDisk = RootDisk {
    name: "root",
    packages: "busybox-static",
    size: "512M",
};
/// For tests that drive devices hard.
pub(crate) const TOOLS_ROOT: RootDisk = RootDisk {
    name: "tools",
    packages: "busybox-static,e2fsprogs,ethtool,fio,iperf3,iproute2,iputils-ping,libiscsi-bin,\
               mount,nftables,sg3-utils,stress-ng,xfsprogs",
    size: "1G",
};
/// Both.
pub(crate) const ROOTS: [RootDisk; 2] = [DEMO_ROOT, TOOLS_ROOT];

impl RootDisk {
    /// What tests call it.
    pub(crate) fn name(self) -> &'static str {
        self.name
    }

    /// The image file, built if need be. It must be copied before a guest writes to it.
    pub(crate) fn get(self, cache: &Cache, yes: bool) -> Result<PathBuf> {
        let parts = [
            self.packages,
            self.size,
            ROOT_INIT,
            ROOT_SESSION,
            initramfs::CONSOLE,
            SUITE,
            MAKE_DISK,
        ];
        let name = format!("disks/{}", self.name);
        let what = format!("building the Debian disk {}", self.name);
        let dir = cache.versioned(&name, &key(&parts), &what, |into| {
            let mut needed = vec![tools::MMDEBSTRAP, tools::MKE2FS];
            if !host::is_root() {
                needed.push(tools::NEWUIDMAP);
            }
            tools::ensure(&needed, "the root disk", yes)?;
            self.build(into)
        })?;
        Ok(dir.join("root.img"))
    }

    fn build(self, into: &Path) -> Result<()> {
        let tar = into.join("root.tar");
        run(Command::new("mmdebstrap")
            .args(["--quiet", "--variant=essential"])
            .arg(format!("--include={}", self.packages))
            .arg("--dpkgopt=path-exclude=/usr/share/doc/*")
            .arg("--dpkgopt=path-exclude=/usr/share/man/*")
            .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
            .args([SUITE.as_ref(), tar.as_os_str()]))?;
        let overlay = into.join("overlay");
        fs::create_dir(&overlay)?;
        fs::write(overlay.join("init"), ROOT_INIT)?;
        fs::write(overlay.join("session"), ROOT_SESSION)?;
        fs::write(overlay.join("console"), initramfs::CONSOLE)?;
        // In a user namespace an ordinary user's files are root's, as they must be on the disk.
        let mut shell = if host::is_root() {
            Command::new("sh")
        } else {
            Command::new("unshare")
        };
        if !host::is_root() {
            shell.args(["--map-root-user", "sh"]);
        }
        run(shell
            .args(["-e", "-c", MAKE_DISK, "sh", self.size])
            .current_dir(into))
    }
}

/// From `root.tar` and `overlay` to `root.img`; the size is its argument.
const MAKE_DISK: &str = r#"
mkdir root
tar -x -f root.tar -C root --exclude='./dev/*' --no-same-owner
# The essential packages hold no mount, ip or poweroff: busybox stands in for what is missing.
for applet in $(root/bin/busybox --list); do
  for dir in bin sbin usr/bin usr/sbin; do
    if [ -e "root/$dir/$applet" ] || [ -L "root/$dir/$applet" ]; then continue 2; fi
  done
  ln -s busybox "root/bin/$applet"
done
install -m 755 overlay/init root/sbin/init
install -m 644 overlay/session overlay/console root/etc
/sbin/mke2fs -q -t ext4 -d root -L root root.img "$1"
rm -rf root root.tar overlay
"#;

/// A name for everything in `parts`.
fn key(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Copies a disk image for one guest to write to, holes staying holes.
pub(crate) fn copy_disk(image: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp")
        .args(["--sparse=always", "--reflink=auto"])
        .arg(image)
        .arg(to))
}

/// The directory the harness expects: `kernels/NAME/…` and `disks/NAME`.
pub(crate) fn lay_out(cache: &Cache, dir: &Path, yes: bool) -> Result<()> {
    let link = |to: &Path, from: PathBuf| -> Result<()> {
        symlink(to, &from).with_context(|| format!("cannot make {}", from.display()))
    };
    fs::create_dir(dir.join("kernels")).context("cannot make a directory")?;
    fs::create_dir(dir.join("disks")).context("cannot make a directory")?;
    for flavour in Flavour::ALL {
        let kernel = GuestKernel::get(cache, flavour)?;
        link(kernel.dir(), dir.join("kernels").join(flavour.name()))?;
    }
    for disk in ROOTS {
        link(&disk.get(cache, yes)?, dir.join("disks").join(disk.name()))?;
    }
    Ok(())
}
