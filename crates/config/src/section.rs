//! How a section of the configuration is declared: verbatim keys, nothing unknown, zero values left out when written.

use serde::{Deserialize, Deserializer};

/// Declares a section. Each field is a key of the same name, or of the name before the arrow; its declaration order is the order of emission.
macro_rules! section {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $doc:literal])+ $($key:literal =>)? $field:ident: $kind:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $(
                $(#[doc = $doc])+
                $(#[serde(rename = $key)])?
                #[serde(deserialize_with = "crate::section::null_is_zero", skip_serializing_if = "crate::section::is_zero")]
                pub $field: $kind,
            )*
        }
    };
}
pub(crate) use section;

/// A key without a value leaves its zero value, as with stock readers.
pub(crate) fn null_is_zero<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Zero values are not written. A section that is present but empty is not zero: it is written as `{}`.
pub(crate) fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
