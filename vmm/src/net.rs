//! Network cards: what a running one counted, its link, and the contract for backends that an embedder implements.
//!
//! A machine opens the TAP interface or the passt that its configuration names, or uses descriptors that were handed
//! over. An embedder that moves the frames itself implements [`NetBackend`] and hands it over with
//! [`ResourceOptions::net`](crate::ResourceOptions::net).
//!
//! The keys of a card are in [`NetConfig`](crate::config::NetConfig).

pub use splitring_devices::net::passt::PasstError;
pub use splitring_devices::net::tap::TapError;
pub use splitring_devices::net::vhost::VhostError;
pub use splitring_devices::net::{
    DirectionTotals, DropTotals, FramePort, GuestBuffers, Hidden, MOST_TAKEN, NetBackend, NetError,
    NetHandle, NetTotals, Offloads, Refusal,
};
pub use splitring_virtio::mem::Segment;
pub use splitring_virtio::spec::net::{HEADER_SIZE, Header, flags, gso};
