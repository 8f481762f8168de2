//! A user without privileges, and the files that Splitring needs for that user.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::assets::{self, Disk, Image, Kernel};

/// `nobody`, who owns no files.
pub const UID: u32 = 65534;

/// Prepares a mount namespace as root and changes to the user. The devices have the permissions
/// that udev gives them on a desktop, and the name server is the test's. The arguments are the
/// directory, the network namespace, and the command to run.
const BECOME: &str = r#"
set -e
dir=$1; net=$2; shift 2
mount -t tmpfs none "$dir/dev"
mknod -m 666 "$dir/dev/kvm" c 10 232
mknod -m 666 "$dir/dev/tun" c 10 200
mount --bind "$dir/dev/kvm" /dev/kvm
mount --bind "$dir/dev/tun" /dev/net/tun
if [ -e "$dir/resolv.conf" ]; then mount --bind "$dir/resolv.conf" /etc/resolv.conf; fi
cd "$dir"
exec nsenter --net="$net" setpriv --reuid=65534 --regid=65534 --clear-groups \
  --inh-caps=-all --ambient-caps=-all --bounding-set=-all -- "$@"
"#;

/// An ordinary user with an empty capability bounding set, and a directory with the binary and a
/// kernel.
#[derive(Debug)]
pub struct User {
    home: TempDir,
}

impl User {
    /// Creates the directory.
    pub fn new() -> Self {
        let home = TempDir::new_in("/dev/shm").expect("a directory in memory");
        fs::create_dir(home.path().join("dev")).expect("a directory");
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o777)).expect("ours");
        let user = Self { home };
        user.give(&assets::binary(), "splitring");
        let kernel = Kernel::named("6.12-cloud");
        user.give(&kernel.image(Image::Vmlinux), "vmlinux");
        user.give(&kernel.initramfs(), "initramfs");
        user
    }

    /// Copies `file` to `name` in the user's directory.
    fn give(&self, file: &Path, name: &str) {
        let to = self.path(name);
        fs::copy(file, &to).unwrap_or_else(|why| panic!("cannot copy {}: {why}", file.display()));
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).expect("ours");
    }

    /// Makes the user the owner of a disk.
    pub fn own(&self, disk: &Disk) {
        let dir = disk.path().parent().expect("a directory");
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("ours");
        std::os::unix::fs::chown(disk.path(), Some(UID), Some(UID)).expect("we are root");
    }

    /// Returns the path of `name` in the user's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Sets the user's name servers.
    pub fn name_servers(&self, addresses: &[&str]) {
        let lines: String = addresses
            .iter()
            .map(|address| format!("nameserver {address}\n"))
            .collect();
        fs::write(self.path("resolv.conf"), lines).expect("a file in memory");
    }

    /// Returns the words before a command that make the user run it, in the network namespace at
    /// `net`.
    pub fn prefix(&self, net: &Path) -> Vec<OsString> {
        let words = ["unshare", "--mount", "sh", "-c", BECOME, "sh"];
        let mut words: Vec<OsString> = words.iter().map(OsString::from).collect();
        words.push(self.home.path().into());
        words.push(net.into());
        words
    }
}

impl Default for User {
    fn default() -> Self {
        Self::new()
    }
}
