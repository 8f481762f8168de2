//! Opens what a network card's keys name.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::config::{NetConfig, NetConfigError};
use super::passt::{Passt, PasstError};
use super::port::NetBackend;
use super::tap::{Tap, TapError};
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
        }
    }
}

/// Opens the backend that `config` names. Everything that needs a path, a privilege or a new process happens here.
///
/// # Errors
/// What is wrong with the keys, the interface or passt; or the keys name descriptors by number, which
/// only [`from_fds`] can use.
pub fn open(config: &NetConfig) -> Result<Arc<dyn NetBackend>, NetError> {
    config.validate()?;
    if let Some(name) = &config.tap {
        return Ok(Arc::new(Tap::open(name, config.pairs())?));
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
/// `config` one connected stream socket.
///
/// # Errors
/// One of them is not what it should be, or there are too few or too many.
pub fn from_fds(config: &NetConfig, fds: Vec<OwnedFd>) -> Result<Arc<dyn NetBackend>, NetError> {
    if !config.passt {
        return Ok(Arc::new(Tap::from_fds(fds)?));
    }
    match <[OwnedFd; 1]>::try_from(fds) {
        Ok([socket]) => Ok(Arc::new(Passt::from_fd(socket)?)),
        Err(fds) => Err(NetError::Sockets(fds.len())),
    }
}
