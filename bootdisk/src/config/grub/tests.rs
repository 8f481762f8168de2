//! The interpreter against a disk of a few files.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::*;
use crate::config::bls;
use crate::error::Result;

/// Files by device and path; a file system for each UUID and label.
#[derive(Default)]
struct Disk {
    files: BTreeMap<(&'static str, &'static str), &'static str>,
    names: BTreeMap<&'static str, &'static str>,
    steps: Cell<u32>,
}

impl Host for Disk {
    fn step(&self) -> Result<()> {
        self.steps.set(self.steps.get() + 1);
        Ok(())
    }

    fn search(&self, key: SearchKey, value: &str) -> Result<Option<String>> {
        if key == SearchKey::File {
            let found = self.files.keys().find(|(_, path)| *path == value);
            return Ok(found.map(|(device, _)| device.to_string()));
        }
        Ok(self.names.get(value).map(ToString::to_string))
    }

    fn stat(&self, device: &str, path: &str) -> Result<Option<Option<u64>>> {
        let is_dir = self.files.keys().any(|(has, file)| {
            *has == device && file.starts_with(&format!("{}/", path.trim_end_matches('/')))
        });
        let text = self.text(device, path)?;
        Ok(text
            .map(|text| Some(text.len() as u64))
            .or(is_dir.then_some(None)))
    }

    fn text(&self, device: &str, path: &str) -> Result<Option<String>> {
        let found = self
            .files
            .iter()
            .find(|((has, file), _)| *has == device && *file == path);
        Ok(found.map(|(_, text)| text.to_string()))
    }

    fn probe(&self, device: &str, _: SearchKey) -> Option<String> {
        self.names
            .iter()
            .find(|(_, has)| **has == device)
            .map(|(name, _)| name.to_string())
    }

    fn entries(&self, _: &str, _: Option<&str>) -> Result<Vec<bls::Entry>> {
        Ok(vec![
            bls::Entry::parse("b-2.conf", "title Two\nlinux /b\noptions $kernelopts x"),
            bls::Entry::parse("a-1.conf", "title One\nlinux /a"),
        ])
    }
}

fn disk() -> Disk {
    Disk {
        files: BTreeMap::from([
            (
                ("hd0,gpt1", "/boot/grub/grubenv"),
                "# GRUB Environment Block\nsaved_entry=x y\nother=1\n###",
            ),
            (
                ("hd0,gpt1", "/boot/grub/custom.cfg"),
                "menuentry Custom { linux /c }",
            ),
            (("hd0,gpt1", "/boot/grub/empty"), ""),
            (("hd0,gpt2", "/kernel"), "k"),
        ]),
        names: BTreeMap::from([("ABCD-1234", "hd0,gpt2"), ("BOOT", "hd0,gpt2")]),
        steps: Cell::new(0),
    }
}

/// Runs a script. Returns the value of `result`.
fn result(script: &str) -> String {
    let disk = disk();
    let mut machine = Machine::new(&disk, "hd0,gpt1", "/boot/grub");
    machine
        .run(script)
        .unwrap_or_else(|stop| panic!("{script}: {stop:?}"));
    machine.variable("result").to_owned()
}

fn stop(script: &str) -> Stop {
    let disk = disk();
    let mut machine = Machine::new(&disk, "hd0,gpt1", "/boot/grub");
    machine.run(script).unwrap_err()
}

/// What the first entry of a script boots.
fn boot(script: &str) -> Boot {
    let disk = disk();
    let mut machine = Machine::new(&disk, "hd0,gpt1", "/boot/grub");
    machine.run(script).unwrap();
    machine.choose(&machine.items()[0]).unwrap()
}

#[test]
fn words_are_quoted_and_expanded_as_grub_does() {
    for (script, expected) in [
        ("set result=plain", "plain"),
        ("set result='single $x \"y\"'", "single $x \"y\""),
        ("x='a  b'; set result=\"<$x>\"", "<a  b>"),
        ("x='a b'; set result=$x", "a"),
        (r#"set result="\"\$x\\ \y""#, r#""$x\ \y"#),
        (r"set result=a\ b\$c", "a b$c"),
        ("set result=one\\\ntwo", "onetwo"),
        ("set result='it'\\''s'", "it's"),
        ("set result=\"a${none}b\"", "ab"),
        ("v=1; set result=${v}2$v", "121"),
        ("set result=a#b # comment", "a#b"),
        ("set result=$", "$"),
        ("set result=\"two\nlines\"", "two\nlines"),
        ("result=bare", "bare"),
        ("x=set; $x result=named", "named"),
        ("$none set result=kept", "kept"),
    ] {
        assert_eq!(result(script), expected, "{script}");
    }
}

#[test]
fn conditions_and_tests_decide() {
    for (condition, truth) in [
        ("true", true),
        ("false", false),
        ("! false", true),
        ("[ a = a ]", true),
        ("[ a == b ]", false),
        ("[ x$none = x ]", true),
        ("[ \"$none\" ]", false),
        ("[ ]", false),
        ("[ ! \"$none\" ]", true),
        ("[ -n a -a -z \"\" ]", true),
        ("[ -n \"\" -o -n b ]", true),
        ("[ ! -n a -o a != b ]", true),
        ("[ ( a = b -o c = c ) -a d = d ]", true),
        ("[ 10 -gt 9 ]", true),
        ("[ -3 -lt 2 ]", true),
        ("test 1 -eq 01", true),
        ("[ -f /boot/grub/custom.cfg ]", true),
        ("[ -d /boot/grub ]", true),
        ("[ -f /boot/grub ]", false),
        ("[ -e (hd0,gpt2)/kernel ]", true),
        ("[ -s $prefix/empty ]", false),
        ("[ -e /none ]", false),
        ("[ = ]", true),
        ("[ ! ]", true),
        ("keystatus --shift", false),
        ("insmod ext2", true),
        ("loadfont unicode", true),
    ] {
        let script = format!("if {condition}; then result=1; else result=0; fi");
        assert_eq!(result(&script), u8::from(truth).to_string(), "{condition}");
    }
    let script = "if false; then result=a; elif true; then result=b; else result=c; fi";
    assert_eq!(result(script), "b");
}

#[test]
fn loops_functions_and_parameters_work() {
    for (script, expected) in [
        ("for i in a b c; do result=$result$i; done", "abc"),
        ("x='1 2'; for i in $x 3; do result=$i$result; done", "321"),
        (
            "while [ \"$result\" != aaa ]; do result=a$result; done",
            "aaa",
        ),
        ("until [ x$result = xbb ]; do result=b$result; done", "bb"),
        (
            "for i in a b c; do if [ $i = b ]; then continue; fi; result=$result$i; done",
            "ac",
        ),
        (
            "for i in a b; do for j in 1 2; do result=$result$i$j; break 2; done; done",
            "a1",
        ),
        (
            "function f { result=\"$1-$2-$#-$*\"; }; f a 'b c'",
            "a-b c-2-a b c",
        ),
        (
            "function f { return 1; result=no; }; if f; then result=a; else result=b; fi",
            "b",
        ),
        ("function f\n{\nshift\nresult=$1\n}\nf a b", "b"),
        ("false; result=$?", "1"),
        ("eval 'result=evaluated'", "evaluated"),
        ("setparams a b; result=$2", "b"),
        ("set result=1; unset result", ""),
    ] {
        assert_eq!(result(script), expected, "{script}");
    }
}

#[test]
fn the_disk_is_searched_and_read() {
    for (script, expected) in [
        ("search --no-floppy --fs-uuid --set=result abcd-1234", ""),
        (
            "search --no-floppy --fs-uuid --set=result --hint-bios=hd0,gpt9 ABCD-1234",
            "hd0,gpt2",
        ),
        ("search --set=result --label BOOT", "hd0,gpt2"),
        ("search -f /kernel -s; result=$root", "hd0,gpt2"),
        ("search.fs_uuid ABCD-1234 result hd1,gpt2", "hd0,gpt2"),
        ("search.file /kernel result", "hd0,gpt2"),
        (
            "if search --fs-uuid none; then result=1; else result=0; fi",
            "0",
        ),
        ("load_env; result=\"$saved_entry\"", "x y"),
        ("load_env other; result=$saved_entry$other", "1"),
        ("load_env -f /boot/grub/none; result=$?", "1"),
        ("probe --set=result --fs-uuid (hd0,gpt2)", "ABCD-1234"),
        ("probe -s result -u $root; result=$result", ""),
    ] {
        // UUIDs are compared by the host.
        assert_eq!(result(script), expected, "{script}");
    }
}

#[test]
fn menus_have_ids_titles_and_submenus() {
    let script = "menuentry_id_option=--id\nmenuentry 'A (1)' --class a --class os $menuentry_id_option 'id-a' {\n\
                  linux /k1 ro\n}\nsubmenu \"More\" --id more { menuentry B { linux /k2 } ; menuentry C {\n}\n}\n\
                  menuentry D --unrestricted --hotkey=d x y { linux /$2 }\nblscfg\nsource $prefix/custom.cfg";
    let disk = disk();
    let mut machine = Machine::new(&disk, "hd0,gpt1", "/boot/grub");
    machine.run(script).unwrap();
    let names: Vec<_> = machine
        .items()
        .iter()
        .map(|item| (&*item.id, &*item.title))
        .collect();
    let expected = [
        ("id-a", "A (1)"),
        ("more", "More"),
        ("D", "D"),
        ("b-2", "Two"),
        ("a-1", "One"),
        ("Custom", "Custom"),
    ];
    assert_eq!(names, expected);
    let [first, more, last, entry, ..] = machine.items() else {
        panic!("six items")
    };
    let kernel = |item| machine.choose(item).unwrap().kernel.unwrap().path;
    assert_eq!(kernel(first), "/k1");
    assert_eq!(kernel(last), "/y");
    assert!(more.is_submenu());
    assert!(entry.entry().is_some());
    let inner = machine.open(more).unwrap();
    let inner: Vec<_> = inner.items().iter().map(|item| item.id.clone()).collect();
    assert_eq!(inner, ["B", "C"]);
}

#[test]
fn an_entry_loads_kernel_ramdisks_and_arguments() {
    let boot = boot(
        "opts='ro quiet'; menuentry x { search --set=root --label BOOT\nlinuxefi /vmlinuz root=LABEL=a $opts \"b c\"\n\
         initrd (hd0,gpt1)/ucode /initrd $tuned_initrd }",
    );
    let kernel = boot.kernel.unwrap();
    assert_eq!((&*kernel.device, &*kernel.path), ("hd0,gpt2", "/vmlinuz"));
    assert_eq!(boot.arguments, ["root=LABEL=a", "ro", "quiet", "b c"]);
    let initrds: Vec<_> = boot
        .initrds
        .iter()
        .map(|named| (&*named.device, &*named.path))
        .collect();
    assert_eq!(initrds, [("hd0,gpt1", "/ucode"), ("hd0,gpt2", "/initrd")]);
}

#[test]
fn another_configuration_takes_the_menu_s_place() {
    let disk = disk();
    let mut machine = Machine::new(&disk, "hd0,gpt1", "/boot/grub");
    machine
        .run("menuentry A { }\nconfigfile /boot/grub/custom.cfg\nmenuentry B { }")
        .unwrap();
    let ids: Vec<_> = machine.items().iter().map(|item| &*item.id).collect();
    assert_eq!(ids, ["Custom"]);
    assert_eq!(result("configfile /none; result=on"), "on");
}

#[test]
fn a_script_that_does_not_end_is_stopped() {
    for script in [
        "while true; do true; done",
        "while true; do done",
        "until false; do done",
        "function f { f; }; f",
        "function f { f; f; }; function g { f; g; }; while true; do g; done",
        "function f { eval 'f'; }; f",
        "x=aaaaaaaaaaaaaaaa; while true; do x=$x$x; done",
        "x=aaaaaaaaaaaaaaaa; for i in 1 2 3 4 5 6 7 8 9 10 11; do x=\"$x$x\"; done; for a in 1 2 3 4 5 6 7 8 9; do \
         for b in 1 2 3 4 5 6 7 8 9; do y$a$b=\"$x\"; done; done",
        "while true; do menuentry a { }; done",
        "x='a a a a a a a a'; while true; do x=\"$x $x\"; for i in $x; do for j in $x; do true; done; done; done",
    ] {
        assert!(matches!(stop(script), Stop::Endless(_)), "{script}");
    }
}

#[test]
fn a_menu_entry_that_does_not_end_is_stopped_too() {
    let disk = disk();
    let mut machine = Machine::new(&disk, "hd0,gpt1", "/boot/grub");
    machine
        .run("menuentry a { while true; do true; done }")
        .unwrap();
    let stop = machine.choose(&machine.items()[0]).unwrap_err();
    assert!(matches!(stop, Stop::Endless(_)));
}

#[test]
fn what_cannot_be_parsed_is_malformed() {
    let deep = "if true; then ".repeat(100);
    for script in [
        "if true; then",
        "if true; fi",
        "while true; done",
        "for x; do done",
        "menuentry a {",
        "}",
        "function { }",
        "function f",
        "if true; then }; fi",
        &"{".repeat(200),
        &"! ".repeat(200),
        &deep,
    ] {
        assert!(matches!(stop(script), Stop::Malformed(_)), "{script}");
    }
}

#[test]
fn deeply_nested_tests_end() {
    let script = format!("[ {} ]", "( ".repeat(500));
    assert!(matches!(stop(&script), Stop::Endless(_)));
    assert_eq!(result(&format!("[ {} ]; result=1", "! ".repeat(500))), "1");
}
