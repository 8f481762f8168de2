//! A command's data-out read as a list, and answers that need no disk.

use crate::device::Queue;
use crate::scsi::cdb::Command;
use crate::scsi::job::DataOut;
use crate::scsi::request::{Answer, Request};
use crate::scsi::sense::Status;
use splitring_virtio::spec::scsi::response;

/// Longest parameter list looked at; those of all commands here are shorter.
const MAX_LIST: u64 = 64 << 10;

/// The parameter list of commands that have one.
pub(super) fn parameter_list(command: &Command, request: &Request, length: u64) -> Vec<u8> {
    let has_list = matches!(
        command,
        Command::Unmap { .. } | Command::ModeSelect { .. } | Command::ReserveOut { .. }
    );
    if !has_list {
        return Vec::new();
    }
    let mut list = vec![0; usize::try_from(length.min(MAX_LIST)).unwrap_or(0)];
    request.copy(0, &mut list);
    list
}

/// Answers for the transport.
pub(super) fn refuse(queue: &mut Queue, request: Request, code: u8) {
    request.complete(queue, &Answer::Response(code), 0, false);
}

/// Answers for the device server.
pub(super) fn reply(
    queue: &mut Queue,
    request: Request,
    result: Result<Vec<u8>, Status>,
    used: u64,
    descriptors: bool,
) {
    let room = request.data_in_len();
    match result {
        Ok(data) if u64::try_from(data.len()).is_ok_and(|len| len > room) => {
            refuse(queue, request, response::OVERRUN);
        }
        Ok(data) => request.complete(
            queue,
            &Answer::Status(Status::Good, &data),
            used,
            descriptors,
        ),
        Err(status) => request.complete(queue, &Answer::Status(status, &[]), 0, descriptors),
    }
}
