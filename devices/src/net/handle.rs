//! A running card seen from the outside.

use std::sync::{Arc, Weak};

use super::{Net, NetTotals};

use crate::debug::opaque_debug;

/// What an embedder may do to a card while the guest runs. Every call is `None` once the card is gone.
#[derive(Clone)]
pub struct NetHandle(Weak<Net>);

opaque_debug! { NetHandle |it| { id: it.id() } }

impl Net {
    /// A handle for run-time changes that does not keep the card.
    #[must_use]
    pub fn handle(self: &Arc<Self>) -> NetHandle {
        NetHandle::new(self)
    }
}

impl NetHandle {
    /// A handle on `card`, which it does not keep.
    pub(super) fn new(card: &Arc<Net>) -> Self {
        Self(Arc::downgrade(card))
    }

    /// The card's name.
    #[must_use]
    pub fn id(&self) -> Option<String> {
        self.0.upgrade().map(|net| net.state.id.clone())
    }

    /// What it has counted so far.
    #[must_use]
    pub fn totals(&self) -> Option<NetTotals> {
        self.0.upgrade().map(|net| net.metrics().totals())
    }

    /// As [`Net::set_link`].
    pub fn set_link(&self, up: bool) -> Option<()> {
        self.0.upgrade().map(|net| net.set_link(up))
    }

    /// As [`Net::announce`].
    pub fn announce(&self) -> Option<()> {
        self.0.upgrade().map(|net| net.announce())
    }
}
