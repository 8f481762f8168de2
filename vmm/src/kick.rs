#![expect(
    unsafe_code,
    reason = "a signal handler writes immediate_exit of its own thread's kvm_run; pthread_kill of a live thread"
)]
//! Interrupts vCPU threads in the guest, and a console's thread in a system call.
//!
//! A real-time signal whose handler sets `immediate_exit` in the `kvm_run` of the thread it arrives
//! on: wherever the signal arrives (before, in or after KVM_RUN), the next KVM_RUN returns. The
//! signal handler is the only thing that this library installs in the process, once; an embedder
//! that uses the default signal itself chooses another one.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr;
use std::sync::{Mutex, OnceLock, PoisonError};

use kvm_ioctls::VcpuFd;
use splitring_devices::kind::ErrorKind;
use vmm_sys_util::signal::{SIGRTMAX, SIGRTMIN, register_signal_handler};

/// Why the kick signal can't be installed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KickError {
    /// There is no such real-time signal.
    #[error("kick signal SIGRTMIN+{offset} does not exist: the last one is SIGRTMIN+{last}")]
    Range {
        /// The requested offset.
        offset: i32,
        /// The largest offset.
        last: i32,
    },
    /// Another signal was chosen before, or the default one is in use.
    #[error(
        "the kick signal is SIGRTMIN+{installed} already: choose it before the first console is opened or machine is built"
    )]
    Installed {
        /// The offset in use.
        installed: i32,
    },
    /// sigaction failed.
    #[error("cannot install the handler of the kick signal: {0}")]
    Install(std::io::Error),
}

impl KickError {
    /// Returns what kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Range { .. } => ErrorKind::Config,
            Self::Installed { .. } => ErrorKind::State,
            Self::Install(_) => ErrorKind::Limit,
        }
    }
}

static INSTALLED: OnceLock<i32> = OnceLock::new();
static INSTALLING: Mutex<()> = Mutex::new(());

/// Chooses SIGRTMIN+`offset` as the signal that interrupts vCPU threads. The default is SIGRTMIN.
/// Call it before the first console of the process is opened and the first machine is built.
///
/// # Errors
/// There is no such signal, another one is in use, or sigaction fails.
pub fn set_kick_signal(offset: i32) -> Result<(), KickError> {
    let last = SIGRTMAX() - SIGRTMIN();
    if !(0..=last).contains(&offset) {
        return Err(KickError::Range { offset, last });
    }
    let _guard = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    match INSTALLED.get() {
        Some(&installed) if installed == offset => Ok(()),
        Some(&installed) => Err(KickError::Installed { installed }),
        None => {
            register_signal_handler(SIGRTMIN() + offset, on_kick).map_err(|error| {
                KickError::Install(std::io::Error::from_raw_os_error(error.errno()))
            })?;
            INSTALLED.get_or_init(|| offset);
            Ok(())
        }
    }
}

/// Installs the default signal unless one was chosen.
pub(crate) fn ensure_installed() -> Result<(), KickError> {
    match INSTALLED.get() {
        Some(_) => Ok(()),
        None => match set_kick_signal(0) {
            // Another thread installed it first.
            Err(KickError::Installed { .. }) => Ok(()),
            other => other,
        },
    }
}

/// Blocks every signal on the calling thread except the kick signal and SIGTTOU. The process's
/// other signals go to other threads, and a write to a closed pipe or beyond a limit returns an
/// error, whatever the process does with SIGPIPE and SIGXFSZ. SIGTTOU stops a background job if the
/// terminal is configured so (`stty tostop`).
pub(crate) fn block_other_signals() {
    let kick = SIGRTMIN() + INSTALLED.get().copied().unwrap_or(0);
    // SAFETY: the set is filled before it is used; every signal number exists.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        for signal in [kick, libc::SIGTTOU] {
            libc::sigdelset(&raw mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut());
    }
}

thread_local! {
    /// This thread's `kvm_run.immediate_exit`; null while it runs no vCPU. Const-initialised and
    /// without destructor, so that a signal handler may read it.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: the pointer is set only by `Kicks::register_vcpu` on this thread, to a byte of
        // the vCPU's mapping, and cleared before the mapping can be dropped.
        unsafe { flag.write_volatile(1) };
    }
}

/// The registration of the calling thread, until drop. Not `Send`: it belongs to this thread.
pub(crate) struct KickRegistration<'a> {
    kicks: &'a Kicks,
    thread: libc::pthread_t,
    not_send: PhantomData<*const ()>,
}

/// The threads of one machine that can be kicked.
#[derive(Debug, Default)]
pub(crate) struct Kicks(Mutex<Vec<libc::pthread_t>>);

impl Kicks {
    /// Registers the calling thread, which is about to run `vcpu`. The registration must be dropped
    /// before the vCPU.
    pub(crate) fn register_vcpu(&self, vcpu: &mut VcpuFd) -> KickRegistration<'_> {
        IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
        unblock();
        // SAFETY: no argument, cannot fail.
        let thread = unsafe { libc::pthread_self() };
        self.threads().push(thread);
        KickRegistration {
            kicks: self,
            thread,
            not_send: PhantomData,
        }
    }

    /// Registers the calling thread, which runs no vCPU: a kick interrupts the system call it is in.
    pub(crate) fn register_thread(&self) -> KickRegistration<'_> {
        // SAFETY: no argument, cannot fail.
        let thread = unsafe { libc::pthread_self() };
        self.threads().push(thread);
        KickRegistration {
            kicks: self,
            thread,
            not_send: PhantomData,
        }
    }

    /// Interrupts every registered thread.
    pub(crate) fn kick_all(&self) {
        let Some(offset) = INSTALLED.get() else {
            return;
        };
        for &thread in self.threads().iter() {
            // SAFETY: a registered thread is alive: it removes itself from this list, under the
            // lock held here, before it ends.
            unsafe { libc::pthread_kill(thread, SIGRTMIN() + offset) };
        }
    }

    fn threads(&self) -> std::sync::MutexGuard<'_, Vec<libc::pthread_t>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Unblocks the kick signal on the calling thread. It inherited the signal mask of the thread that
/// started the machine, and programs that read signals from a descriptor block all of them.
fn unblock() {
    let Some(offset) = INSTALLED.get() else {
        return;
    };
    // SAFETY: the set is initialised by sigemptyset before it is used, and lives across the calls; a
    // signal number in range cannot be refused.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, SIGRTMIN() + offset);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut());
    }
}

impl Drop for KickRegistration<'_> {
    fn drop(&mut self) {
        self.kicks.threads().retain(|&thread| thread != self.thread);
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}
