use super::*;

/// The instructions with some displacements.
fn instructions() -> Vec<u8> {
    INSTRUCTIONS
        .iter()
        .map(|byte| byte.unwrap_or(0x5a))
        .collect()
}

#[test]
fn the_store_is_found_only_if_it_is_there_once() {
    let code = [vec![0x90; 7], instructions(), vec![0xc3; 9]].concat();
    assert_eq!(store(&code), Some(7 + STORE));
    assert_eq!(code[7 + STORE..][..2], [0x89, 0xb3]);
    assert_eq!(store(&[code.clone(), code].concat()), None);
    assert_eq!(store(&[0x90; 100]), None);
    assert_eq!(store(&instructions()[1..]), None);
}

#[test]
fn the_first_executable_mapping_is_the_program() {
    let map = "55e0-56e0 r--p 00000000 fe:00 1 /usr/bin/qemu\n\
               56e0000-57f0000 r-xp 00100000 fe:00 1 /usr/bin/qemu\n\
               7f00000-7f10000 r-xp 00000000 fe:00 2 /lib/libc.so.6\n";
    assert_eq!(program_text(map), Some((0x056e_0000, 0x11_0000)));
    assert_eq!(program_text("55e0-56e0 rw-p 00000000 00:00 0\n"), None);
}
