//! Piecewise construction of a buffer, after the RFC of February 2013 ("virtio: new API for
//! addition of buffers, scatterlist changes", Paolo Bonzini): `start_buf`, any number of `add_sg`,
//! `end_buf`.
//!
//! ```
//! # use splitring_virtio::driver::{DeviceId, DmaBytes, Kick, Queue, QueueOptions, Refused};
//! # use splitring_virtio::scatterlist::ScatterList;
//! struct Request {
//!     header: ScatterList,
//!     data: ScatterList,
//! }
//!
//! fn submit(
//!     queue: &mut Queue<Request>,
//!     request: Request,
//! ) -> Result<Kick, Box<dyn core::error::Error>> {
//!     let mut buffer = queue.start_buf(request, 3, 2).map_err(|refused| refused.why)?;
//!     buffer.add_sg(|request| &request.header, 1)?;
//!     let mut buffer = buffer.writable();
//!     buffer.add_sg(|request| &request.data, 2)?;
//!     buffer.end_buf().map_err(|refused| refused.why)?;
//!     Ok(queue.publish())
//! }
//! # let device = DeviceId::new();
//! # let options = QueueOptions::new(4, 0);
//! # let memory = DmaBytes::zeroed(options.memory_len(), 64).unwrap();
//! # let mut queue = Queue::new(options, memory, splitring_virtio::driver::Identity, &device)?;
//! # let piece = || DmaBytes::from(vec![0; 16]);
//! # let request = Request {
//! #     header: ScatterList::from(piece()),
//! #     data: ScatterList::from_buffers([piece(), piece()]),
//! # };
//! # assert_eq!(submit(&mut queue, request)?, Kick::Needed);
//! # Ok::<(), Box<dyn core::error::Error>>(())
//! ```
//!
//! Differences from the RFC, and the reasons:
//! - Lists are selected from the token, which the queue keeps: the memory that the device may use
//!   is owned, so that no borrow can end while it is in use. A list from elsewhere does not
//!   compile:
//!   ```compile_fail
//!   # use splitring_virtio::driver::Queue;
//!   # use splitring_virtio::scatterlist::ScatterList;
//!   fn lends(queue: &mut Queue<ScatterList>, token: ScatterList, other: &ScatterList) {
//!       let mut buffer = queue.start_buf(token, 2, 2).unwrap_or_else(|_| todo!());
//!       let _ = buffer.add_sg(|_| other, 1);
//!   }
//!   ```
//! - Device-readable lists come before writable ones (section 2.7.4.2) by type. This compiles:
//!   ```
//!   # use splitring_virtio::driver::Queue;
//!   # use splitring_virtio::scatterlist::ScatterList;
//!   fn readable_then_writable(queue: &mut Queue<ScatterList>, token: ScatterList) {
//!       let mut buffer = queue.start_buf(token, 2, 2).unwrap_or_else(|_| todo!());
//!       let _ = buffer.add_sg(|token| token, 1);
//!       let writable = buffer.writable();
//!   }
//!   ```
//!   and this, with two lines exchanged, does not:
//!   ```compile_fail,E0382
//!   # use splitring_virtio::driver::Queue;
//!   # use splitring_virtio::scatterlist::ScatterList;
//!   fn readable_after_writable(queue: &mut Queue<ScatterList>, token: ScatterList) {
//!       let mut buffer = queue.start_buf(token, 2, 2).unwrap_or_else(|_| todo!());
//!       let writable = buffer.writable();
//!       let _ = buffer.add_sg(|token| token, 1);
//!   }
//!   ```
//! - Adding can fail, and dropping a buffer instead of ending it aborts it: it is not in the
//!   queue's accounting before `end_buf`.
//! - `end_buf` exposes nothing; one `publish` exposes any number of buffers, and its result,
//!   whether to notify the device, must be used:
//!   ```
//!   #![deny(unused_must_use)]
//!   # use splitring_virtio::driver::Queue;
//!   fn kicks(queue: &mut Queue<()>, notify: impl FnOnce()) {
//!       queue.publish().send(notify);
//!   }
//!   ```
//!   ```compile_fail
//!   #![deny(unused_must_use)]
//!   # use splitring_virtio::driver::Queue;
//!   fn forgets_to_kick(queue: &mut Queue<()>, notify: impl FnOnce()) {
//!       queue.publish();
//!   }
//!   ```

use core::marker::PhantomData;
use core::ops::Range;

use super::accounting::Closed;
use super::engine::QueueCore;
pub use super::error::{AddError, Refusal, Refused};
use super::open::OpenBuffer;
use super::queue::{InFlightTable, Queue, Ticket};
use crate::mem::dma::{Direction, DmaBuf, DmaMap};
use crate::scatterlist::ScatterList;

/// State of a [`Builder`] that adds device-readable lists.
#[derive(Debug)]
pub enum Readable {}

/// State of a [`Builder`] that adds device-writable lists.
#[derive(Debug)]
pub enum Writable {}

/// The direction of the lists that a [`Builder`] adds.
pub trait State: sealed::Sealed {}
impl State for Readable {}
impl State for Writable {}

mod sealed {
    use crate::mem::dma::Direction;

    pub trait Sealed {
        const DIRECTION: Direction;
    }

    impl Sealed for super::Readable {
        const DIRECTION: Direction = Direction::Readable;
    }

    impl Sealed for super::Writable {
        const DIRECTION: Direction = Direction::Writable;
    }
}

/// A buffer under construction. Dropping it aborts the buffer, of which the queue keeps nothing.
#[must_use = "a buffer that is not ended is abandoned"]
pub struct Builder<'q, T: 'static, M: DmaMap, S: State = Readable> {
    // Dropped before the token: unmaps memory that the token owns.
    open: OpenBuffer<'q, M>,
    in_flight: &'q mut InFlightTable<T>,
    token: T,
    state: PhantomData<S>,
}

impl<'q, T: 'static, M: DmaMap, S: State> Builder<'q, T, M, S> {
    /// Appends a list that the token owns: its segments in order, through links to further lists,
    /// up to its end marker or until there were `nents`. Returns how many there were.
    ///
    /// # Errors
    /// See [`AddError`]. The buffer is poisoned: `end_buf` refuses it.
    #[inline(always)]
    pub fn add_sg<B: DmaBuf>(
        &mut self,
        pick: impl FnOnce(&T) -> &ScatterList<B>,
        nents: usize,
    ) -> Result<usize, AddError> {
        self.open.list(pick(&self.token), nents, S::DIRECTION)
    }

    /// Appends a range of one memory buffer that the token owns. It counts as a list.
    ///
    /// # Errors
    /// As [`add_sg`](Self::add_sg).
    #[inline(always)]
    pub fn add_bytes<B: DmaBuf>(
        &mut self,
        pick: impl FnOnce(&T) -> &B,
        range: Range<usize>,
    ) -> Result<(), AddError> {
        self.open.part(pick(&self.token), range, S::DIRECTION)
    }

    /// Appends any number of lists and ranges in one call: `add` gets the token and an object to
    /// which it adds the token's lists.
    ///
    /// # Errors
    /// The error of `add`; the buffer is poisoned.
    #[inline(always)]
    pub fn add_all(
        &mut self,
        add: impl for<'t> FnOnce(&'t T, &mut Parts<'_, '_, 't, M>) -> Result<(), AddError>,
    ) -> Result<(), AddError> {
        let mut parts = Parts {
            open: &mut self.open,
            direction: S::DIRECTION,
            token: PhantomData,
        };
        let added = add(&self.token, &mut parts);
        if let Err(error) = added {
            self.open.poison(error);
        }
        added
    }

    /// Returns the number of segments that may still be added.
    pub fn room(&self) -> usize {
        self.open.room()
    }

    /// Ends the buffer and adds it to the available ring. The device does not see it before
    /// [`Queue::publish`]. It may have fewer segments than announced.
    ///
    /// # Errors
    /// The buffer has no segment, or adding one failed. Returns the token; the buffer is aborted.
    #[inline(always)]
    pub fn end_buf(self) -> Result<Ticket, Refused<T>> {
        match self.open.close() {
            Ok(closed) => Ok(self.in_flight.enter(closed, self.token)),
            Err(why) => Err(Refused {
                token: self.token,
                why,
            }),
        }
    }

    /// Aborts the buffer and returns the token.
    pub fn abort(self) -> T {
        self.token
    }
}

impl<'q, T: 'static, M: DmaMap> Builder<'q, T, M, Readable> {
    /// Continues with device-writable lists. Readable ones can't be added afterwards.
    #[inline(always)]
    pub fn writable(self) -> Builder<'q, T, M, Writable> {
        Builder {
            open: self.open,
            in_flight: self.in_flight,
            token: self.token,
            state: PhantomData,
        }
    }
}

/// Adds lists in [`Builder::add_all`]: only those that the token owns, for `'t`.
pub struct Parts<'p, 'q, 't, M: DmaMap> {
    open: &'p mut OpenBuffer<'q, M>,
    direction: Direction,
    // Invariant: a shorter 't would allow lists that are borrowed from elsewhere.
    token: PhantomData<fn(&'t ()) -> &'t ()>,
}

impl<'t, M: DmaMap> Parts<'_, '_, 't, M> {
    /// Appends a list, as [`Builder::add_sg`].
    ///
    /// # Errors
    /// As there.
    #[inline(always)]
    pub fn sg<B: DmaBuf>(
        &mut self,
        list: &'t ScatterList<B>,
        nents: usize,
    ) -> Result<usize, AddError> {
        self.open.list(list, nents, self.direction)
    }

    /// Appends a range of one piece of memory, as [`Builder::add_bytes`].
    ///
    /// # Errors
    /// As there.
    #[inline(always)]
    pub fn bytes<B: DmaBuf>(&mut self, buffer: &'t B, range: Range<usize>) -> Result<(), AddError> {
        self.open.part(buffer, range, self.direction)
    }
}

impl<M: DmaMap> OpenBuffer<'_, M> {
    /// Appends segments; there must be exactly `count`.
    fn exactly<'b, B: DmaBuf>(
        &mut self,
        segments: impl Iterator<Item = &'b B>,
        count: usize,
        direction: Direction,
    ) -> Result<(), AddError> {
        let added = self.segments(segments.take(count), direction)?;
        if added == count {
            Ok(())
        } else {
            Err(AddError::TooShort)
        }
    }
}

impl<M: DmaMap> QueueCore<M> {
    /// Builds a buffer from one list, whose first `outs` segments are readable and the next `ins`
    /// writable.
    fn build_buf<B: DmaBuf>(
        &mut self,
        list: &ScatterList<B>,
        outs: usize,
        ins: usize,
    ) -> Result<Closed, Refusal> {
        let mut open = self.open(outs.saturating_add(ins), 2)?;
        open.exactly(list.iter(), outs, Direction::Readable)?;
        open.exactly(list.iter().skip(outs), ins, Direction::Writable)?;
        open.close()
    }

    /// Builds a buffer from lists up to their end markers, the first `outs` readable, the others
    /// writable.
    fn build_sgs<B: DmaBuf>(
        &mut self,
        lists: &[&ScatterList<B>],
        outs: usize,
    ) -> Result<Closed, Refusal> {
        let count = lists.iter().map(|list| list.segments()).sum();
        let mut open = self.open(count, lists.len())?;
        for (index, list) in lists.iter().enumerate() {
            let direction = if index < outs {
                Direction::Readable
            } else {
                Direction::Writable
            };
            open.list(list, usize::MAX, direction)?;
        }
        open.close()
    }
}

impl<T: 'static, M: DmaMap> Queue<T, M> {
    /// Opens a buffer of up to `count` segments from up to `lists` lists, and decides whether it
    /// uses the ring or an indirect table. `token` owns the memory; the queue keeps it once the
    /// buffer is ended.
    ///
    /// # Errors
    /// See [`Refusal`]; returns the token.
    #[inline(always)]
    pub fn start_buf(
        &mut self,
        token: T,
        count: usize,
        lists: usize,
    ) -> Result<Builder<'_, T, M>, Refused<T>> {
        let Self {
            core, in_flight, ..
        } = self;
        match core.open(count, lists) {
            Ok(open) => Ok(Builder {
                open,
                in_flight,
                token,
                state: PhantomData,
            }),
            Err(why) => Err(Refused { token, why }),
        }
    }

    /// Adds a buffer from one list of the token: `outs` device-readable segments, then `ins`
    /// device-writable ones (`virtqueue_add_buf`).
    ///
    /// # Errors
    /// See [`Refusal`]; returns the token.
    pub fn add_buf<B: DmaBuf>(
        &mut self,
        token: T,
        outs: usize,
        ins: usize,
        pick: impl FnOnce(&T) -> &ScatterList<B>,
    ) -> Result<Ticket, Refused<T>> {
        let built = self.core.build_buf(pick(&token), outs, ins);
        self.enter(built, token)
    }

    /// Adds a buffer from several lists of the token, each up to its end marker: the first `outs`
    /// are device-readable, the others device-writable (`virtqueue_add_sgs`).
    ///
    /// # Errors
    /// See [`Refusal`]; returns the token.
    pub fn add_sgs<B: DmaBuf, const N: usize>(
        &mut self,
        token: T,
        outs: usize,
        pick: impl for<'t> FnOnce(&'t T) -> [&'t ScatterList<B>; N],
    ) -> Result<Ticket, Refused<T>> {
        let built = self.core.build_sgs(&pick(&token), outs);
        self.enter(built, token)
    }

    /// Adds `nents` device-readable segments of one list (`virtqueue_add_outbuf`).
    ///
    /// # Errors
    /// See [`Refusal`]; returns the token.
    pub fn add_outbuf<B: DmaBuf>(
        &mut self,
        token: T,
        nents: usize,
        pick: impl FnOnce(&T) -> &ScatterList<B>,
    ) -> Result<Ticket, Refused<T>> {
        self.add_buf(token, nents, 0, pick)
    }

    /// Adds `nents` device-writable segments of one list (`virtqueue_add_inbuf`).
    ///
    /// # Errors
    /// See [`Refusal`]; returns the token.
    pub fn add_inbuf<B: DmaBuf>(
        &mut self,
        token: T,
        nents: usize,
        pick: impl FnOnce(&T) -> &ScatterList<B>,
    ) -> Result<Ticket, Refused<T>> {
        self.add_buf(token, 0, nents, pick)
    }

    fn enter(&mut self, built: Result<Closed, Refusal>, token: T) -> Result<Ticket, Refused<T>> {
        match built {
            Ok(closed) => Ok(self.in_flight.enter(closed, token)),
            Err(why) => Err(Refused { token, why }),
        }
    }
}
