//! The primitive types of Kafka's wire format, read without copying and never beyond the bytes that are there.
//!
//! What is taken as leniently as Apache Kafka takes it, because clients rely on it: any negative length of a classic
//! string, bytes or array is null; any bool but 0 is true; a varint may be padded with zeros up to five bytes.
//! Source: the protocol guide of Apache Kafka and the message definitions in its client library, 4.3.

use std::fmt;

/// Why bytes are not the request that they claim to be. Such a connection can't be trusted further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// A field needs more bytes than are left.
    Truncated { needed_bytes: usize, left_bytes: usize },
    /// An unsigned varint goes on after its fifth byte or has more than 32 bits.
    Varint,
    /// Longer than Kafka allows a string to be.
    StringLength { len_bytes: usize },
    /// Apache Kafka reads such a string with replacement characters in it. But names of topics can't have those, and names of groups and
    /// members come back to the client in answers, where they would be others than it asked for.
    NotUtf8,
    /// Null where this version has no null.
    Null,
    /// An array of more elements than the bytes left can hold.
    Count { count: usize, left_bytes: usize },
    /// Well-formed, but its lists would take more memory than one request may.
    TooLarge { heap_bytes: usize },
    /// No request of this key and version is known here.
    Unsupported { api_key: i16, version: i16 },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Truncated { needed_bytes, left_bytes } => write!(f, "a field of {needed_bytes} bytes where {left_bytes} are left"),
            Self::Varint => f.write_str("an unsigned varint of more than 32 bits"),
            Self::StringLength { len_bytes } => write!(f, "a string of {len_bytes} bytes, the most is {STRING_MAX_BYTES}"),
            Self::NotUtf8 => f.write_str("a string that isn't UTF-8"),
            Self::Null => f.write_str("null in a field that can't be null"),
            Self::Count { count, left_bytes } => write!(f, "an array of {count} elements in {left_bytes} bytes"),
            Self::TooLarge { heap_bytes } => write!(f, "lists of more than {heap_bytes} bytes in memory"),
            Self::Unsupported { api_key, version } => write!(f, "no version {version} of API {api_key}"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// Walks over one message.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    left: &'a [u8],
    /// Of the API, not of the header.
    pub version: i16,
    /// Lengths are varints plus one, and every struct ends with tagged fields.
    pub flexible: bool,
    /// What the lists made from this message may still take.
    heap_left_bytes: usize,
}

impl<'a> Reader<'a> {
    pub fn new(message: &'a [u8], version: i16, flexible: bool) -> Reader<'a> {
        Reader { left: message, version, flexible, heap_left_bytes: HEAP_MAX_BYTES }
    }

    /// Everything that hasn't been read.
    pub fn left(&self) -> &'a [u8] {
        self.left
    }

    pub fn take(&mut self, len_bytes: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, left) =
            self.left.split_at_checked(len_bytes).ok_or(DecodeError::Truncated { needed_bytes: len_bytes, left_bytes: self.left.len() })?;
        self.left = left;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, left) = self.left.split_first_chunk().ok_or(DecodeError::Truncated { needed_bytes: N, left_bytes: self.left.len() })?;
        self.left = left;
        Ok(*taken)
    }

    pub fn unsigned_varint(&mut self) -> Result<u32, DecodeError> {
        let mut value = 0;
        for shift in [0, 7, 14, 21, 28] {
            let [byte] = self.array()?;
            let bits = u32::from(byte & 0x7f);
            if shift == 28 && byte > 0x0f {
                return Err(DecodeError::Varint);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        Ok(value)
    }

    /// The length of what follows, `None` for null. `short`: 16 bits in the classic encoding.
    fn length(&mut self, short: bool) -> Result<Option<usize>, DecodeError> {
        if self.flexible {
            return Ok((self.unsigned_varint()? as usize).checked_sub(1));
        }
        let length = if short { i32::from(i16::from_be_bytes(self.array()?)) } else { i32::from_be_bytes(self.array()?) };
        Ok(usize::try_from(length).ok())
    }

    pub fn string(&mut self) -> Result<Option<&'a str>, DecodeError> {
        self.string_bytes()?.map(|bytes| str::from_utf8(bytes).map_err(|_| DecodeError::NotUtf8)).transpose()
    }

    /// A string as far as it is UTF-8.
    pub fn text(&mut self) -> Result<Option<&'a str>, DecodeError> {
        Ok(self.string_bytes()?.map(|bytes| bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid())))
    }

    fn string_bytes(&mut self) -> Result<Option<&'a [u8]>, DecodeError> {
        let Some(len_bytes) = self.length(true)? else { return Ok(None) };
        if len_bytes > STRING_MAX_BYTES {
            return Err(DecodeError::StringLength { len_bytes });
        }
        self.take(len_bytes).map(Some)
    }

    pub fn bytes(&mut self) -> Result<Option<&'a [u8]>, DecodeError> {
        self.length(false)?.map(|len_bytes| self.take(len_bytes)).transpose()
    }

    /// The count of an array whose elements take at least `element_min_bytes` each, checked against the bytes left.
    pub fn count(&mut self, element_min_bytes: usize) -> Result<Option<usize>, DecodeError> {
        let Some(count) = self.length(false)? else { return Ok(None) };
        // Every element takes a byte at least, else a few bytes could ask for a list of any length.
        if count > self.left.len() / element_min_bytes.max(1) {
            return Err(DecodeError::Count { count, left_bytes: self.left.len() });
        }
        Ok(Some(count))
    }

    /// Passes over the tagged fields at the end of a struct. The only one that a served request knows is Fetch's cluster id,
    /// which no client sends.
    pub fn skip_tagged_fields(&mut self) -> Result<(), DecodeError> {
        if !self.flexible {
            return Ok(());
        }
        for _ in 0..self.unsigned_varint()? {
            self.unsigned_varint()?;
            let len_bytes = self.unsigned_varint()?;
            self.take(len_bytes as usize)?;
        }
        Ok(())
    }
}

/// A field type, or a struct of fields.
pub trait Decode<'a>: Sized {
    /// Fewest bytes that a value can take.
    fn min_bytes(version: i16, flexible: bool) -> usize;
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError>;
    /// For the field types that have a null in some versions only.
    fn is_null(&self) -> bool {
        false
    }
}

macro_rules! decode_integer {
    ($($integer:ty)*) => {$(
        impl Decode<'_> for $integer {
            fn min_bytes(_: i16, _: bool) -> usize {
                size_of::<$integer>()
            }

            fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                reader.array().map(<$integer>::from_be_bytes)
            }
        }
    )*};
}

decode_integer!(i8 i16 i32 i64);

impl Decode<'_> for bool {
    fn min_bytes(_: i16, _: bool) -> usize {
        1
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        reader.array().map(|[byte]| byte != 0)
    }
}

/// A topic's id.
pub type Uuid = [u8; 16];

impl Decode<'_> for Uuid {
    fn min_bytes(_: i16, _: bool) -> usize {
        16
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        reader.array()
    }
}

impl<'a> Decode<'a> for Option<&'a str> {
    fn min_bytes(_: i16, flexible: bool) -> usize {
        if flexible { 1 } else { 2 }
    }

    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        reader.string()
    }

    fn is_null(&self) -> bool {
        self.is_none()
    }
}

impl<'a> Decode<'a> for &'a str {
    fn min_bytes(version: i16, flexible: bool) -> usize {
        Option::<&str>::min_bytes(version, flexible)
    }

    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        reader.string()?.ok_or(DecodeError::Null)
    }
}

impl<'a> Decode<'a> for Option<&'a [u8]> {
    fn min_bytes(_: i16, flexible: bool) -> usize {
        if flexible { 1 } else { 4 }
    }

    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        reader.bytes()
    }

    fn is_null(&self) -> bool {
        self.is_none()
    }
}

impl<'a> Decode<'a> for &'a [u8] {
    fn min_bytes(version: i16, flexible: bool) -> usize {
        Option::<&[u8]>::min_bytes(version, flexible)
    }

    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        reader.bytes()?.ok_or(DecodeError::Null)
    }
}

impl<'a, T: Decode<'a>> Decode<'a> for Option<Vec<T>> {
    fn min_bytes(_: i16, flexible: bool) -> usize {
        if flexible { 1 } else { 4 }
    }

    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let Some(count) = reader.count(T::min_bytes(reader.version, reader.flexible))? else { return Ok(None) };
        reader.heap_left_bytes = count
            .checked_mul(size_of::<T>())
            .and_then(|heap_bytes| reader.heap_left_bytes.checked_sub(heap_bytes))
            .ok_or(DecodeError::TooLarge { heap_bytes: HEAP_MAX_BYTES })?;
        let mut list = Vec::with_capacity(count);
        for _ in 0..count {
            list.push(T::decode(reader)?);
        }
        Ok(Some(list))
    }

    fn is_null(&self) -> bool {
        self.is_none()
    }
}

impl<'a, T: Decode<'a>> Decode<'a> for Vec<T> {
    fn min_bytes(version: i16, flexible: bool) -> usize {
        Option::<Vec<T>>::min_bytes(version, flexible)
    }

    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Option::decode(reader)?.ok_or(DecodeError::Null)
    }
}

/// Kafka's own limit, for the encoding that has no limit of its own.
const STRING_MAX_BYTES: usize = i16::MAX as usize;

/// All lists of one decoded request together. Enough for 200,000 partitions in a Fetch; without it a request of empty names
/// would take sixteen times its length.
pub const HEAP_MAX_BYTES: usize = 8 << 20;
