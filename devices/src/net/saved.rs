//! What a snapshot keeps of a network card.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use splitring_virtio::spec::net::feature;

use super::control::GUEST_OFFLOADS;
use super::filter::{Filter, Mac, TABLE_MAX, Table};
use super::state::State;
use crate::saved::{Layer, StateError};

/// The state of a card. Frames on their way are the network's to lose.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NetState {
    mtu: Option<u16>,
    link_up: bool,
    announcing: bool,
    pub(super) pairs: u16,
    /// Feature bits.
    pub(super) guest_offloads: u64,
    filter: FilterState,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FilterState {
    mac: Mac,
    promiscuous: bool,
    all_multicast: bool,
    all_unicast: bool,
    no_multicast: bool,
    no_unicast: bool,
    no_broadcast: bool,
    unicast: TableState,
    multicast: TableState,
    vlans: Option<Vec<u16>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TableState {
    addresses: Vec<Mac>,
    overflow: bool,
}

impl Layer for NetState {
    const NAME: &'static str = "network card";
    const VERSION: u32 = 1;
}

impl NetState {
    pub(super) fn of(state: &State, mtu: Option<u16>) -> Self {
        let (_, filter) = state.filter();
        Self {
            mtu,
            link_up: state.link_up(),
            announcing: state.announcing(),
            pairs: state.pairs(),
            guest_offloads: state.guest_offloads(),
            filter: FilterState {
                mac: filter.mac,
                promiscuous: filter.promiscuous,
                all_multicast: filter.all_multicast,
                all_unicast: filter.all_unicast,
                no_multicast: filter.no_multicast,
                no_unicast: filter.no_unicast,
                no_broadcast: filter.no_broadcast,
                unicast: filter.unicast.into(),
                multicast: filter.multicast.into(),
                vlans: filter.vlans.map(|vlans| vlans.into_iter().collect()),
            },
        }
    }

    /// Whether a card with this MTU and so many pairs, whose driver negotiated what `state` says,
    /// can take it over; the filter.
    pub(super) fn check(
        &self,
        state: &State,
        mtu: Option<u16>,
        pairs: u16,
    ) -> Result<Filter, StateError> {
        let refused = |problem: String| Err(StateError::refused::<Self>(problem));
        let features = state.features();
        let has = |feature| features & feature != 0;
        if self.mtu != mtu {
            return refused(format!("its MTU was {:?} and is {mtu:?}", self.mtu));
        }
        let most = if has(feature::MQ) { pairs } else { 1 };
        if !(1..=most).contains(&self.pairs) {
            return refused(format!("{} queue pairs are in use, of {most}", self.pairs));
        }
        if self.guest_offloads & !(features & GUEST_OFFLOADS) != 0 {
            let offloads = self.guest_offloads;
            return refused(format!("offloads {offloads:#x} were not negotiated"));
        }
        self.filter.check(has(feature::CTRL_VLAN))
    }

    /// Takes over what does not reach the backend.
    pub(super) fn apply(&self, state: &State) {
        state.set_link(self.link_up);
        state.set_announcing(self.announcing && state.can_announce());
        state.note_pairs(self.pairs);
        state.note_guest_offloads(self.guest_offloads);
    }
}

impl From<Table> for TableState {
    fn from(table: Table) -> Self {
        Self {
            addresses: table.addresses,
            overflow: table.overflow,
        }
    }
}

impl TableState {
    fn check(&self) -> Result<Table, StateError> {
        let (count, overflow) = (self.addresses.len(), self.overflow);
        if count > TABLE_MAX || (overflow && count > 0) {
            let problem = format_args!("a table of {count} addresses (overflow: {overflow})");
            return Err(StateError::refused::<NetState>(problem));
        }
        Ok(Table {
            addresses: self.addresses.clone(),
            overflow,
        })
    }
}

impl FilterState {
    fn check(&self, has_vlans: bool) -> Result<Filter, StateError> {
        let refused = |problem: &str| Err(StateError::refused::<NetState>(problem));
        let [first, ..] = self.mac;
        if first & 1 != 0 {
            return refused("its address is a group's");
        }
        if self.vlans.is_some() && !has_vlans {
            return refused("it filters VLANs, which was not negotiated");
        }
        let vlans: Option<BTreeSet<u16>> = self
            .vlans
            .as_ref()
            .map(|vlans| vlans.iter().copied().collect());
        if vlans.iter().flatten().any(|vlan| *vlan >= 4096) {
            return refused("there are VLANs up to 4095");
        }
        let mut filter = Filter::new(self.mac, true, has_vlans);
        filter.promiscuous = self.promiscuous;
        filter.all_multicast = self.all_multicast;
        filter.all_unicast = self.all_unicast;
        filter.no_multicast = self.no_multicast;
        filter.no_unicast = self.no_unicast;
        filter.no_broadcast = self.no_broadcast;
        filter.unicast = self.unicast.check()?;
        filter.multicast = self.multicast.check()?;
        if vlans.is_some() {
            filter.vlans = vlans;
        }
        Ok(filter)
    }
}
