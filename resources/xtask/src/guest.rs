//! Boot assets of guests in the cache: kernels with their initramfs, and root disks.
//!
//! Each is a directory named after a hash of its inputs, so that a changed script or module list
//! makes a new one.

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
/// Environment variables of the harness in the tests crate: the VMM, and the directory that
/// [`lay_out`] fills.
pub(crate) const BINARY: &str = "SPLITRING_BIN";
pub(crate) const ASSETS: &str = "SPLITRING_ASSETS";
/// The codename of Debian 12.
const SUITE: &str = "bookworm";

/// Modules that tests load themselves: a CD-ROM's file system, VLANs, a packet generator, the
/// kernel's own SCSI target.
const EXTRA_MODULES: &[&str] = &["isofs", "8021q", "pktgen", "scsi_debug"];

/// A kernel ready to boot: a directory with `vmlinuz`, `vmlinux`, `initramfs`, `release` and
/// `extra.tar`.
#[derive(Debug, Clone)]
pub(crate) struct GuestKernel {
    dir: PathBuf,
    release: String,
}

impl GuestKernel {
    /// Fetches and prepares `flavour`.
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

    /// Returns the directory with the files.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the path of one of its files.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Returns the output of `uname -r`.
    pub(crate) fn release(&self) -> &str {
        &self.release
    }
}

/// Writes the extra modules to `extra.tar`, which a guest reads from a disk; `order` lists them in
/// load order.
fn pack_extra_modules(kernel: &Kernel, into: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.arg("-cf").arg(into.join("extra.tar"));
    let mut order = String::new();
    for module in kernel.modules(EXTRA_MODULES)? {
        let (dir, name) = module
            .parent()
            .zip(module.file_name())
            .context("unexpected module name")?;
        tar.arg("-C").arg(dir).arg(name);
        order.push_str(&format!("{}\n", name.display()));
    }
    fs::write(into.join("order"), order)?;
    run(tar.arg("-C").arg(into).arg("order"))
}

/// A Debian root disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RootDisk {
    name: &'static str,
    packages: &'static str,
    size: &'static str,
}

/// The root disk of the demo, and of tests that need no tools.
pub(crate) const DEMO_ROOT: RootDisk = RootDisk {
    name: "root",
    packages: "busybox-static",
    size: "512M",
};
/// The root disk of tests that need tools.
pub(crate) const TOOLS_ROOT: RootDisk = RootDisk {
    name: "tools",
    packages: "busybox-static,e2fsprogs,ethtool,fio,iperf3,iproute2,iputils-ping,libiscsi-bin,\
               mount,nftables,sg3-utils,stress-ng,xfsprogs",
    size: "1G",
};
/// All root disks.
pub(crate) const ROOTS: [RootDisk; 2] = [DEMO_ROOT, TOOLS_ROOT];

impl RootDisk {
    /// The name that tests use.
    pub(crate) fn name(self) -> &'static str {
        self.name
    }

    /// Returns the image file; builds it if necessary. Copy it before a guest writes to it.
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
        // In a user namespace the files of an ordinary user belong to root, as they must on the
        // disk.
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

/// Makes `root.img` from `root.tar` and `overlay`; the argument is the size.
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

/// Returns a hash of all `parts`.
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

/// Copies a disk image for one guest to write to. Holes stay holes.
pub(crate) fn copy_disk(image: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp")
        .args(["--sparse=always", "--reflink=auto"])
        .arg(image)
        .arg(to))
}

/// Fills `dir` as the test harness expects it: `kernels/NAME/…` and `disks/NAME`.
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
