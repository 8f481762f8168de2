//! Disk images from the tools that make them, without root.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};
use splitring_bootdisk::{BootFile, Budget, Choice, Plan, ReadAt, ReadFault, Survey};
use splitring_needs as needs;
use tempfile::TempDir;

pub(crate) const MIB: u64 = 1 << 20;

/// Bytes that look like a kernel's: the same ones for the same seed.
pub(crate) fn random(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub(crate) fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The whole contents, read in pieces.
pub(crate) fn contents(file: &BootFile) -> Vec<u8> {
    let open = file.open().unwrap();
    let mut bytes = vec![0; usize::try_from(file.size()).unwrap()];
    for (index, piece) in bytes.chunks_mut(300_001).enumerate() {
        open.read_at(index as u64 * 300_001, piece).unwrap();
    }
    assert!(
        open.read_at(file.size(), &mut [0]).is_err(),
        "nothing is behind the end"
    );
    bytes
}

/// Files and symbolic links.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tree(BTreeMap<String, Node>);

#[derive(Debug, Clone)]
enum Node {
    File(Vec<u8>),
    Link(String),
    /// Zeros, of which none are stored.
    Hole(u64),
}

impl Tree {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn file(mut self, path: &str, contents: impl Into<Vec<u8>>) -> Self {
        self.0.insert(path.to_owned(), Node::File(contents.into()));
        self
    }

    pub(crate) fn link(mut self, path: &str, target: &str) -> Self {
        self.0
            .insert(path.to_owned(), Node::Link(target.to_owned()));
        self
    }

    pub(crate) fn hole(mut self, path: &str, size: u64) -> Self {
        self.0.insert(path.to_owned(), Node::Hole(size));
        self
    }

    fn write(&self, root: &Path) {
        for (path, node) in &self.0 {
            let path = root.join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match node {
                Node::File(bytes) => fs::write(path, bytes).unwrap(),
                Node::Link(target) => symlink(target, path).unwrap(),
                Node::Hole(size) => File::create(path).unwrap().set_len(*size).unwrap(),
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fs {
    Fat12,
    Fat16,
    Fat32,
    Ext2,
    Ext4,
    /// Without checksums, so that damage reaches the reader.
    Ext4Unchecked,
    Xfs,
    /// The same: version 4.
    XfsUnchecked,
    Btrfs,
    Iso,
}

/// A file system to make.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) fs: Fs,
    pub(crate) tree: Tree,
    /// As sfdisk calls it.
    pub(crate) kind: &'static str,
    pub(crate) label: &'static str,
    pub(crate) uuid: &'static str,
}

/// What every file system has unless it is told.
pub(crate) const UUID: &str = "01234567-89ab-cdef-0123-456789abcdef";

impl Part {
    pub(crate) fn new(fs: Fs, tree: Tree) -> Self {
        Self {
            fs,
            tree,
            kind: "linux",
            label: "",
            uuid: UUID,
        }
    }

    pub(crate) fn esp(tree: Tree) -> Self {
        Self {
            kind: "uefi",
            ..Self::new(Fs::Fat32, tree)
        }
    }

    pub(crate) fn kind(self, kind: &'static str) -> Self {
        Self { kind, ..self }
    }

    pub(crate) fn label(self, label: &'static str) -> Self {
        Self { label, ..self }
    }

    pub(crate) fn uuid(self, uuid: &'static str) -> Self {
        Self { uuid, ..self }
    }

    fn size(&self) -> u64 {
        match self.fs {
            Fs::Fat12 => 8 * MIB,
            Fs::Fat16 | Fs::Ext2 | Fs::Ext4 | Fs::Ext4Unchecked | Fs::Iso => 32 * MIB,
            Fs::Fat32 => 40 * MIB,
            // The least that the tools make.
            Fs::Xfs | Fs::XfsUnchecked => 300 * MIB,
            Fs::Btrfs => 112 * MIB,
        }
    }

    /// Makes the file system; nothing if the tools are missing.
    pub(crate) fn make(&self) -> Option<File> {
        let present = match self.fs {
            Fs::Fat12 | Fs::Fat16 | Fs::Fat32 => needs::program("mformat", "mtools"),
            Fs::Ext2 | Fs::Ext4 | Fs::Ext4Unchecked => needs::program("/sbin/mke2fs", "e2fsprogs"),
            Fs::Xfs | Fs::XfsUnchecked => needs::program("/sbin/mkfs.xfs", "xfsprogs"),
            Fs::Btrfs => needs::program("/sbin/mkfs.btrfs", "btrfs-progs"),
            Fs::Iso => needs::program("genisoimage", "genisoimage"),
        };
        present.then(|| self.build())
    }

    fn build(&self) -> File {
        let dir = TempDir::new().unwrap();
        let (root, image) = (dir.path().join("root"), dir.path().join("image"));
        fs::create_dir(&root).unwrap();
        self.tree.write(&root);
        let file = File::create(&image).unwrap();
        file.set_len(self.size()).unwrap();
        let (root, path) = (root.to_str().unwrap(), image.to_str().unwrap());
        match self.fs {
            Fs::Fat12 | Fs::Fat16 | Fs::Fat32 => self.fat(root, path),
            Fs::Ext2 => self.ext("ext2", root, path),
            Fs::Ext4 => self.ext("ext4", root, path),
            Fs::Ext4Unchecked => self.ext("ext4", root, path),
            Fs::Xfs | Fs::XfsUnchecked => {
                let proto = dir.path().join("proto");
                fs::write(&proto, prototype(Path::new(root))).unwrap();
                let old = if self.fs == Fs::XfsUnchecked {
                    "crc=0,"
                } else {
                    ""
                };
                let uuid = format!("{old}uuid={}", self.uuid);
                let proto = proto.to_str().unwrap();
                run(
                    "/sbin/mkfs.xfs",
                    &["-q", "-m", &uuid, "-L", self.label, "-p", proto, path],
                );
            }
            Fs::Btrfs => run(
                "/sbin/mkfs.btrfs",
                &[
                    "-q",
                    "-M",
                    "-U",
                    self.uuid,
                    "-L",
                    self.label,
                    "--rootdir",
                    root,
                    path,
                ],
            ),
            Fs::Iso => run(
                "genisoimage",
                &["-quiet", "-R", "-V", self.label, "-o", path, root],
            ),
        }
        File::open(&image).unwrap()
    }

    fn ext(&self, kind: &str, root: &str, path: &str) {
        let unchecked = self.fs == Fs::Ext4Unchecked;
        let features: &[&str] = if unchecked {
            &["-O", "^metadata_csum"]
        } else {
            &[]
        };
        let fixed = [
            "-q", "-F", "-t", kind, "-U", self.uuid, "-L", self.label, "-d", root,
        ];
        run("/sbin/mke2fs", &[&fixed, features, &[path]].concat());
    }

    fn fat(&self, root: &str, path: &str) {
        // Tools refuse some combinations of size and width; this is how many sectors a cluster has.
        let shape: &[&str] = match self.fs {
            Fs::Fat12 => &["-c", "8"],
            Fs::Fat16 => &["-c", "4"],
            _ => &["-F", "-c", "1"],
        };
        let sectors = (self.size() / 512).to_string();
        let serial = &self.uuid[..9].replace('-', "");
        let label = if self.label.is_empty() {
            "NONAME"
        } else {
            self.label
        };
        let fixed = ["-i", path, "-T", &sectors, "-N", &serial[..8], "-v", label];
        run("mformat", &[&fixed, shape, &["::"]].concat());
        for entry in fs::read_dir(root).unwrap() {
            let entry = entry.unwrap().path();
            run(
                "mcopy",
                &["-i", path, "-s", "-Q", entry.to_str().unwrap(), "::"],
            );
        }
    }
}

/// A directory in mkfs.xfs's own language.
fn prototype(root: &Path) -> String {
    fn dir(path: &Path, out: &mut String) {
        let mut entries: Vec<_> = fs::read_dir(path).unwrap().map(Result::unwrap).collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (name, path) = (entry.file_name().into_string().unwrap(), entry.path());
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                *out += &format!("{name} d--755 0 0\n");
                dir(&path, out);
                *out += "$\n";
            } else if kind.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                *out += &format!("{name} l--777 0 0 {}\n", target.display());
            } else {
                *out += &format!("{name} ---644 0 0 {}\n", path.display());
            }
        }
    }
    let mut out = String::from("/dev/null\n0 0\nd--755 0 0\n");
    dir(root, &mut out);
    out + "$\n"
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .env("MTOOLS_SKIP_CHECK", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {message}"
    );
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    Gpt,
    Mbr,
    None,
}

/// A disk put together from a partition table and file systems.
#[derive(Debug)]
pub(crate) struct Disk {
    size: u64,
    parts: Vec<(u64, u64, File)>,
    /// The table's sectors, over everything else.
    base: File,
}

impl Disk {
    /// Makes a disk; nothing if the tools are missing. Without a table there is one part.
    pub(crate) fn new(table: Table, parts: &[Part]) -> Option<Self> {
        let files: Option<Vec<File>> = parts.iter().map(Part::make).collect();
        Self::of(table, parts, files?)
    }

    /// Puts file systems that have been made onto a disk.
    pub(crate) fn of(table: Table, parts: &[Part], files: Vec<File>) -> Option<Self> {
        let mut at = if table == Table::None { 0 } else { MIB };
        let mut script = format!(
            "label: {}\n",
            if table == Table::Gpt { "gpt" } else { "dos" }
        );
        let mut placed = Vec::new();
        for (number, (part, file)) in parts.iter().zip(files).enumerate() {
            let size = part.size();
            let kind = part.kind;
            script += &format!(
                "{}: start={}, size={}, type={kind}\n",
                number + 1,
                at / 512,
                size / 512
            );
            placed.push((at, size, file));
            at += size;
        }
        let size = if table == Table::None { at } else { at + MIB };
        let base = tempfile::NamedTempFile::new().unwrap();
        base.as_file().set_len(size).unwrap();
        if table != Table::None {
            if !needs::program("/sbin/sfdisk", "fdisk") {
                return None;
            }
            let mut child = Command::new("/sbin/sfdisk")
                .args(["-q", base.path().to_str().unwrap()])
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            child
                .stdin
                .take()
                .unwrap()
                .write_all(script.as_bytes())
                .unwrap();
            assert!(child.wait().unwrap().success(), "{script}");
        }
        Some(Self {
            size,
            parts: placed,
            base: base.reopen().unwrap(),
        })
    }

    /// All its bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.size).unwrap()];
        self.read_at(0, &mut bytes).unwrap();
        bytes
    }
}

impl ReadAt for Disk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFault> {
        let fault = |error: std::io::Error| ReadFault(error.to_string());
        if offset + buf.len() as u64 > self.size {
            return Err(ReadFault("behind the end".into()));
        }
        self.base.read_exact_at(buf, offset).map_err(fault)?;
        let end = offset + buf.len() as u64;
        for (start, size, file) in &self.parts {
            let (from, to) = (offset.max(*start), end.min(start + size));
            if from < to {
                let piece = &mut buf[(from - offset) as usize..(to - offset) as usize];
                // What a tool left out at the end is zero.
                let mut done = 0;
                while done < piece.len() {
                    let read = file.read_at(&mut piece[done..], from - start + done as u64);
                    match read.map_err(fault)? {
                        0 => break,
                        count => done += count,
                    }
                }
            }
        }
        Ok(())
    }
}

pub(crate) fn survey(disk: Disk) -> Survey {
    Survey::new(disk, Budget::new()).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn plan(survey: &Survey) -> Plan {
    survey
        .plan(&Choice::new())
        .unwrap_or_else(|error| panic!("{error}"))
}

/// A unified kernel image.
pub(crate) fn uki(sections: &[(&str, &[u8])]) -> Vec<u8> {
    const OPTIONAL: usize = 0xf0;
    let mut image = vec![0; 0x40];
    image[..2].copy_from_slice(b"MZ");
    image[0x3c] = 0x40;
    image.extend_from_slice(b"PE\0\0\x64\x86");
    image.extend_from_slice(&u16::try_from(sections.len()).unwrap().to_le_bytes());
    image.extend_from_slice(&[0; 12]);
    image.extend_from_slice(&u16::try_from(OPTIONAL).unwrap().to_le_bytes());
    image.extend_from_slice(&[0; 2 + OPTIONAL]);
    let mut at = (image.len() + sections.len() * 40).next_multiple_of(512);
    for (name, data) in sections {
        let padded = data.len().next_multiple_of(512);
        let mut header = [0; 40];
        header[..name.len()].copy_from_slice(name.as_bytes());
        let number = |value: usize| u32::try_from(value).unwrap().to_le_bytes();
        header[8..12].copy_from_slice(&number(data.len()));
        header[16..20].copy_from_slice(&number(padded));
        header[20..24].copy_from_slice(&number(at));
        image.extend_from_slice(&header);
        at += padded;
    }
    for (_, data) in sections {
        image.resize(image.len().next_multiple_of(512), 0);
        image.extend_from_slice(data);
    }
    image.resize(at, 0);
    image
}
