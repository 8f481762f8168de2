//! Opens what a network card's keys name.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::config::{NetConfig, NetConfigError};
use super::passt::{Passt, PasstError};
use super::port::{FramePort, NetBackend, Offloads};
use super::tap::{Tap, TapError};
use super::vhost::{Vhost, VhostError};
use crate::kind::ErrorKind;

/// Why a network card's backend can't be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The keys contradict themselves.
    #[error(transparent)]
    Config(#[from] NetConfigError),
    /// The TAP interface.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// passt.
    #[error(transparent)]
    Passt(#[from] PasstError),
    /// vhost-net.
    #[error(transparent)]
    Vhost(#[from] VhostError),
    /// Descriptors were named by number and not handed over.
    #[error(
        "fd= names descriptors by number; a library user hands them over with ResourceOptions::net_fds"
    )]
    Numbers,
    /// Not one socket.
    #[error("{0} descriptors for passt; give one connected stream socket")]
    Sockets(usize),
}

impl NetError {
    /// Returns what kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Config(_) | Self::Numbers | Self::Sockets(_) => ErrorKind::Config,
            Self::Tap(_) | Self::Passt(_) => ErrorKind::Network,
            Self::Vhost(error) => error.kind(),
        }
    }
}

/// Opens the backend that `config` names. Everything that needs a path, a privilege or a new process happens here.
/// `vhost` are descriptors of `/dev/vhost-net`, one per queue pair, for a card with `vhost=on`; none, and they are opened.
///
/// # Errors
/// What is wrong with the keys, the interface, vhost-net or passt; or the keys name descriptors by number, which
/// only [`from_fds`] can use.
pub fn open(config: &NetConfig, vhost: Vec<OwnedFd>) -> Result<Arc<dyn NetBackend>, NetError> {
    config.validate()?;
    if let Some(name) = &config.tap {
        return tap_backend(config, Tap::open(name, config.pairs())?, vhost);
    }
    if !config.fd.is_empty() {
        return Err(NetError::Numbers);
    }
    let passt = match &config.socket {
        Some(path) => Passt::connect(path)?,
        None => {
            let forwards = [("-t", &config.tcp), ("-u", &config.udp)];
            let given = forwards
                .iter()
                .filter_map(|(option, ports)| Some((*option, (*ports).clone()?)));
            Passt::spawn(&given.collect::<Vec<_>>())?
        }
    };
    Ok(Arc::new(passt))
}

/// Uses descriptors that somebody else opened: TAP queues, one per queue pair, or with `passt` in
/// `config` one connected stream socket. `vhost` as for [`open`].
///
/// # Errors
/// One of them is not what it should be, or there are too few or too many.
pub fn from_fds(
    config: &NetConfig,
    fds: Vec<OwnedFd>,
    vhost: Vec<OwnedFd>,
) -> Result<Arc<dyn NetBackend>, NetError> {
    if !config.passt {
        return tap_backend(config, Tap::from_fds(fds)?, vhost);
    }
    match <[OwnedFd; 1]>::try_from(fds) {
        Ok([socket]) => Ok(Arc::new(Passt::from_fd(socket)?)),
        Err(fds) => Err(NetError::Sockets(fds.len())),
    }
}

/// `tap` with ports, or with the kernel's devices instead.
fn tap_backend(
    config: &NetConfig,
    tap: Tap,
    vhost: Vec<OwnedFd>,
) -> Result<Arc<dyn NetBackend>, NetError> {
    if !config.vhost {
        return Ok(Arc::new(tap));
    }
    let vhost = Vhost::open(tap.max_pairs(), vhost)?;
    let (tap, queues) = tap.into_queues();
    Ok(Arc::new(KernelTap { tap, queues, vhost }))
}

/// A TAP interface whose frames the kernel moves.
struct KernelTap {
    tap: Tap,
    queues: Vec<Arc<File>>,
    vhost: Vhost,
}

impl NetBackend for KernelTap {
    fn offloads(&self) -> Offloads {
        self.tap.offloads()
    }

    fn max_pairs(&self) -> u16 {
        self.tap.max_pairs()
    }

    fn open_port(&self, _: u16) -> io::Result<Box<dyn FramePort>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn vhost(&self) -> Option<(&Vhost, &[Arc<File>])> {
        Some((&self.vhost, &self.queues))
    }

    fn interface(&self) -> Option<&str> {
        self.tap.interface()
    }

    fn set_guest_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.tap.set_guest_offloads(offloads)
    }

    fn set_pairs(&self, pairs: u16) -> io::Result<()> {
        self.tap.set_pairs(pairs)
    }
}
