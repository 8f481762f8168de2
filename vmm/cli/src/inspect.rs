//! `splitring inspect`: what is on a disk image and what it would boot, for people and programs.
//!
//! The image is read, never written, and nothing of it is run. Its names may be anything: control
//! characters in them do not reach the terminal.

use std::fmt::{Display, Write};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, anyhow};
use splitring_bootdisk::{
    BootInfo, Budget, Choice, EntryInfo, FileInfo, Listing, PartitionInfo, ReadAt, ReadFault,
    Survey, TableKind,
};

use crate::args::InspectArgs;
use crate::exit::Failure;
use crate::streams::print;

/// A raw image or a block device.
struct RawImage {
    file: File,
    size: u64,
}

impl RawImage {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let name = path.display();
        let open = || -> std::io::Result<Self> {
            let mut file = File::open(path)?;
            let size = file.seek(SeekFrom::End(0))?;
            Ok(Self { file, size })
        };
        let image = open().with_context(|| format!("cannot open the disk image {name}"))?;
        let mut head = [0; 8];
        let known = image.file.read_exact_at(&mut head, 0).is_ok();
        let format = match head {
            [b'Q', b'F', b'I', 0xfb, ..] => "qcow2",
            _ if head == *b"vhdxfile" => "VHDX",
            _ => return Ok(image),
        };
        debug_assert!(known);
        Err(anyhow!(
            "cannot inspect the disk image {name}: its format is {format}, and only raw images are read; convert it \
             with qemu-img convert -O raw"
        ))
    }
}

impl ReadAt for RawImage {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFault> {
        let read = self.file.read_exact_at(buf, offset);
        read.map_err(|error| ReadFault(error.to_string()))
    }
}

/// Exit code 0 if the image has something to boot.
pub(crate) fn inspect(args: &InspectArgs) -> Result<u8, Failure> {
    let name = args.image.display();
    let image = RawImage::open(&args.image)?;
    let mut choice = Choice::new();
    if let Some(entry) = &args.entry {
        choice = choice.entry(entry);
    }
    let survey = Survey::new(image, Budget::new());
    let listing = survey
        .and_then(|survey| survey.listing(&choice))
        .with_context(|| format!("cannot inspect the disk image {name}"))?;
    let text = if args.json {
        serde_json::to_string_pretty(&listing)? + "\n"
    } else {
        for_people(&listing)?
    };
    print(&text)?;
    Ok(u8::from(listing.boots.is_none()))
}

/// Text of an image, without control characters.
fn plain(text: impl Display) -> String {
    let text = text.to_string();
    text.chars()
        .map(|c| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

fn for_people(listing: &Listing) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    let table = match listing.table {
        TableKind::Gpt => "GPT",
        TableKind::GptBackup => "GPT (the primary table is damaged; the backup is used)",
        TableKind::Mbr => "MBR",
        _ => "no partition table",
    };
    writeln!(text, "{}, {table}", size(listing.size))?;
    for partition in &listing.partitions {
        self::partition(&mut text, partition)?;
    }
    for (number, entry) in listing.entries.iter().enumerate() {
        self::entry(&mut text, number, entry)?;
    }
    if let Some(boots) = &listing.boots {
        self::boots(&mut text, boots)?;
    }
    if let Some(problem) = &listing.problem {
        writeln!(text, "\nboots nothing: {}", plain(&problem.message))?;
    }
    Ok(text)
}

fn partition(text: &mut String, partition: &PartitionInfo) -> std::fmt::Result {
    let place = match partition.number {
        0 => "whole disk".to_owned(),
        number => format!("partition {number}"),
    };
    write!(text, "{place:<13} {:>9}  ", size(partition.size))?;
    if let Some(found) = &partition.file_system {
        write!(text, "{}", found.kind)?;
        for (key, value) in [("UUID", &found.uuid), ("label", &found.label)] {
            if let Some(value) = value {
                write!(text, " {key}={}", plain(value))?;
            }
        }
    } else {
        write!(text, "{}", partition.content.as_deref().unwrap_or("-"))?;
    }
    if let Some(name) = &partition.name {
        write!(text, " \"{}\"", plain(name))?;
    }
    writeln!(text)?;
    if let Some(problem) = &partition.problem {
        writeln!(text, "    {}", plain(&problem.message))?;
    }
    Ok(())
}

fn entry(text: &mut String, number: usize, entry: &EntryInfo) -> std::fmt::Result {
    writeln!(text, "\nentry {number}: {}", plain(&entry.title))?;
    writeln!(text, "    id       {}", plain(&entry.id))?;
    writeln!(text, "    from     {}", plain(&entry.found_in))?;
    writeln!(text, "    cmdline  {}", plain(&entry.command_line))?;
    if let Some(problem) = &entry.problem {
        writeln!(text, "    problem  {}", plain(&problem.message))?;
    }
    Ok(())
}

fn boots(text: &mut String, boots: &BootInfo) -> std::fmt::Result {
    writeln!(text, "\nboots: {}", plain(&boots.title))?;
    let mut file = |what: &str, file: &FileInfo| {
        let place = match file.partition {
            0 => "the whole disk".to_owned(),
            number => format!("partition {number}"),
        };
        let path = plain(&file.path);
        writeln!(text, "    {what:<8} {path} on {place}, {}", size(file.size))
    };
    file("kernel", &boots.kernel)?;
    for initrd in &boots.initrds {
        file("initrd", initrd)?;
    }
    writeln!(text, "    cmdline  {}", plain(&boots.command_line))
}

/// A size in the largest unit of which there are ten.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes;
    let mut units = UNITS.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    for next in units {
        if value < 10 << 10 {
            break;
        }
        value >>= 10;
        unit = next;
    }
    format!("{value} {unit}")
}
