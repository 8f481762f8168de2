//! Checks whether a console could be opened, without opening it, which would truncate a file or
//! create a socket.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::{Access, access};

use super::error::ConsoleError;
use super::socket::bind;
use crate::config::{SerialConfig, SerialTarget};

/// Returns the error that `Console::open` would return, as far as it can be found out in advance.
pub(super) fn check(config: &SerialConfig) -> Result<(), ConsoleError> {
    match &config.target {
        SerialTarget::File(path) => writable(path).map_err(|error| ConsoleError::file(path, error)),
        SerialTarget::Socket(path) => {
            bind::check_free(path)?;
            creatable(path).map_err(|error| bind::failed(path, error))
        }
        SerialTarget::Tty | SerialTarget::Pty | SerialTarget::Null | SerialTarget::Off => Ok(()),
    }
}

/// Checks that an existing file is writable, or else its directory.
fn writable(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(found) if found.file_type().is_socket() => {
            Err(io::Error::from_raw_os_error(libc::ENXIO))
        }
        Ok(_) => Ok(access(path, Access::WRITE_OK)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => creatable(path),
        Err(error) => Err(error),
    }
}

fn creatable(path: &Path) -> io::Result<()> {
    let directory = std::path::absolute(path)?;
    let directory = directory.parent().unwrap_or(Path::new("/"));
    Ok(access(directory, Access::WRITE_OK | Access::EXEC_OK)?)
}
