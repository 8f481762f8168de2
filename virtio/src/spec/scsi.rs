//! SCSI host device (section 5.6).

use zerocopy::little_endian::{U16, U32, U64};

/// The control queue.
pub const CONTROL_QUEUE: u16 = 0;
/// The event queue.
pub const EVENT_QUEUE: u16 = 1;
/// The first request queue.
pub const REQUEST_QUEUE: u16 = 2;

/// `sense_size` after reset (section 5.6.4).
pub const DEFAULT_SENSE_SIZE: u32 = 96;
/// `cdb_size` after reset (section 5.6.4).
pub const DEFAULT_CDB_SIZE: u32 = 32;

/// Feature bits (section 5.6.3), as masks.
pub mod feature {
    /// A request may have both readable and writable data.
    pub const INOUT: u64 = 1 << 0;
    /// Hot-plug events.
    pub const HOTPLUG: u64 = 1 << 1;
    /// Parameter-change events.
    pub const CHANGE: u64 = 1 << 2;
    /// Protection information.
    pub const T10_PI: u64 = 1 << 3;
}

/// The response byte (sections 5.6.6.1 and 5.6.6.2).
pub mod response {
    /// Completed; the status byte has the SCSI status. Also: function complete.
    pub const OK: u8 = 0;
    /// The data did not fit into the buffers.
    pub const OVERRUN: u8 = 1;
    /// Cancelled by a task-management function.
    pub const ABORTED: u8 = 2;
    /// No such target.
    pub const BAD_TARGET: u8 = 3;
    /// Cancelled by a bus or device reset.
    pub const RESET: u8 = 4;
    /// Try again later.
    pub const BUSY: u8 = 5;
    /// The host bus failed.
    pub const TRANSPORT_FAILURE: u8 = 6;
    /// The target failed.
    pub const TARGET_FAILURE: u8 = 7;
    /// The nexus failed: another path may work.
    pub const NEXUS_FAILURE: u8 = 8;
    /// Any other failure.
    pub const FAILURE: u8 = 9;
    /// Task management: done.
    pub const FUNCTION_SUCCEEDED: u8 = 10;
    /// Task management: not supported.
    pub const FUNCTION_REJECTED: u8 = 11;
    /// No such logical unit.
    pub const INCORRECT_LUN: u8 = 12;
}

/// Values of [`RequestHeader::task_attr`].
pub mod task_attr {
    /// Simple.
    pub const SIMPLE: u8 = 0;
    /// Ordered.
    pub const ORDERED: u8 = 1;
    /// Head of queue.
    pub const HEAD: u8 = 2;
    /// Auto contingent allegiance.
    pub const ACA: u8 = 3;
}

/// Types of control requests and subtypes of task management (section 5.6.6.2).
pub mod control {
    /// Task management.
    pub const TMF: u32 = 0;
    /// Asynchronous notification: query.
    pub const AN_QUERY: u32 = 1;
    /// Asynchronous notification: subscribe.
    pub const AN_SUBSCRIBE: u32 = 2;

    /// Abort the task with this identifier.
    pub const ABORT_TASK: u32 = 0;
    /// Abort this initiator's tasks.
    pub const ABORT_TASK_SET: u32 = 1;
    /// Clear auto contingent allegiance.
    pub const CLEAR_ACA: u32 = 2;
    /// Abort the tasks of all initiators.
    pub const CLEAR_TASK_SET: u32 = 3;
    /// Reset the I_T nexus.
    pub const I_T_NEXUS_RESET: u32 = 4;
    /// Reset the logical unit.
    pub const LOGICAL_UNIT_RESET: u32 = 5;
    /// Query whether this task exists.
    pub const QUERY_TASK: u32 = 6;
    /// Query whether any task exists.
    pub const QUERY_TASK_SET: u32 = 7;
}

/// Events and their reasons (section 5.6.6.3).
pub mod event {
    /// Added to an event: earlier events were lost.
    pub const MISSED: u32 = 0x8000_0000;
    /// No event; only `MISSED` matters.
    pub const NONE: u32 = 0;
    /// A unit was added, removed or reset.
    pub const TRANSPORT_RESET: u32 = 1;
    /// Asynchronous notification.
    pub const ASYNC_NOTIFY: u32 = 2;
    /// A parameter changed: the reason holds the additional sense code and its qualifier.
    pub const PARAM_CHANGE: u32 = 3;

    /// Transport reset: the unit was reset.
    pub const RESET_HARD: u32 = 0;
    /// Transport reset: rescan the unit.
    pub const RESET_RESCAN: u32 = 1;
    /// Transport reset: the unit was removed.
    pub const RESET_REMOVED: u32 = 2;
}

wire! {
    /// Configuration space (section 5.6.4).
    pub struct Config {
        /// Number of request queues.
        pub num_queues: U32,
        /// Maximum number of segments of a command.
        pub seg_max: U32,
        /// Maximum number of sectors of a transfer: a hint.
        pub max_sectors: U32,
        /// Maximum number of commands in flight per unit.
        pub cmd_per_lun: U32,
        /// Bytes of an event buffer.
        pub event_info_size: U32,
        /// Bytes of sense data in a response; writable by the driver.
        pub sense_size: U32,
        /// Bytes of the command block in a request; writable by the driver.
        pub cdb_size: U32,
        /// Largest channel: 0.
        pub max_channel: U16,
        /// Largest target.
        pub max_target: U16,
        /// Largest logical unit.
        pub max_lun: U32,
    }

    /// Fixed head of a command request; `cdb_size` bytes of command block follow.
    pub struct RequestHeader {
        /// Address: byte 0 is 1, byte 1 the target, bytes 2 and 3 a single-level unit number.
        pub lun: [u8; 8],
        /// Identifier of the task.
        pub id: U64,
        /// `task_attr::…`.
        pub task_attr: u8,
        /// Priority.
        pub prio: u8,
        /// Command reference number.
        pub crn: u8,
    }

    /// Fixed head of a command response; `sense_size` bytes of sense data follow.
    pub struct ResponseHeader {
        /// Valid bytes of sense data.
        pub sense_len: U32,
        /// Bytes of data not transferred.
        pub residual: U32,
        /// Status qualifier.
        pub status_qualifier: U16,
        /// SCSI status.
        pub status: u8,
        /// `response::…`.
        pub response: u8,
    }

    /// Task management request; the answer is a response byte.
    pub struct TaskManagement {
        /// `control::TMF`.
        pub kind: U32,
        /// `control::ABORT_TASK` and so on.
        pub subtype: U32,
        /// Address, as in a command.
        pub lun: [u8; 8],
        /// Identifier of the task.
        pub id: U64,
    }

    /// Asynchronous notification request.
    pub struct AsyncNotification {
        /// `control::AN_QUERY` or `AN_SUBSCRIBE`.
        pub kind: U32,
        /// Address, as in a command.
        pub lun: [u8; 8],
        /// Requested events.
        pub event_requested: U32,
    }

    /// Response to an [`AsyncNotification`].
    pub struct AsyncNotificationResponse {
        /// Events that will be reported.
        pub event_actual: U32,
        /// `response::…`.
        pub response: u8,
    }

    /// Contents of an event buffer.
    pub struct Event {
        /// `event::…`.
        pub event: U32,
        /// Address, as in a command.
        pub lun: [u8; 8],
        /// `event::RESET_…` for a transport reset.
        pub reason: U32,
    }
}
