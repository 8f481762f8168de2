//! The PCI driver against a model of a function: registers only, without a device behind them.
#![expect(
    clippy::cast_possible_truncation,
    reason = "registers of a small model"
)]

use std::cell::RefCell;
use std::rc::Rc;

use super::*;
use crate::driver::{Queue, QueueOptions};
use crate::mem::testbed::{Function, PlainFunction, Testbed, registers_in_memory};

const COMMON_AT: u64 = 0x1000;
const NOTIFY_AT: u64 = 0x2000;
const ISR_AT: u64 = 0x3000;
const DEVICE_AT: u64 = 0x4000;
const MSIX_AT: u64 = 0x5000;
const CONFIG_BYTES: u64 = 16;

/// A virtio function with three queues and four vectors.
struct Model {
    space: [u32; 64],
    status: u8,
    offered: u64,
    accepted: u64,
    refuses: u64,
    selects: [u32; 2],
    queue: u16,
    queues: [[u32; 12]; 3],
    vectors: u16,
    config_vector: u16,
    generation: u8,
    /// For how many reads of the configuration the generation changes.
    unsteady: u32,
    /// For how many reads the status is not yet 0 after a reset.
    slow_reset: u32,
    msix: [u32; 16],
    log: Vec<String>,
}

impl Model {
    fn new() -> Rc<RefCell<Self>> {
        let mut model = Self {
            space: [0; 64],
            status: 0,
            offered: VERSION_1 | 0b1011,
            accepted: 0,
            refuses: 0,
            selects: [0; 2],
            queue: 0,
            queues: [[0; 12]; 3],
            vectors: 4,
            config_vector: NO_VECTOR,
            generation: 0,
            unsteady: 0,
            slow_reset: 0,
            msix: [0; 16],
            log: Vec::new(),
        };
        for (index, queue) in model.queues.iter_mut().enumerate() {
            queue[0] = 8 << index;
        }
        model.space[0] = 0x1042_1af4;
        model.space[1] = 1 << 20;
        model.space[13] = 0x40;
        // An unusable common structure first (no such BAR), then the good ones.
        model.capability([0x40, 0x50, 16, cfg_type::COMMON, 7], 0, 56);
        model.capability([0x50, 0x60, 16, cfg_type::COMMON, 4], COMMON_AT, 56);
        model.capability([0x60, 0x74, 20, cfg_type::NOTIFY, 4], NOTIFY_AT, 0x1000);
        model.space[0x70 / 4] = 4;
        model.capability([0x74, 0x84, 16, cfg_type::ISR, 4], ISR_AT, 1);
        model.capability(
            [0x84, 0x94, 16, cfg_type::DEVICE, 4],
            DEVICE_AT,
            CONFIG_BYTES,
        );
        model.space[0x94 / 4] = 3 << 16 | 0x11;
        model.space[0x98 / 4] = MSIX_AT as u32 | 4;
        Rc::new(RefCell::new(model))
    }

    fn capability(&mut self, [at, next, len, kind, bar]: [u8; 5], offset: u64, size: u64) {
        let at = usize::from(at) / 4;
        self.space[at] = u32::from_le_bytes([CAP_ID, next, len, kind]);
        self.space[at + 1] = bar.into();
        self.space[at + 2] = offset as u32;
        self.space[at + 3] = size as u32;
    }

    fn common(&mut self, at: u64, write: Option<u32>) -> u32 {
        let half = |value: u64, select: u32| (value >> (32 * select.min(1))) as u32;
        match (at, write) {
            (common::DEVICE_FEATURE_SELECT, Some(value)) => self.selects[0] = value,
            (common::DEVICE_FEATURE, None) => return half(self.offered, self.selects[0]),
            (common::DRIVER_FEATURE_SELECT, Some(value)) => self.selects[1] = value,
            (common::DRIVER_FEATURE, Some(value)) => {
                let shift = 32 * self.selects[1];
                self.accepted = self.accepted & !(0xffff_ffff << shift) | u64::from(value) << shift;
            }
            (common::CONFIG_MSIX_VECTOR, Some(value)) => self.config_vector = self.vector(value),
            (common::CONFIG_MSIX_VECTOR, None) => return self.config_vector.into(),
            (common::NUM_QUEUES, None) => return self.queues.len() as u32,
            (common::DEVICE_STATUS, Some(0)) => {
                self.log.push("reset".into());
                self.status = 0;
            }
            (common::DEVICE_STATUS, Some(value)) => {
                let mut value = value as u8;
                if self.accepted & self.refuses != 0 {
                    value &= !status::FEATURES_OK;
                }
                self.log.push(format!("status {value:#x}"));
                self.status = value;
            }
            (common::DEVICE_STATUS, None) if self.slow_reset > 0 => {
                self.slow_reset -= 1;
                return 0xf;
            }
            (common::DEVICE_STATUS, None) => return self.status.into(),
            (common::CONFIG_GENERATION, None) => return self.generation.into(),
            (common::QUEUE_SELECT, Some(value)) => self.queue = value as u16,
            (common::QUEUE_NOTIFY_OFF, None) => return u32::from(self.queue) + 10,
            (common::QUEUE_SIZE..=0x36, _) => return self.queue_field(at, write),
            other => panic!("no such access: {other:?}"),
        }
        0
    }

    fn queue_field(&mut self, at: u64, write: Option<u32>) -> u32 {
        let index = match at {
            common::QUEUE_SIZE => 0,
            common::QUEUE_MSIX_VECTOR => 1,
            common::QUEUE_ENABLE => 2,
            _ => (at - common::QUEUE_DESC) as usize / 4 + 3,
        };
        let value = match (at, write) {
            (common::QUEUE_MSIX_VECTOR, Some(value)) => Some(self.vector(value).into()),
            (_, write) => write,
        };
        let Some(queue) = self.queues.get_mut(usize::from(self.queue)) else {
            return 0;
        };
        if at == common::QUEUE_ENABLE {
            self.log.push(format!("queue {} on", self.queue));
        }
        if let Some(value) = value {
            queue[index] = value;
        }
        queue[index]
    }

    fn vector(&self, wanted: u32) -> u16 {
        let wanted = wanted as u16;
        if wanted < self.vectors {
            wanted
        } else {
            NO_VECTOR
        }
    }
}

impl PlainFunction for Model {
    fn config(&mut self, offset: u16) -> u32 {
        assert!(offset.is_multiple_of(4));
        self.space[usize::from(offset) / 4]
    }

    fn set_config(&mut self, offset: u16, value: u32) {
        // The status half of the command register is cleared by writing ones.
        let kept = if offset == 4 {
            self.space[1] & 0xffff_0000 & !value
        } else {
            0
        };
        self.space[usize::from(offset) / 4] = match offset {
            4 => kept | value & 0xffff,
            _ => value,
        };
    }

    fn bar(&mut self, bar: u8, offset: u64, width: u8, write: Option<u32>) -> u32 {
        assert_eq!(bar, 4);
        match offset {
            COMMON_AT..NOTIFY_AT => self.common(offset - COMMON_AT, write),
            NOTIFY_AT..ISR_AT => {
                let (at, value) = (offset - NOTIFY_AT, write.unwrap());
                self.log.push(format!("notify {value} at {at} by {width}"));
                0
            }
            ISR_AT => 3,
            DEVICE_AT..MSIX_AT => {
                if let Some(value) = write {
                    self.log
                        .push(format!("config {} = {value}", offset - DEVICE_AT));
                }
                if self.unsteady > 0 {
                    self.unsteady -= 1;
                    self.generation = self.generation.wrapping_add(1);
                }
                (offset - DEVICE_AT) as u32 + u32::from(self.generation)
            }
            _ => {
                let word = &mut self.msix[(offset - MSIX_AT) as usize / 4];
                *word = write.unwrap_or(*word);
                *word
            }
        }
    }

    fn bar_len(&self, bar: u8) -> u64 {
        if bar == 4 { 0x6000 } else { 0 }
    }
}

fn driver(model: &Rc<RefCell<Model>>) -> Result<Pci<Function<Model>>, PciError> {
    Pci::new(Function(Rc::clone(model)))
}

fn live(model: &Rc<RefCell<Model>>) -> Pci<Function<Model>> {
    let mut pci = driver(model).unwrap();
    pci.reset().unwrap();
    pci.negotiate(u64::MAX).unwrap();
    pci
}

fn log(model: &Rc<RefCell<Model>>) -> Vec<String> {
    std::mem::take(&mut model.borrow_mut().log)
}

#[test]
fn the_order_of_initialisation_is_that_of_the_specification() {
    let model = Model::new();
    let mut pci = driver(&model).unwrap();
    assert_eq!((pci.kind(), pci.queues()), (2, 3));
    assert_eq!(
        model.borrow().space[1] & 0b110,
        0b110,
        "memory decoding and bus mastering"
    );
    pci.reset().unwrap();
    assert_eq!(pci.negotiate(0b0110).unwrap(), VERSION_1 | 0b0010);
    assert_eq!(model.borrow().accepted, VERSION_1 | 0b0010);

    let mut bed = Testbed::new(1 << 16);
    let mut queue = bed.queue::<()>(QueueOptions::new(16, 0));
    let areas = queue.areas();
    assert_eq!(queue.publish(), crate::driver::Kick::NotNeeded);
    assert_eq!(
        [0, 1, 2, 3].map(|index| pci.queue_max(index)),
        [8, 16, 32, 0]
    );
    pci.set_up_queue(2, &areas, Some(3)).unwrap();
    pci.set_driver_ok();
    let expected = [
        "reset",
        "status 0x1",
        "status 0x3",
        "status 0xb",
        "queue 2 on",
        "status 0xf",
    ];
    assert_eq!(log(&model), expected);
    let [size, vector, enabled, rest @ ..] = model.borrow().queues[2];
    assert_eq!((size, vector, enabled), (16, 3, 1));
    let wide = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let [a, b, c, d, e, f, ..] = rest;
    assert_eq!(
        [wide(a, b), wide(c, d), wide(e, f)],
        [areas.descriptors, areas.driver, areas.device]
    );

    pci.notify(2);
    pci.notify(0);
    pci.notify(77);
    assert_eq!(
        log(&model),
        ["notify 2 at 48 by 2"],
        "a queue that was not set up is not rung"
    );
    assert_eq!(pci.interrupt_status(), 3);
}

#[test]
fn shared_memory_is_found_by_its_identifier_and_only_where_the_capability_is_whole() {
    let model = Model::new();
    // Behind MSI-X, the last of the list.
    const AT: [u8; 5] = [0xa0, 0xb8, 0xd0, 0xe8, 0];
    model.borrow_mut().space[0x94 / 4] |= u32::from(AT[0]) << 8;
    let put = |number: usize, len: u8, bar: u8, id: u8, offset: u64, size: u64| {
        let mut model = model.borrow_mut();
        let [at, next] = [AT[number], AT[number + 1]];
        model.capability([at, next, len, cfg_type::SHARED_MEMORY, bar], offset, size);
        let at = usize::from(at) / 4;
        model.space[at + 1] |= u32::from(id) << 8;
        model.space[at + 4] = (offset >> 32) as u32;
        model.space[at + 5] = (size >> 32) as u32;
    };
    put(0, 24, 2, 7, 0x1_0000_2000, 0x2_0000_0000);
    put(1, 16, 2, 8, 0x1000, 0x1000);
    put(2, 24, 6, 9, 0, 0x1000);
    put(3, 24, 2, 9, 0x5000, 0x1000);
    let pci = driver(&model).unwrap();
    let region = |bar, offset, len| Some(BarRange { bar, offset, len });
    assert_eq!(
        pci.shared_memory(7),
        region(2, 0x1_0000_2000, 0x2_0000_0000)
    );
    assert_eq!(pci.shared_memory(8), None, "without room for 64 bits");
    assert_eq!(
        pci.shared_memory(9),
        region(2, 0x5000, 0x1000),
        "the usable one"
    );
    assert_eq!(pci.shared_memory(0), None);
    put(0, 24, 2, 7, u64::MAX, 2);
    put(1, 24, 2, 8, 0, 0);
    assert_eq!(pci.shared_memory(7), None, "past the end of all addresses");
    assert_eq!(pci.shared_memory(8), None, "empty");
}

#[test]
fn functions_that_are_no_modern_virtio_device_are_refused() {
    let refused = |change: fn(&mut Model)| {
        let model = Model::new();
        change(&mut model.borrow_mut());
        driver(&model).err().expect("refused")
    };
    let foreign = PciError::NotVirtio {
        vendor: 0x1af5,
        device: 0x1042,
    };
    assert_eq!(refused(|model| model.space[0] = 0x1042_1af5), foreign);
    let transitional = PciError::NotVirtio {
        vendor: 0x1af4,
        device: 0x1001,
    };
    assert_eq!(refused(|model| model.space[0] = 0x1001_1af4), transitional);
    assert_eq!(
        refused(|model| model.space[1] = 0),
        PciError::Missing("common")
    );
    let circle = |model: &mut Model| model.space[0x40 / 4] = 0x0909_4009;
    assert_eq!(
        refused(circle),
        PciError::Missing("common"),
        "a list in a circle ends"
    );
    let short = |model: &mut Model| model.space[0x5c / 4] = 55;
    assert_eq!(refused(short), PciError::Missing("common"));
    let outside = |model: &mut Model| model.space[0x68 / 4] = 0x5001;
    assert_eq!(refused(outside), PciError::Missing("notify"));
}

#[test]
fn a_device_that_refuses_or_lacks_version_1_is_marked_failed() {
    let model = Model::new();
    model.borrow_mut().refuses = 0b1;
    let mut pci = driver(&model).unwrap();
    let accepted = VERSION_1 | 0b11;
    assert_eq!(
        pci.negotiate(0b11),
        Err(PciError::FeaturesRefused(accepted))
    );
    assert_eq!(pci.status() & status::FAILED, status::FAILED);

    let model = Model::new();
    model.borrow_mut().offered = 0b11;
    let mut pci = driver(&model).unwrap();
    assert_eq!(pci.negotiate(0b11), Err(PciError::Legacy));
    assert_eq!(pci.status() & status::FAILED, status::FAILED);
}

#[test]
fn a_reset_is_proven_only_when_the_status_reads_back_zero() {
    let model = Model::new();
    let mut pci = live(&model);
    let mut bed = Testbed::new(1 << 16);
    let options = QueueOptions::new(4, 0);
    let memory = bed.take(options.memory_len());
    let mut queue = Queue::<_, _>::new(options, memory, bed.window(), pci.id()).unwrap();
    let token = bed.take(8);
    let mut buffer = queue.start_buf(token, 1, 1).unwrap();
    buffer.add_bytes(|token| token, 0..8).unwrap();
    buffer.end_buf().unwrap();
    pci.set_up_queue(0, &queue.areas(), None).unwrap();

    model.borrow_mut().slow_reset = u32::MAX;
    assert_eq!(pci.reset().err(), Some(PciError::ResetStuck));
    model.borrow_mut().slow_reset = 50;
    let proof = pci.reset().unwrap();
    let mut back = 0;
    queue.reclaim(&proof, |_| back += 1).unwrap();
    assert_eq!(back, 1);
    log(&model);
    pci.notify(0);
    assert!(
        log(&model).is_empty(),
        "the queue is gone until it is set up again"
    );
}

#[test]
fn queues_that_do_not_fit_and_vectors_that_are_not_there_are_refused() {
    let model = Model::new();
    let mut pci = live(&model);
    let mut bed = Testbed::new(1 << 16);
    let areas = bed.queue::<()>(QueueOptions::new(16, 0)).areas();
    for (queue, size) in [(0, 16), (3, 16)] {
        let refused = pci.set_up_queue(queue, &areas, None);
        assert_eq!(refused, Err(PciError::NoQueue { queue, size }));
    }
    assert_eq!(
        pci.set_up_queue(1, &areas, Some(4)),
        Err(PciError::NoVector(4))
    );
    assert_eq!(pci.set_config_vector(Some(9)), Err(PciError::NoVector(9)));
    pci.set_config_vector(Some(1)).unwrap();
    assert_eq!(model.borrow().config_vector, 1);
    pci.set_config_vector(None).unwrap();
    assert_eq!(model.borrow().config_vector, NO_VECTOR);
}

#[test]
fn configuration_is_read_again_until_it_is_of_one_generation() {
    let model = Model::new();
    let mut pci = live(&model);
    let mut bytes = [0; 4];
    model.borrow_mut().unsteady = 6;
    pci.read_config(2, &mut bytes).unwrap();
    assert_eq!(bytes, [8, 9, 10, 11], "all of generation 6");
    model.borrow_mut().unsteady = u32::MAX;
    assert_eq!(pci.read_config(0, &mut bytes), Err(PciError::Unsteady));
    log(&model);
    pci.write_config(7, 1).unwrap();
    assert_eq!(log(&model), ["config 7 = 1"]);
}

#[test]
fn vectors_are_masked_until_they_are_set() {
    let model = Model::new();
    let mut pci = live(&model);
    let mut msix = pci.msix().unwrap();
    assert_eq!(msix.vectors(), 4);
    assert_eq!(
        model.borrow().space[0x94 / 4] >> 30,
        0b10,
        "enabled, function not masked"
    );
    assert!(
        [3, 7, 11, 15]
            .into_iter()
            .all(|word| model.borrow().msix[word] == 1)
    );
    assert!(msix.set(2, 0x1_fee0_0000, 0x42));
    assert_eq!(model.borrow().msix[8..12], [0xfee0_0000, 1, 0x42, 0]);
    msix.mask(2, true);
    assert_eq!(model.borrow().msix[11], 1);
    assert!(!msix.set(4, 0, 0));

    model.borrow_mut().space[0x94 / 4] = 0;
    assert_eq!(pci.msix().err(), Some(PciError::Missing("MSI-X")));
}

#[test]
fn a_device_without_configuration_says_so_and_one_that_gave_up_too() {
    let model = Model::new();
    model.borrow_mut().space[0x84 / 4] = 0x0510_9409;
    let mut pci = live(&model);
    assert_eq!(
        pci.read_config(0, &mut [0]),
        Err(PciError::Missing("device"))
    );
    assert_eq!(pci.write_config(0, 0), Err(PciError::Missing("device")));
    assert!(!pci.needs_reset());
    model.borrow_mut().status |= status::NEEDS_RESET;
    assert!(pci.needs_reset());
}

#[test]
fn mapped_registers_are_reached_in_range_and_aligned_only() {
    let registers = registers_in_memory(Box::leak(Box::new([0u32; 2])));
    registers.write32(0, 0x1122_3344);
    registers.write16(4, 0x5566);
    registers.write8(7, 0x77);
    assert_eq!(registers.read32(0), 0x1122_3344);
    assert_eq!((registers.read8(0), registers.read16(2)), (0x44, 0x1122));
    assert_eq!(registers.read32(4), 0x7700_5566);
    registers.write32(2, 1);
    registers.write32(8, 1);
    registers.write16(u64::MAX, 1);
    assert_eq!(
        (registers.read32(2), registers.read32(8)),
        (u32::MAX, u32::MAX)
    );
    assert_eq!(
        (registers.read16(7), registers.read8(8)),
        (u16::MAX, u8::MAX)
    );
    assert_eq!(registers.read32(4), 0x7700_5566);
}
