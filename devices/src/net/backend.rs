//! Opens what a network card's keys name.

use std::sync::Arc;

use super::config::{NetConfig, NetConfigError};
use super::passt::{Passt, PasstError};
use super::port::NetBackend;
use super::tap::{self, Tap, TapError};

/// Why a network card's backend can't be had.
#[derive(Debug, thiserror::Error)]
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
}

/// Opens the backend that `config` names. Everything that needs a path, a privilege or a new process happens here.
pub fn open(config: &NetConfig) -> Result<Arc<dyn NetBackend>, NetError> {
    config.validate()?;
    if let Some(name) = &config.tap {
        return Ok(Arc::new(Tap::open(name, config.pairs())?));
    }
    if let (true, Some(fd)) = (config.passt, config.fd.first()) {
        return Ok(Arc::new(Passt::from_fd(tap::inherited(*fd)?)?));
    }
    if !config.fd.is_empty() {
        let fds = config
            .fd
            .iter()
            .map(|fd| tap::inherited(*fd))
            .collect::<Result<_, _>>()?;
        return Ok(Arc::new(Tap::from_fds(fds)?));
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
