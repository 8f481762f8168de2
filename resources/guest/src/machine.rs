//! The machine that the guest runs on: boot parameters, PCI functions on bus 0, a clock.
//!
//! There is no firmware. The command line has the address of configuration space (`ecam=`), the
//! start of the addresses for BARs (`mmio=`) and the frequency of the time stamp counter
//! (`tsc-khz=`). BARs that firmware has placed are not moved.

#![expect(
    unsafe_code,
    reason = "boot parameters and registers are at addresses that the machine reports"
)]

use core::arch::x86_64::_rdtsc;
use core::ptr::NonNull;

use splitring_virtio::driver::{Mmio, PciFunction};

/// Offsets in the PVH start information (`xen/include/public/arch-x86/hvm/start_info.h`).
const START_INFO_CMDLINE: usize = 24;
/// Bytes of the command line that are read.
const CMDLINE_MAX: usize = 1024;
/// End of the addresses that the page tables of `entry.s` map.
const MAPPED: u64 = 1 << 32;

const COMMAND: u16 = 0x04;
const COMMAND_MEMORY: u32 = 1 << 1;
const COMMAND_MASTER: u32 = 1 << 2;
const BAR0: u16 = 0x10;
const BAR_64: u32 = 0b100;
const BAR_IO: u32 = 1;

/// The options on the command line.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    pub(crate) ecam: u64,
    pub(crate) mmio: u64,
    pub(crate) tsc_khz: u64,
    /// Duration of each timed loop in milliseconds.
    pub(crate) millis: u64,
    /// Run only the timed loops.
    pub(crate) only_timed: bool,
    /// Ring 0 runs natively, so that interrupts can be waited for.
    pub(crate) interrupts: bool,
}

impl Options {
    /// Reads the command line through the start information at `info`.
    ///
    /// # Safety
    ///
    /// `info` is the value that the PVH entry received in `ebx`.
    pub(crate) unsafe fn read(info: usize) -> Self {
        let mut bytes = [0; CMDLINE_MAX];
        // SAFETY: the boot protocol puts the address of the command line there, and it ends with a
        // zero.
        unsafe {
            let line =
                ((info + START_INFO_CMDLINE) as *const u64).read_unaligned() as usize as *const u8;
            for (at, byte) in bytes.iter_mut().enumerate() {
                *byte = line.add(at).read();
                if *byte == 0 {
                    break;
                }
            }
        }
        let line = core::str::from_utf8(&bytes).unwrap_or_default();
        let word = |key: &str| {
            line.trim_end_matches('\0')
                .split(' ')
                .find_map(|word| word.strip_prefix(key))
        };
        let number = |key: &str| word(key).and_then(parse);
        Self {
            ecam: number("ecam=").unwrap_or(0xb000_0000),
            mmio: number("mmio=").unwrap_or(0xc000_0000),
            tsc_khz: number("tsc-khz=").unwrap_or(1_000_000),
            millis: number("millis=").unwrap_or(1000),
            only_timed: word("tests=") == Some("off"),
            interrupts: word("interrupts=") == Some("on"),
        }
    }
}

fn parse(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Returns the time stamp counter.
pub(crate) fn ticks() -> u64 {
    // SAFETY: readable in ring 3 unless CR4.TSD is set, and `entry.s` does not set it.
    unsafe { _rdtsc() }
}

/// A range of free addresses for BARs.
pub(crate) struct Window {
    next: u64,
}

impl Window {
    pub(crate) fn new(options: &Options) -> Self {
        Self { next: options.mmio }
    }

    fn take(&mut self, len: u64) -> u64 {
        let start = self.next.next_multiple_of(len);
        self.next = start + len;
        start
    }
}

/// One PCI function on bus 0, with its BARs placed.
pub(crate) struct Function {
    config: *mut u32,
    bars: [Option<u64>; 6],
}

impl Function {
    /// Returns function 0 of every device that exists.
    pub(crate) fn all(options: &Options, window: &mut Window) -> impl Iterator<Item = Self> {
        let ecam = options.ecam;
        (0..32).filter_map(move |slot| {
            let mut function = Self {
                config: (ecam + (slot << 15)) as *mut u32,
                bars: [None; 6],
            };
            if function.read_config(0) & 0xffff != 0x1af4 {
                return None;
            }
            function.place(window);
            Some(function)
        })
    }

    /// Gives every memory BAR that has no address one below 4 GiB, then enables decoding.
    fn place(&mut self, window: &mut Window) {
        let command = self.read_config(COMMAND);
        self.write_config(COMMAND, command & !COMMAND_MEMORY);
        let mut bar = 0;
        while bar < 6 {
            let at = BAR0 + 4 * bar;
            let low = self.read_config(at);
            let wide = low & BAR_64 != 0;
            if low & BAR_IO == 0 {
                self.bars[bar as usize] = self.place_one(at, wide, window);
            }
            bar += 1 + u16::from(wide && low & BAR_IO == 0);
        }
        self.write_config(COMMAND, command | COMMAND_MEMORY | COMMAND_MASTER);
    }

    fn place_one(&mut self, at: u16, wide: bool, window: &mut Window) -> Option<u64> {
        let high = |this: &Self| {
            if wide {
                u64::from(this.read_config(at + 4)) << 32
            } else {
                0
            }
        };
        let now = high(self) | u64::from(self.read_config(at) & !0xf);
        self.write_config(at, u32::MAX);
        let size = u64::from((self.read_config(at) & !0xf).wrapping_neg());
        if size == 0 {
            return None;
        }
        let address = if now != 0 && now + size <= MAPPED {
            now
        } else {
            window.take(size.max(0x1000))
        };
        self.write_config(at, address as u32);
        if wide {
            self.write_config(at + 4, 0);
        }
        Some(address)
    }
}

// SAFETY: a BAR of this function is identity-mapped, and this is the function's only owner.
unsafe impl PciFunction for Function {
    type Registers = Mmio;

    fn read_config(&self, offset: u16) -> u32 {
        // SAFETY: the function's 4 KiB of configuration space are mapped, and offsets are smaller.
        unsafe {
            self.config
                .add(usize::from(offset & 0xffc) / 4)
                .read_volatile()
        }
    }

    fn write_config(&mut self, offset: u16, value: u32) {
        // SAFETY: as above.
        unsafe {
            self.config
                .add(usize::from(offset & 0xffc) / 4)
                .write_volatile(value)
        }
    }

    fn map_bar(&mut self, bar: u8, offset: u64, len: u64) -> Option<Mmio> {
        let start =
            NonNull::new((*self.bars.get(usize::from(bar))?.as_ref()? + offset) as *mut u8)?;
        // SAFETY: the BAR decodes these addresses, and nothing moves it.
        Some(unsafe { Mmio::new(start, len) })
    }
}
