//! Paths with symbolic links, resolved within one file system.

#[cfg(test)]
mod tests;

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::contract::{Fault, Fs, Kind, Meta};

/// Linux follows as many (`MAXSYMLINKS`).
const MAX_LINKS: u32 = 40;
/// Components in all, those of link targets included.
const MAX_COMPONENTS: u32 = 1024;
/// Linux's `PATH_MAX`.
const MAX_PATH: usize = 4096;

/// Why a path cannot be resolved.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The file system cannot be read.
    Fault(Fault),
    /// The path itself is at fault.
    Path(String),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Resolves `path` from the root. Returns the path without links and what is there, or nothing if
/// a component doesn't exist.
///
/// # Errors
///
/// More than 40 links, `..` at the root, or a path that is too long; a damaged file system.
pub(super) fn resolve(fs: &dyn Fs, path: &str) -> Result<Option<(String, Meta)>, Failure> {
    let bad = |cause: &str| Err(Failure::Path(cause.to_string()));
    if path.len() > MAX_PATH || path.contains('\0') {
        return bad("the path is longer than 4096 bytes or has a NUL");
    }
    let mut done: Vec<String> = Vec::new();
    let mut meta = Meta {
        kind: Kind::Dir,
        size: 0,
    };
    let mut left: Vec<String> = components(path);
    let mut links = 0u32;
    let mut steps = 0u32;
    while let Some(next) = left.pop() {
        steps = steps.saturating_add(1);
        if steps > MAX_COMPONENTS {
            return bad("the path has more than 1024 components, with those of its links");
        }
        if meta.kind != Kind::Dir {
            return Ok(None);
        }
        if next == ".." {
            if done.pop().is_none() {
                return bad("the path leaves its file system with \"..\"");
            }
            continue;
        }
        done.push(next);
        let here = joined(&done);
        let Some(found) = fs.stat(&here)? else {
            return Ok(None);
        };
        if found.kind != Kind::Link {
            meta = found;
            continue;
        }
        links = links.saturating_add(1);
        if links > MAX_LINKS {
            return bad("it follows more than 40 symbolic links: they run in circles");
        }
        if found.size > 4096 {
            return bad("the target of a symbolic link is longer than 4096 bytes");
        }
        let target = fs.link(&here)?;
        done.pop();
        if target.starts_with('/') {
            done.clear();
        }
        left.extend(components(&target));
    }
    Ok(Some((joined(&done), meta)))
}

/// The components of a path, the last one first.
fn components(path: &str) -> Vec<String> {
    path.rsplit('/')
        .filter(|name| !name.is_empty() && *name != ".")
        .map(ToString::to_string)
        .collect()
}

fn joined(components: &[String]) -> String {
    if components.is_empty() {
        return String::from("/");
    }
    let mut path = String::new();
    for name in components {
        path.push('/');
        path.push_str(name);
    }
    path
}
