//! The methods of a queue that every driver has.

/// Defines the methods for a type with a field `queue`.
macro_rules! queue_methods {
    () => {
        /// Makes submitted buffers visible to the device; see
        /// [`Queue::publish`](crate::driver::Queue::publish).
        #[inline]
        pub fn publish(&mut self) -> crate::driver::Kick {
            self.queue.publish()
        }

        /// Returns the addresses to pass to the device.
        pub fn areas(&self) -> crate::driver::QueueAreas {
            self.queue.areas()
        }

        /// Returns the number of buffers in flight.
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
