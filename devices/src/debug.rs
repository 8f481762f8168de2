//! `Debug` for types whose parts have none, or would only fill a page.

/// Implements `Debug` of a type: its name, and what tells its values apart.
macro_rules! opaque_debug {
    ($type:ident $(<$lifetime:lifetime>)? |$it:ident| { $($label:ident: $value:expr),* $(,)? }) => {
        impl ::core::fmt::Debug for $type $(<$lifetime>)? {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                let $it = self;
                let _ = $it;
                f.debug_struct(stringify!($type))
                    $(.field(stringify!($label), &$value))*
                    .finish_non_exhaustive()
            }
        }
    };
}

pub(crate) use opaque_debug;
