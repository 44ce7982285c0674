//! The language in which `requests.rs` is written.

/// Makes structs and their decoders from a list of fields in the order of the wire.
///
/// One line per field: name, type, the versions that have it (`3+`, `0-7`), then, where they apply, the first version in which
/// it can be null (`null 1+`, for an `Option` that isn't nullable in all its versions) and its value in versions
/// without it (`default -1`; else the type's own default).
macro_rules! schema {
    ($(
        $(#[$doc:meta])*
        $name:ident $(<$life:lifetime>)? $(= key $key:tt, versions $oldest:tt - $newest:tt, flexible $flexible:tt)? {$(
            $(#[$field_doc:meta])*
            $field:ident: $type:ty, $since:tt $(+)? $(- $until:tt)? $(, null $nullable:tt +)? $(, default $default:expr)?;
        )*}
    )*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name $(<$life>)? {$(
            $(#[$field_doc])*
            pub $field: $type,
        )*}

        impl<'a> Decode<'a> for $name $(<$life>)? {
            fn min_bytes(version: i16, flexible: bool) -> usize {
                let mut min_bytes = usize::from(flexible);
                $(if schema!(@has version, $since $($until)?) {
                    min_bytes += <$type as Decode>::min_bytes(version, flexible);
                })*
                let _ = version;
                min_bytes
            }

            fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
                $(let $field: $type = if schema!(@has reader.version, $since $($until)?) {
                    let value = <$type as Decode>::decode(reader)?;
                    $(if reader.version < $nullable && value.is_null() {
                        return Err(DecodeError::Null);
                    })?
                    value
                } else {
                    schema!(@default $($default)?)
                };)*
                reader.skip_tagged_fields()?;
                Ok(Self { $($field),* })
            }
        }

        schema!(@request [$name $(<$life>)?] $($key, $oldest, $newest, $flexible)?);
    )*};
    // A struct without a key is a part of a request.
    (@request $type:tt) => {};
    (@request [$($type:tt)*] $key:tt, $oldest:tt, $newest:tt, $flexible:tt) => {
        impl<'a> Request<'a> for $($type)* {
            const API_KEY: i16 = $key;
            const VERSIONS: RangeInclusive<i16> = $oldest..=$newest;
            const FLEXIBLE_SINCE: i16 = schema!(@flexible $flexible);
        }
    };
    (@has $version:expr, 0) => { true };
    (@has $version:expr, $since:tt) => { $version >= $since };
    (@has $version:expr, $since:tt $until:tt) => { ($since..=$until).contains(&$version) };
    (@default) => { Default::default() };
    (@default $default:expr) => { $default };
    (@flexible never) => { i16::MAX };
    (@flexible $since:tt) => { $since };
}

pub(super) use schema;
