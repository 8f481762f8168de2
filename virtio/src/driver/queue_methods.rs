//! What the drivers of all kinds of queues pass on to theirs as it is.

/// Defines those calls for a type with a `queue`.
macro_rules! queue_methods {
    () => {
        /// Shows the device what was handed in; see
        /// [`Queue::publish`](crate::driver::Queue::publish).
        #[inline]
        pub fn publish(&mut self) -> crate::driver::Kick {
            self.queue.publish()
        }

        /// What to tell the device about the queue.
        pub fn areas(&self) -> crate::driver::QueueAreas {
            self.queue.areas()
        }

        /// Buffers the device has.
        pub fn in_flight(&self) -> u16 {
            self.queue.in_flight()
        }

        /// See [`Queue::enable_interrupts`](crate::driver::Queue::enable_interrupts).
        #[must_use]
        pub fn enable_interrupts(&mut self) -> bool {
            self.queue.enable_interrupts()
        }

        /// See [`Queue::disable_interrupts`](crate::driver::Queue::disable_interrupts).
        pub fn disable_interrupts(&mut self) {
            self.queue.disable_interrupts();
        }
    };
}
