//! What a command prints, declared once: fields, their order, their kinds.

use serde::Serialize;

/// How a field is shown to eyes. Programs get the value as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Text, a number or a yes or no, as it is.
    Text,
    /// Text of several lines.
    Lines,
    /// A number of bytes.
    Bytes,
    /// Milliseconds.
    Millis,
    /// RFC 3339.
    Time,
    /// A long hash; lists show its first twelve digits.
    Hash,
    /// Who: a name, or the fingerprint of a key, of which lists show the first sixteen characters.
    Person,
    /// Several texts.
    Many,
    /// Several texts, each on a line of its own.
    Lined,
}

/// A field of a [`Record`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Field {
    /// Its name in JSON, YAML and CSV.
    pub(crate) name: &'static str,
    /// How it is shown.
    pub(crate) kind: Kind,
    /// Whether lists show it to eyes.
    pub(crate) listed: bool,
}

/// Something that a command prints.
pub(crate) trait Record: Serialize {
    /// Its fields, in the order in which they are printed.
    const FIELDS: &'static [Field];
}

/// Declares a [`Record`]: `field: Type = Kind`, and `listed` behind it when tables of many show the field.
macro_rules! record {
    (@listed) => { false };
    (@listed listed) => { true };
    ($(#[$meta:meta])* $name:ident { $( $field:ident : $type:ty = $kind:ident $($listed:ident)? ),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
        pub(crate) struct $name { $( pub(crate) $field: $type ),* }

        impl $crate::output::Record for $name {
            const FIELDS: &'static [$crate::output::Field] = &[ $( $crate::output::Field {
                name: stringify!($field),
                kind: $crate::output::Kind::$kind,
                listed: $crate::output::record!(@listed $($listed)?),
            } ),* ];
        }
    };
}

pub(crate) use record;
