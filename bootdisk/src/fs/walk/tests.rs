use std::boxed::Box;
use std::collections::BTreeMap;

use super::*;
use crate::fs::contract::{FsResult, OpenFile};

/// Paths with their link targets; a directory has none and ends in a slash.
struct Names(BTreeMap<&'static str, Option<&'static str>>);

impl Fs for Names {
    fn stat(&self, path: &str) -> FsResult<Option<Meta>> {
        let dir = std::format!("{path}/");
        let kind = if self.0.contains_key(dir.as_str()) {
            Kind::Dir
        } else {
            match self.0.get(path) {
                None => return Ok(None),
                Some(None) => Kind::File,
                Some(Some(_)) => Kind::Link,
            }
        };
        Ok(Some(Meta { kind, size: 1 }))
    }

    fn link(&self, path: &str) -> FsResult<String> {
        Ok(self.0[path].unwrap().to_string())
    }

    fn list(&self, _: &str) -> FsResult<Vec<String>> {
        Err("not needed".into())
    }

    fn open(&self, _: &str) -> FsResult<Box<dyn OpenFile>> {
        Err("not needed".into())
    }
}

fn names() -> Names {
    Names(BTreeMap::from([
        ("/boot/", None),
        ("/boot/vmlinuz-6.1", None),
        ("/vmlinuz", Some("boot/vmlinuz-6.1")),
        ("/boot/current", Some("/boot/./vmlinuz-6.1")),
        ("/boot/boot", Some(".")),
        ("/boot/up", Some("../vmlinuz")),
        ("/boot/out", Some("../../etc/shadow")),
        ("/a", Some("/b")),
        ("/b", Some("a")),
    ]))
}

fn path_of(path: &str) -> Option<String> {
    resolve(&names(), path).unwrap().map(|(path, _)| path)
}

#[test]
fn relative_and_absolute_links_lead_to_the_same_file() {
    for path in [
        "/vmlinuz",
        "vmlinuz",
        "/boot/current",
        "/boot/boot/boot//vmlinuz-6.1",
        "/boot/up",
        "/boot/../vmlinuz",
    ] {
        assert_eq!(
            path_of(path).as_deref(),
            Some("/boot/vmlinuz-6.1"),
            "{path}"
        );
    }
    assert_eq!(path_of("/").as_deref(), Some("/"));
}

#[test]
fn what_does_not_exist_is_no_error() {
    assert_eq!(path_of("/boot/initrd"), None);
    assert_eq!(path_of("/vmlinuz/x"), None);
}

#[test]
fn a_link_loop_and_a_way_out_are_errors_of_the_path() {
    for path in ["/a", "/boot/out", "/../boot", &"/x".repeat(3000)] {
        let failure = resolve(&names(), path).unwrap_err();
        assert!(matches!(failure, Failure::Path(_)), "{path}: {failure:?}");
    }
}
