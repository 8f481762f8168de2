#![expect(
    unsafe_code,
    reason = "takes over descriptors that the operator names by number"
)]
//! Takes over the descriptors that the operator names by number, once.
//!
//! The process that started the program opened them and passed them on. Each number becomes one
//! owned descriptor, so that no other part of the program can close it or reuse the number.

use std::collections::BTreeMap;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use anyhow::{anyhow, bail};
use splitring::VmConfig;

/// The first number that can be taken over: standard input, output and error are the program's own.
const FIRST: RawFd = 3;

/// Takes over the descriptors of every network card of `config`; returns them by the card's id.
///
/// # Errors
/// A number is not open, or is named twice.
pub(crate) fn take_over_net_fds(
    config: &VmConfig,
) -> anyhow::Result<BTreeMap<String, Vec<OwnedFd>>> {
    let mut taken: BTreeMap<RawFd, String> = BTreeMap::new();
    let mut nets = BTreeMap::new();
    for (id, net) in config.nets().filter(|(_, net)| !net.fd.is_empty()) {
        let mut fds = Vec::new();
        for &number in &net.fd {
            if let Some(other) = taken.insert(number, id.clone()) {
                let whose = if other == id {
                    "twice".to_owned()
                } else {
                    format!("for {other} as well")
                };
                bail!("{id}: fd {number}: named {whose}; give each queue its own descriptor");
            }
            fds.push(take(number).map_err(|why| anyhow!("{id}: fd {number}: {why}"))?);
        }
        nets.insert(id, fds);
    }
    Ok(nets)
}

fn take(number: RawFd) -> Result<OwnedFd, &'static str> {
    // SAFETY: F_GETFD only checks whether the number is open.
    if number < FIRST || unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(
            "not an open descriptor above 2; open it before the program starts, as in `3<>FILE`",
        );
    }
    // SAFETY: it is open, the operator passed its ownership to this program, and each number is
    // taken over once.
    let owned = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&owned, rustix::io::FdFlags::CLOEXEC)
        .map_err(|_| "cannot be closed on exec")?;
    Ok(owned)
}
