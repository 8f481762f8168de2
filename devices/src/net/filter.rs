//! Which received frames the guest wants (section 5.1.6.5.1 to .3): its own address, the tables and
//! modes set over the control queue, and VLANs.
//!
//! A pure predicate over the first bytes of a frame. The receive path keeps a copy of its own and
//! takes a new one when the control queue has changed it.

use std::collections::BTreeSet;

/// Addresses either table keeps; a longer one switches the mode that needs no table on, as hardware does.
pub(crate) const TABLE_MAX: usize = 64;

const ETHERTYPE_VLAN: [u8; 2] = [0x81, 0x00];
const BROADCAST: Mac = [0xff; 6];

/// An Ethernet address.
pub type Mac = [u8; 6];

/// What the guest wants to receive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    /// The address frames are sent to.
    pub(crate) mac: Mac,
    /// Every frame.
    pub(crate) promiscuous: bool,
    /// Every multicast frame.
    pub(crate) all_multicast: bool,
    /// Every unicast frame.
    pub(crate) all_unicast: bool,
    /// No multicast frame.
    pub(crate) no_multicast: bool,
    /// No unicast frame.
    pub(crate) no_unicast: bool,
    /// No broadcast frame.
    pub(crate) no_broadcast: bool,
    pub(super) unicast: Table,
    pub(super) multicast: Table,
    /// Empty until the driver negotiated the filter: then only these pass with a tag.
    pub(super) vlans: Option<BTreeSet<u16>>,
}

/// Addresses of one kind; `overflow` when the driver gave more than the device keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) addresses: Vec<Mac>,
    pub(super) overflow: bool,
}

impl Table {
    fn set(&mut self, addresses: &[Mac]) {
        self.overflow = addresses.len() > TABLE_MAX;
        self.addresses.clear();
        if !self.overflow {
            self.addresses.extend_from_slice(addresses);
        }
    }

    fn has(&self, mac: &Mac) -> bool {
        self.overflow || self.addresses.contains(mac)
    }
}

impl Filter {
    /// As after reset. A driver without receive modes (`CTRL_RX`) can't ask for more, so it gets every
    /// frame; VLANs are filtered only if the driver negotiated that.
    pub(crate) fn new(mac: Mac, has_modes: bool, has_vlans: bool) -> Self {
        Self {
            mac,
            promiscuous: !has_modes,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            unicast: Table::default(),
            multicast: Table::default(),
            vlans: has_vlans.then(BTreeSet::new),
        }
    }

    /// Replaces both address tables.
    pub(crate) fn set_tables(&mut self, unicast: &[Mac], multicast: &[Mac]) {
        self.unicast.set(unicast);
        self.multicast.set(multicast);
    }

    /// Adds or removes a VLAN; `false` where the filter was not negotiated or the number is none.
    pub(crate) fn set_vlan(&mut self, vlan: u16, wanted: bool) -> bool {
        let Some(vlans) = self.vlans.as_mut().filter(|_| vlan < 4096) else {
            return false;
        };
        if wanted {
            vlans.insert(vlan);
        } else {
            vlans.remove(&vlan);
        }
        true
    }

    /// Whether no frame needs to be looked at.
    pub(crate) fn wants_everything(&self) -> bool {
        self.promiscuous && self.vlans.is_none()
    }

    /// Whether a frame that begins with these bytes is for the guest.
    pub(crate) fn wants(&self, frame: &[u8]) -> bool {
        let Some(to) = frame.first_chunk::<6>() else {
            return false;
        };
        self.wants_vlan(frame) && self.wants_address(to)
    }

    fn wants_address(&self, to: &Mac) -> bool {
        let [first, ..] = to;
        if self.promiscuous {
            true
        } else if *to == BROADCAST {
            !self.no_broadcast
        } else if first & 1 != 0 {
            !self.no_multicast && (self.all_multicast || self.multicast.has(to))
        } else {
            !self.no_unicast && (self.all_unicast || *to == self.mac || self.unicast.has(to))
        }
    }

    fn wants_vlan(&self, frame: &[u8]) -> bool {
        let Some(vlans) = &self.vlans else {
            return true;
        };
        if frame.get(12..14) != Some(&ETHERTYPE_VLAN) {
            return true;
        }
        let Some(tag) = frame.get(14..16).and_then(|t| t.first_chunk::<2>()) else {
            return false;
        };
        vlans.contains(&(u16::from_be_bytes(*tag) & 0xfff))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];
    const GROUP: Mac = [1, 0, 0x5e, 0, 0, 1];

    fn frame(to: Mac) -> Vec<u8> {
        let mut bytes = to.to_vec();
        bytes.extend([2, 0, 0, 0, 0, 9, 8, 0, 0, 0, 0, 0]);
        bytes
    }

    fn tagged(vlan: u16) -> Vec<u8> {
        let mut bytes = frame(OWN);
        bytes.splice(12..16, [0x81, 0]);
        bytes.splice(14..16, vlan.to_be_bytes());
        bytes
    }

    #[test]
    fn own_address_and_broadcast_pass_and_nothing_else() {
        let filter = Filter::new(OWN, true, false);
        assert!(filter.wants(&frame(OWN)) && filter.wants(&frame(BROADCAST)));
        assert!(!filter.wants(&frame(OTHER)) && !filter.wants(&frame(GROUP)));
        assert!(!filter.wants(&[2, 0, 0]));
    }

    #[test]
    fn each_mode_does_what_its_name_says() {
        let fresh = Filter::new(OWN, true, false);
        let with = |change: fn(&mut Filter)| {
            let mut filter = fresh.clone();
            change(&mut filter);
            [OWN, OTHER, GROUP, BROADCAST].map(|to| filter.wants(&frame(to)))
        };
        assert_eq!(with(|f| f.promiscuous = true), [true; 4]);
        assert_eq!(with(|f| f.all_unicast = true), [true, true, false, true]);
        assert_eq!(with(|f| f.all_multicast = true), [true, false, true, true]);
        assert_eq!(with(|f| f.no_unicast = true), [false, false, false, true]);
        assert_eq!(with(|f| f.no_broadcast = true), [true, false, false, false]);
        assert_eq!(
            with(|f| {
                f.all_multicast = true;
                f.no_multicast = true
            }),
            [true, false, false, true]
        );
        assert_eq!(with(|f| f.set_tables(&[OTHER], &[GROUP])), [true; 4]);
    }

    #[test]
    fn a_table_too_long_to_keep_lets_everything_of_its_kind_pass() {
        let mut filter = Filter::new(OWN, true, false);
        filter.set_tables(&[], &[[3; 6]; TABLE_MAX + 1]);
        assert!(filter.wants(&frame(GROUP)) && !filter.wants(&frame(OTHER)));
        filter.set_tables(&[], &[]);
        assert!(!filter.wants(&frame(GROUP)));
    }

    #[test]
    fn a_driver_without_modes_gets_every_frame() {
        assert!(Filter::new(OWN, false, false).wants(&frame(OTHER)));
    }

    #[test]
    fn vlans_pass_once_added_and_only_where_negotiated() {
        let mut filter = Filter::new(OWN, true, true);
        assert!(filter.wants(&frame(OWN)) && !filter.wants(&tagged(5)));
        assert!(filter.set_vlan(5, true) && filter.wants(&tagged(5)) && !filter.wants(&tagged(6)));
        assert!(filter.set_vlan(5, false) && !filter.wants(&tagged(5)));
        assert!(!filter.set_vlan(4096, true));
        let mut without = Filter::new(OWN, true, false);
        assert!(without.wants(&tagged(5)) && !without.set_vlan(5, true));
    }
}
