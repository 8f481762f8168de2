#![expect(unsafe_code, reason = "entries of the table are a union")]
//! KVM's interrupt routing table: what each GSI sends. Knows no machine; giving the table to KVM is its caller's.

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_MSI_VALID_DEVID,
    kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip,
    kvm_irq_routing_msi,
};
use splitring_devices::wiring::MsiMessage;

/// The routing table as KVM has it. KVM replaces the whole table at a time.
pub(super) struct Routes(Vec<kvm_irq_routing_entry>);

impl Routes {
    /// Puts `entry` in its GSI's place and has `give` give the table to KVM; not if the entry is there already. What KVM
    /// refuses is not kept, so the same message is sent again the next time.
    pub(super) fn change<E>(
        &mut self,
        entry: kvm_irq_routing_entry,
        give: impl FnOnce(&[kvm_irq_routing_entry]) -> Result<(), E>,
    ) -> Result<(), E> {
        let place = self.0.iter().position(|route| route.gsi == entry.gsi);
        let old = place.and_then(|place| self.0.get(place).copied());
        if old.is_some_and(|old| same_message(&old, &entry)) {
            return Ok(());
        }
        match place.and_then(|place| self.0.get_mut(place)) {
            Some(route) => *route = entry,
            None => self.0.push(entry),
        }
        let given = give(&self.0);
        if given.is_err() {
            match (old, place.and_then(|place| self.0.get_mut(place))) {
                (Some(old), Some(route)) => *route = old,
                _ => _ = self.0.pop(),
            }
        }
        given
    }

    /// Forgets the entry of `gsi`; KVM does with the next change.
    pub(super) fn remove(&mut self, gsi: u32) {
        self.0.retain(|route| route.gsi != gsi);
    }
}

/// Both entries are of type MSI: GSIs beyond the pins have no other.
fn same_message(a: &kvm_irq_routing_entry, b: &kvm_irq_routing_entry) -> bool {
    // SAFETY: every field of the union is plain integers, written whole by `message`.
    let (a, b) = unsafe { (a.u.msi, b.u.msi) };
    (a.address_lo, a.address_hi, a.data) == (b.address_lo, b.address_hi, b.data)
}

/// The default routing: each of `pins` pins of the I/O APIC under its own number, and no PIC.
pub(super) fn pin_routes(pins: u32) -> Routes {
    let pins = (0..pins).map(|pin| kvm_irq_routing_entry {
        gsi: pin,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip {
                irqchip: KVM_IRQCHIP_IOAPIC,
                pin,
            },
        },
        ..Default::default()
    });
    Routes(pins.collect())
}

/// `name_requester` is whether KVM wants to know which function sends the message.
pub(super) fn message_entry(
    gsi: u32,
    wanted: MsiMessage,
    name_requester: bool,
) -> kvm_irq_routing_entry {
    let MsiMessage {
        address,
        data,
        requester,
    } = wanted;
    let mut message = kvm_irq_routing_msi {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the low half is what this field holds"
        )]
        address_lo: address as u32,
        address_hi: u32::try_from(address >> 32).unwrap_or(u32::MAX),
        data,
        ..Default::default()
    };
    let mut flags = 0;
    if name_requester {
        message.__bindgen_anon_1.devid = u32::from(requester);
        flags = KVM_MSI_VALID_DEVID;
    }
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        flags,
        u: kvm_irq_routing_entry__bindgen_ty_1 { msi: message },
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(gsi: u32, data: u32) -> kvm_irq_routing_entry {
        let wanted = MsiMessage {
            address: 0xfee0_0000,
            data,
            requester: 8,
        };
        message_entry(gsi, wanted, true)
    }

    /// The data of the messages in a table.
    fn sent(routes: &[kvm_irq_routing_entry]) -> Vec<u32> {
        let messages = routes.iter().filter(|it| it.type_ == KVM_IRQ_ROUTING_MSI);
        // SAFETY: entries of this type were made by `message`, which writes this member whole.
        messages.map(|it| unsafe { it.u.msi.data }).collect()
    }

    #[test]
    fn a_message_that_kvm_refused_is_not_known_and_sent_again() {
        let mut routes = pin_routes(24);
        // A new entry, and a changed one.
        for (known, data) in [(vec![], 1), (vec![1], 2)] {
            for _ in 0..2 {
                let mut table = Vec::new();
                let refused = routes.change(message(30, data), |routes| {
                    table = sent(routes);
                    Err("no memory")
                });
                assert_eq!((refused, &table), (Err("no memory"), &vec![data]));
                assert_eq!(sent(&routes.0), known);
            }
            let mut asked = 0;
            for _ in 0..2 {
                let taken = routes.change(message(30, data), |_| {
                    asked += 1;
                    Ok::<(), ()>(())
                });
                assert_eq!(taken, Ok(()));
            }
            assert_eq!(asked, 1, "what KVM has is not sent again");
        }
        routes.remove(30);
        assert_eq!(routes.0.len(), 24);
    }
}
