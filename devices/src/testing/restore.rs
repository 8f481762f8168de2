//! Machines that are saved and go on as others, with nothing in common but a copy of guest memory
//! and the host's disks.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use splitring_virtio::spec::pci::common as reg;

use super::memory;
use super::pci::{Guest, PATIENCE, SLOT, WINDOW, spawn_workers};
use crate::device::VirtioDevice;
use crate::saved::{StateError, Versioned};

/// The whole of guest memory.
const MEMORY: usize = 8 << 20;

/// The state of a machine that is paused, as text.
pub(crate) fn save(guest: &Guest) -> String {
    serde_json::to_string(&guest.function.save().unwrap()).unwrap()
}

/// A new machine around `device` that has not taken over anything, its worker paused, with a copy
/// of the memory of `old`, which is gone.
fn rebuild(mut old: Guest, device: Arc<dyn VirtioDevice>) -> Guest {
    let ram = memory();
    let rings = std::mem::take(&mut old.rings);
    let copy = old.peek(0, MEMORY);
    drop(old);
    let failures = Arc::default();
    let workers = spawn_workers(1, &failures);
    let mut guest = Guest::with_memory(device, u64::MAX, &workers, failures, ram.clone());
    guest.poke(0, &copy);
    guest.rings = rings.into_iter().map(|ring| ring.in_copy(&ram)).collect();
    guest.worker.pause(PATIENCE).unwrap();
    guest
}

/// Pauses the machine, lets the driver do something `meanwhile`, saves it, and goes on with
/// `device` in another one.
pub(crate) fn move_to(
    mut guest: Guest,
    device: Arc<dyn VirtioDevice>,
    meanwhile: impl FnOnce(&mut Guest),
) -> Guest {
    guest.worker.pause(PATIENCE).unwrap();
    meanwhile(&mut guest);
    let text = save(&guest);
    let guest = rebuild(guest, device);
    let state: Versioned = serde_json::from_str(&text).unwrap();
    guest.function.restore(&state).unwrap();
    guest.root.follow(SLOT);
    assert_eq!(save(&guest), text, "saved again at once it is the same");
    guest.worker.resume().unwrap();
    guest
}

/// All places in a tree, as JSON pointers.
fn places(tree: &Value) -> Vec<String> {
    fn walk(value: &Value, at: &str, into: &mut Vec<String>) {
        into.push(at.to_owned());
        match value {
            Value::Object(fields) => fields
                .iter()
                .for_each(|(name, value)| walk(value, &format!("{at}/{name}"), into)),
            Value::Array(list) => list
                .iter()
                .enumerate()
                .for_each(|(index, value)| walk(value, &format!("{at}/{index}"), into)),
            _ => {}
        }
    }
    let mut all = Vec::new();
    walk(tree, "", &mut all);
    all
}

/// One change of a tree: where, and to what.
fn damage(tree: &mut Value, place: usize, how: usize) {
    let places = places(tree);
    let at = &places[place % places.len()];
    let value = tree.pointer_mut(at).unwrap();
    let wide = match value {
        Value::Number(number) => number.as_u64().unwrap_or(0),
        _ => 0,
    };
    *value = match how % 12 {
        0 => Value::Null,
        1 => json!(0),
        2 => json!(u64::MAX),
        3 => json!(u64::from(u32::MAX)),
        4 => json!(u64::from(u16::MAX)),
        5 => json!(-1),
        6 => json!("x"),
        7 => json!([]),
        8 => json!({}),
        9 => json!(wide ^ 1),
        10 => json!(wide.wrapping_add(0x1000)),
        _ => match value {
            Value::Bool(on) => json!(!*on),
            Value::Array(list) => json!([list.as_slice(), list.as_slice()].concat()),
            _ => json!(wide << 1),
        },
    };
}

/// Whatever happens to the state of `guest`, a device that `make` makes either refuses it or runs
/// with it: no panic, no access outside of guest memory, and after a reset the device works again.
pub(crate) fn damaged_states_are_errors_at_worst(
    guest: &Guest,
    make: impl Fn() -> Arc<dyn VirtioDevice>,
    cases: u32,
) {
    guest.worker.pause(PATIENCE).unwrap();
    let good: Value = serde_json::from_str(&save(guest)).unwrap();
    let content = guest.peek(0, MEMORY);
    let failures = Arc::new(Mutex::new(Vec::new()));
    let workers = spawn_workers(1, &failures);
    let (mut taken, mut refused) = (0, 0);
    let mut run = |tree: &Value| {
        let Ok(state) = serde_json::from_value::<Versioned>(tree.clone()) else {
            return None;
        };
        let ram = memory();
        let failures = Arc::clone(&failures);
        let mut guest = Guest::with_memory(make(), u64::MAX, &workers, failures, ram);
        guest.poke(0, &content);
        let result = guest.function.restore(&state);
        guest.root.follow(SLOT);
        match &result {
            Ok(()) => taken += 1,
            Err(_) => refused += 1,
        }
        // Whatever runs has had its turn before a pause is reached.
        guest.worker.pause(PATIENCE).unwrap();
        guest.worker.resume().unwrap();
        // Wherever its BAR was put.
        let bar = WINDOW.start + (u64::from(SLOT) << 20);
        guest.config_write(0x10, &bar.to_le_bytes());
        guest.decode_memory();
        guest.restart();
        assert_eq!(guest.status() & 0x40, 0);
        let queues = guest.common16(reg::NUM_QUEUES);
        assert_eq!(usize::from(queues), guest.rings.len());
        guest.function.stop();
        Some(result)
    };
    assert!(matches!(run(&good), Some(Ok(()))), "as it was saved");
    // Every layer says its version and refuses another, and no object has fields that nobody knows.
    for place in places(&good) {
        let mut tree = good.clone();
        match tree.pointer_mut(&place) {
            Some(Value::Object(fields)) => {
                fields.insert("odd".to_owned(), json!(1));
                let result = run(&tree);
                let odd = matches!(result, None | Some(Err(StateError::Malformed { .. })));
                assert!(odd, "{place}: {result:?}");
            }
            Some(version) if place.ends_with("/version") => {
                *version = json!(99);
                let result = run(&tree);
                let version = matches!(result, Some(Err(StateError::Version { found: 99, .. })));
                assert!(version, "{place}: {result:?}");
            }
            _ => {}
        }
    }
    let damages = prop::collection::vec((any::<usize>(), any::<usize>()), 1..4);
    let run = std::cell::RefCell::new(run);
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    };
    proptest!(config, |(damages in damages)| {
        let mut tree = good.clone();
        for (place, how) in damages {
            damage(&mut tree, place, how);
        }
        let _ = (*run.borrow_mut())(&tree);
    });
    assert!(taken > 1 && refused > 1, "{taken} taken, {refused} refused");
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(*failures.lock().unwrap(), []);
}
