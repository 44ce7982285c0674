//! A record as a document of a search engine, ready for a bulk request.

use std::borrow::Cow;
use std::fmt;
use std::io::Write;

use ringmain_client::ConsumedRecord;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::super::timestamp;

/// Where a document goes.
pub struct Place<'a> {
    pub topic: &'a str,
    pub index: &'a str,
    /// A document is only ever added, never replaced; what data streams ask for.
    pub creates: bool,
}

/// A record on its way: what it was, for the dead-letter topic, and what is sent.
#[derive(Clone, Debug)]
pub struct Document {
    pub partition_index: u32,
    pub offset: u64,
    pub timestamp_ms: i64,
    pub key: Option<Vec<u8>>,
    pub value: Vec<u8>,
    /// As the client encodes them.
    pub headers: Vec<u8>,
    /// The action and the document, each a line with its LF.
    pub lines: Vec<u8>,
}

impl Document {
    /// `None` for a record without a value: nothing to index.
    pub fn of(record: &ConsumedRecord<'_>, place: &Place<'_>) -> Option<Document> {
        let value = record.value?;
        let mut lines = Vec::with_capacity(value.len() + 160);
        let text = |text: &str| serde_json::Value::from(text);
        let id = id(place.topic, record.partition_index, record.offset);
        let action = if place.creates { "create" } else { "index" };
        // Writing to a Vec doesn't fail.
        let _ = writeln!(lines, "{{\"{action}\":{{\"_index\":{},\"_id\":{}}}}}", text(place.index), text(&id));
        source(record, value, &mut lines);
        lines.push(b'\n');
        Some(Document {
            partition_index: record.partition_index,
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            key: record.key.map(<[u8]>::to_vec),
            value: value.to_vec(),
            headers: record.headers.to_vec(),
            lines,
        })
    }

    /// Bytes that it keeps in memory, about.
    pub fn size_bytes(&self) -> usize {
        self.lines.len() + self.value.len() + self.headers.len() + self.key.as_ref().map_or(0, Vec::len) + size_of::<Document>()
    }
}

/// The same record has the same id for ever, so that a replay changes nothing.
pub fn id(topic: &str, partition_index: u32, offset: u64) -> String {
    format!("{topic}-{partition_index}-{offset}")
}

/// The document on one line. A JSON object stays as it is, number for number; only line ends between its parts become spaces and
/// a missing `@timestamp` is added. Anything else becomes `message`.
fn source(record: &ConsumedRecord<'_>, value: &[u8], out: &mut Vec<u8>) {
    let time = timestamp::format(record.timestamp_ms);
    let object = std::str::from_utf8(value).ok().and_then(|text| Some((text, serde_json::from_str::<Object>(text).ok()?)));
    if let Some((text, object)) = object {
        // Inside strings a line end is always escaped.
        let mut text = Cow::Borrowed(text.trim());
        if text.contains(['\n', '\r']) {
            text = Cow::Owned(text.replace(['\n', '\r'], " "));
        }
        if object.has_timestamp {
            out.extend_from_slice(text.as_bytes());
            return;
        }
        let _ = write!(out, "{{\"@timestamp\":\"{time}\"{}", if object.is_empty { "" } else { "," });
        out.extend_from_slice(&text.as_bytes()[1..]);
        return;
    }
    let message = String::from_utf8_lossy(value);
    let _ = write!(out, "{{\"@timestamp\":\"{time}\",\"message\":{}", serde_json::Value::from(message));
    if let Some(key) = record.key {
        let _ = write!(out, ",\"key\":{}", serde_json::Value::from(String::from_utf8_lossy(key)));
    }
    out.push(b'}');
}

/// What has to be known of a JSON object; its values are checked and passed over.
struct Object {
    has_timestamp: bool,
    is_empty: bool,
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut object = Object { has_timestamp: false, is_empty: true };
                while let Some((name, _)) = map.next_entry::<Cow<'de, str>, IgnoredAny>()? {
                    object.has_timestamp |= name == "@timestamp";
                    object.is_empty = false;
                }
                Ok(object)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(key: Option<&[u8]>, value: &[u8]) -> String {
        let record =
            ConsumedRecord { partition_index: 3, offset: 17, timestamp_ms: 1_795_258_165_042, key, value: Some(value), headers: b"" };
        let place = Place { topic: "t", index: "logs", creates: false };
        String::from_utf8(Document::of(&record, &place).unwrap().lines).unwrap()
    }

    fn check(value: &[u8], expected: &str) {
        assert_eq!(lines(None, value), format!("{{\"index\":{{\"_index\":\"logs\",\"_id\":\"t-3-17\"}}}}\n{expected}\n"));
    }

    #[test]
    fn object_stays_as_it_is_but_for_time_and_line_ends() {
        check(b"{}", r#"{"@timestamp":"2026-11-21T10:49:25.042Z"}"#);
        check(b" { } ", r#"{"@timestamp":"2026-11-21T10:49:25.042Z" }"#);
        check(
            b"{\n  \"n\": 12345678901234567890.10,\r\n  \"s\": \"a\\nb\"\n}\n",
            "{\"@timestamp\":\"2026-11-21T10:49:25.042Z\",   \"n\": 12345678901234567890.10,    \"s\": \"a\\nb\" }",
        );
        check(br#"{"a":{"@timestamp":1}}"#, r#"{"@timestamp":"2026-11-21T10:49:25.042Z","a":{"@timestamp":1}}"#);
        check(br#"{"@timestamp":5,"a":1}"#, r#"{"@timestamp":5,"a":1}"#);
        check(br#"{"\u0040timestamp":5}"#, r#"{"\u0040timestamp":5}"#);
    }

    #[test]
    fn anything_else_becomes_a_message() {
        for (value, message) in [
            (&b""[..], r#""""#),
            (b"plain \"text\"\n", r#""plain \"text\"\n""#),
            (b"{\"cut\":", r#""{\"cut\":""#),
            (b"{\"a\":1} {\"b\":2}", r#""{\"a\":1} {\"b\":2}""#),
            (b"[1]", r#""[1]""#),
            (b"5", r#""5""#),
            (b"null", r#""null""#),
            (b"{\"a\":\"\xff\"}", "\"{\\\"a\\\":\\\"\u{fffd}\\\"}\""),
        ] {
            check(value, &format!(r#"{{"@timestamp":"2026-11-21T10:49:25.042Z","message":{message}}}"#));
        }
        assert!(lines(Some(b"k\xff"), b"x").ends_with("\"message\":\"x\",\"key\":\"k\u{fffd}\"}\n"));
    }

    #[test]
    fn every_line_of_a_bulk_is_json_whatever_comes() {
        for value in [&b"{\"a\":[1,\n2]}"[..], b"{\"a\":\"\x01\"}", b"\r\n", &[b'['; 500], &b"{\"a\":".repeat(200)] {
            let lines = lines(Some(b"\n"), value);
            assert_eq!(lines.matches('\n').count(), 2);
            assert!(lines.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{lines}");
        }
    }
}
