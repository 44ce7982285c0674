//! Kafka's requests, from bytes: bounded by the bytes that are there, and borrowing from them.
//!
//! `requests.rs` says field by field what a request is, `schema.rs` makes structs and decoders of that, `reader.rs` reads the types
//! of fields, and `produce.rs` walks over a Produce request without a list.

mod produce;
mod reader;
mod requests;
mod schema;
#[cfg(test)]
mod tests;

pub use produce::{ProduceHead, ProduceStep, ProduceWalk};
pub use reader::{Decode, DecodeError, HEAP_MAX_BYTES, Reader, Uuid};
pub use requests::*;

/// What stands before the body of every request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHeader<'a> {
    pub start: HeaderStart,
    pub client_id: Option<&'a str>,
}

/// The part of the header that is the same for all APIs and versions, unknown ones too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderStart {
    pub api_key: i16,
    pub api_version: i16,
    pub correlation_id: i32,
}

impl HeaderStart {
    /// `message`: the bytes after the length.
    pub fn read(message: &[u8]) -> Result<HeaderStart, DecodeError> {
        let mut reader = Reader::new(message, 1, false);
        Ok(HeaderStart {
            api_key: i16::decode(&mut reader)?,
            api_version: i16::decode(&mut reader)?,
            correlation_id: i32::decode(&mut reader)?,
        })
    }
}

impl<'a> RequestHeader<'a> {
    /// Reads the header of `message`, the bytes after the length; with it the body. Only for an API of [`APIS`]: how the header
    /// ends depends on it. A name that isn't UTF-8 counts up to where it is: it is only shown to people, and librdkafka sends whatever it was
    /// given. In a version that isn't known nothing is read behind the client's name, so that it can be refused.
    pub fn read(message: &'a [u8]) -> Result<(RequestHeader<'a>, &'a [u8]), DecodeError> {
        let start = HeaderStart::read(message)?;
        let unknown = DecodeError::Unsupported { api_key: start.api_key, version: start.api_version };
        let api = api(start.api_key).ok_or(unknown)?;
        // The client's name is in the classic encoding even where the fields behind it are tagged.
        let mut reader = Reader::new(&message[HEADER_START_BYTES..], start.api_version, false);
        let client_id = reader.text()?;
        reader.flexible = start.api_version >= api.flexible_since;
        if start.api_version <= api.newest {
            reader.skip_tagged_fields()?;
        }
        Ok((RequestHeader { start, client_id }, reader.left()))
    }
}

/// The API of a key, if it is known.
pub fn api(key: i16) -> Option<&'static Api> {
    APIS.iter().find(|api| api.key == key)
}

/// Where `part`, borrowed from `whole`, begins in it: for whoever must let go of the input and come back to it.
pub fn position_in(whole: &[u8], part: &[u8]) -> usize {
    let position = part.as_ptr().addr().wrapping_sub(whole.as_ptr().addr());
    assert!(position <= whole.len() && part.len() <= whole.len() - position, "a slice of another buffer");
    position
}

const HEADER_START_BYTES: usize = 8;
