//! Chained setters for configurations, which are `#[non_exhaustive]`: a new key breaks nobody.

/// Defines a chained setter for each field that is listed, with a link to the field for its documentation:
/// `field: Type` takes a value, `field: into Type` what becomes one, and `some` before either wraps it in [`Some`].
#[doc(hidden)]
#[macro_export]
macro_rules! setters {
    () => {};
    ($field:ident: some into $type:ty; $($rest:tt)*) => {
        $crate::setters!(@ $field: impl Into<$type>, Some($field.into()));
        $crate::setters!($($rest)*);
    };
    ($field:ident: some $type:ty; $($rest:tt)*) => {
        $crate::setters!(@ $field: $type, Some($field));
        $crate::setters!($($rest)*);
    };
    ($field:ident: into $type:ty; $($rest:tt)*) => {
        $crate::setters!(@ $field: impl Into<$type>, $field.into());
        $crate::setters!($($rest)*);
    };
    ($field:ident: $type:ty; $($rest:tt)*) => {
        $crate::setters!(@ $field: $type, $field);
        $crate::setters!($($rest)*);
    };
    (@ $field:ident: $type:ty, $value:expr) => {
        #[doc = concat!("Sets [`", stringify!($field), "`](Self#structfield.", stringify!($field), ").")]
        #[must_use]
        pub fn $field(mut self, $field: $type) -> Self {
            self.$field = $value;
            self
        }
    };
}
