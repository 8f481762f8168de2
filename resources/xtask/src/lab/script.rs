//! Process 1 of the lab: a shell script, with the command that it starts.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result};

use crate::host;

/// Returns the path of the script that is process 1.
pub(crate) fn init(dir: &Path) -> PathBuf {
    dir.join("init")
}

/// Returns the last heartbeat, as the lab's time in seconds. A clock that stands still is no
/// progress: guests would wait for it forever.
pub(crate) fn heartbeat(dir: &Path) -> Option<u64> {
    number(&dir.join("beat"))
}

/// Returns the command's exit status, once it has ended.
pub(crate) fn status(dir: &Path) -> Option<i32> {
    number(&dir.join("status"))
}

/// Reads a number from a file. It ends with a newline, so that a partial write is not mistaken for
/// it.
fn number<T: FromStr>(path: &Path) -> Option<T> {
    let text = fs::read_to_string(path).ok()?;
    text.strip_suffix('\n')?.parse().ok()
}

/// Writes process 1 and the command, with this process's environment and working directory. Each
/// module is followed by its parameters.
pub(crate) fn write(
    dir: &Path,
    busybox: &Path,
    modules: &[(PathBuf, &str)],
    command: &[OsString],
    interactive: bool,
) -> Result<()> {
    let put = |name: &Path, text: &[u8]| -> Result<()> {
        fs::write(name, text)
            .and_then(|()| fs::set_permissions(name, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {}", name.display()))
    };
    put(
        &init(dir),
        process_one(dir, busybox, modules, interactive).as_bytes(),
    )?;
    put(&dir.join("command"), &command_script(command)?)
}

fn process_one(
    dir: &Path,
    busybox: &Path,
    modules: &[(PathBuf, &str)],
    interactive: bool,
) -> String {
    let busybox = busybox.display();
    let dir = dir.display();
    let load: String = modules
        .iter()
        .map(|(path, parameters)| {
            let path = path.display();
            format!("bb insmod {path} {parameters} || lost {path}\n")
        })
        .collect();
    let start = if interactive {
        let size = rustix::termios::tcgetwinsize(std::io::stdout());
        let size = size.map_or_else(
            |_| String::new(),
            |size| format!("rows {} cols {}", size.ws_row, size.ws_col),
        );
        format!(
            "bb stty {size} </dev/hvc0\nbb setsid -c /bin/sh {dir}/command <>/dev/hvc0 >&0 2>&1"
        )
    } else {
        format!("/bin/sh {dir}/command <$(port in) >$(port out) 2>$(port err)")
    };
    format!(
        r#"#!{busybox} sh
bb() {{ {busybox} "$@"; }}
bb mount -t proc proc /proc
bb mount -t sysfs sysfs /sys
bb mount -t devtmpfs devtmpfs /dev 2>/dev/null
bb mkdir -p /dev/pts /dev/shm
bb mount -t devpts devpts /dev/pts
bb mount -t tmpfs -o mode=1777 tmpfs /dev/shm
bb mount -t tracefs tracefs /sys/kernel/tracing
bb ln -sf /proc/self/fd /dev/fd
bb ln -sf /proc/self/fd/0 /dev/stdin
bb ln -sf /proc/self/fd/1 /dev/stdout
bb ln -sf /proc/self/fd/2 /dev/stderr
bb hostname lab
bb ip link set lo up
# Without one of its modules the lab is of no use; its console is shown.
lost() {{ echo "the lab cannot load $1" >/dev/console; bb poweroff -f; }}
{load}
# The device file of a virtio-serial port, by the port's name.
port() {{
  for entry in /sys/class/virtio-ports/*; do
    if [ "$(bb cat $entry/name)" = "$1" ]; then echo /dev/${{entry##*/}}; return; fi
  done
}}
# A sign of life for whoever waits outside: the emulator hangs now and then.
while :; do bb date +%s >{dir}/beat; bb sleep 10; done &
{start}
code=$?
bb sync
echo $code >{dir}/status
bb poweroff -f
"#
    )
}

/// Returns the environment, the working directory and the command, quoted for the host's own shell:
/// busybox's would run its applets instead of the host's programs.
fn command_script(command: &[OsString]) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    for (name, value) in std::env::vars_os() {
        if !is_shell_name(&name) {
            continue;
        }
        text.extend(b"export ");
        text.extend(name.as_bytes());
        text.push(b'=');
        quote(&value, &mut text);
        text.push(b'\n');
    }
    text.extend(format!("export {}=1\n", host::IN_LAB).as_bytes());
    let cwd = std::env::current_dir().context("the current directory is gone")?;
    text.extend(b"cd ");
    quote(cwd.as_os_str(), &mut text);
    text.extend(b" || exit 126\nexec");
    for word in command {
        text.push(b' ');
        quote(word, &mut text);
    }
    text.push(b'\n');
    Ok(text)
}

fn is_shell_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    bytes
        .first()
        .is_some_and(|first| first.is_ascii_alphabetic() || *first == b'_')
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}

fn quote(word: &OsStr, text: &mut Vec<u8>) {
    text.push(b'\'');
    for &byte in word.as_bytes() {
        match byte {
            b'\'' => text.extend(b"'\\''"),
            other => text.push(other),
        }
    }
    text.push(b'\'');
}

#[cfg(test)]
mod tests;
