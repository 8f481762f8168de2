//! Log lines that a guest can cause.
//!
//! Whatever runs because of something a guest or its peers did logs through these macros: `error!`, `warn!`, `info!`
//! and `debug!` take a [`Throttle`](crate::throttle::Throttle) and then what `tracing`'s macros of the same name
//! take. A line that gets through says how many were suppressed before it. The throttle belongs to the device or
//! the queue that the line is about, so that no device hides another's. `tests/tests/layering.rs` finds lines that go
//! around it.

/// Logs at `$level` if `$throttle` lets it; a level that is off costs the throttle nothing.
macro_rules! limited {
    ($level:ident, $throttle:expr, $($line:tt)+) => {
        if ::tracing::enabled!(::tracing::Level::$level)
            && let Some(suppressed) = $throttle.admit()
        {
            let suppressed = (suppressed > 0).then_some(suppressed);
            ::tracing::event!(::tracing::Level::$level, suppressed, $($line)+);
        }
    };
}

macro_rules! limited_error {
    ($($line:tt)+) => { $crate::log::limited!(ERROR, $($line)+) };
}

// Plain `warn` would clash with the attribute of that name.
macro_rules! limited_warn {
    ($($line:tt)+) => { $crate::log::limited!(WARN, $($line)+) };
}

macro_rules! limited_info {
    ($($line:tt)+) => { $crate::log::limited!(INFO, $($line)+) };
}

macro_rules! limited_debug {
    ($($line:tt)+) => { $crate::log::limited!(DEBUG, $($line)+) };
}

pub(crate) use {
    limited, limited_debug as debug, limited_error as error, limited_info as info,
    limited_warn as warn,
};

#[cfg(test)]
mod tests {
    use crate::log;
    use crate::testing::logged;
    use crate::throttle::Throttle;

    #[test]
    fn a_flood_of_lines_is_cut_and_a_line_that_gets_through_says_how_many_were_not() {
        let throttle = Throttle::default();
        let flood = || {
            for number in 0..1000 {
                log::warn!(throttle, device = "blk0", "line {number}");
            }
        };
        let lines = logged(flood);
        assert_eq!(lines.len(), 5, "{lines:?}");
        assert!(lines[0].contains("line 0 device=\"blk0\""), "{lines:?}");
        std::thread::sleep(std::time::Duration::from_millis(1100));
        let lines = logged(flood);
        assert!(lines[0].contains("suppressed=995"), "{lines:?}");
    }

    #[test]
    fn a_level_that_is_off_leaves_the_throttle_alone() {
        let throttle = Throttle::default();
        let quiet = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN);
        tracing::subscriber::with_default(quiet.finish(), || {
            for _ in 0..1000 {
                log::debug!(throttle, "nobody reads this");
            }
        });
        assert_eq!(throttle.admit(), Some(0));
    }
}
