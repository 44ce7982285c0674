//! What a bulk request's answer means for each document. Source: Elasticsearch's and OpenSearch's reference of `_bulk`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// What became of one document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Indexed,
    /// A document of this id was there, and only new ones were asked for.
    WasThere,
    /// It will never be taken: why.
    Rejected(String),
    /// Nothing is wrong with the document itself: why it wasn't taken now.
    Later(String),
}

/// What became of a whole request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// One verdict per document, in the order in which they were sent.
    Settled(Vec<Verdict>),
    /// Nobody knows, or nothing: send it again.
    Again(String),
    /// Send less at once.
    TooLarge(String),
    /// No use in trying again.
    Refused(String),
}

#[derive(Deserialize)]
struct Answer {
    items: Vec<BTreeMap<String, Item>>,
}

#[derive(Deserialize)]
struct Item {
    status: u16,
    #[serde(default)]
    error: Value,
}

/// Reads the answer to `document_count` documents.
pub fn outcome(status: u16, body: &[u8], document_count: usize) -> Outcome {
    match status {
        200 => settled(body, document_count),
        429 | 500.. => Outcome::Again(said(status, body)),
        413 => Outcome::TooLarge(said(status, body)),
        _ => Outcome::Refused(said(status, body)),
    }
}

fn settled(body: &[u8], document_count: usize) -> Outcome {
    let answer: Answer = match serde_json::from_slice(body) {
        Ok(answer) => answer,
        // Ids make it harmless to send what may have been taken already.
        Err(error) => return Outcome::Again(format!("an answer that isn't one to a bulk request ({error}): {}", quoted(body))),
    };
    if answer.items.len() != document_count {
        return Outcome::Again(format!("an answer about {} documents; {document_count} were sent", answer.items.len()));
    }
    let verdict = |item: &BTreeMap<String, Item>| match item.first_key_value() {
        Some((action, item)) => judge(action, item),
        None => Verdict::Later("an answer without a word about this document".into()),
    };
    Outcome::Settled(answer.items.iter().map(verdict).collect())
}

fn judge(action: &str, item: &Item) -> Verdict {
    let kind = item.error["type"].as_str().unwrap_or_default();
    match item.status {
        200..300 => Verdict::Indexed,
        409 if action == "create" => Verdict::WasThere,
        // 400 is also said when the index is the problem, which someone can put right.
        400 | 409 | 413 | 422 if !OF_THE_INDEX.contains(&kind) => Verdict::Rejected(reason(item.status, &item.error)),
        status => Verdict::Later(reason(status, &item.error)),
    }
}

fn reason(status: u16, error: &Value) -> String {
    let mut text = match error {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        error => {
            let part = |name: &str| error[name].as_str().unwrap_or_default();
            let mut text = format!("{}: {}", part("type"), part("reason"));
            let mut cause = &error["caused_by"];
            // Deeper than any engine goes.
            for _ in 0..8 {
                let Some(reason) = cause["reason"].as_str() else { break };
                text += "; ";
                text += reason;
                cause = &cause["caused_by"];
            }
            text
        }
    };
    text.truncate(text.floor_char_boundary(REASON_MAX_BYTES));
    format!("{status} {text}")
}

/// What an endpoint says beside a status that isn't 200.
fn said(status: u16, body: &[u8]) -> String {
    match serde_json::from_slice::<Value>(body) {
        Ok(value) if !value["error"].is_null() => reason(status, &value["error"]),
        _ => format!("{status} {}", quoted(body)),
    }
}

fn quoted(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(QUOTE_BYTES)]);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Errors with status 400 that say something about the index or the cluster, not about the document.
const OF_THE_INDEX: [&str; 3] = ["invalid_index_name_exception", "index_closed_exception", "validation_exception"];
/// A reason travels as a header of a record.
const REASON_MAX_BYTES: usize = 1 << 10;
const QUOTE_BYTES: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    fn item(action: &str, status: u16, error: &str) -> String {
        format!(r#"{{"{action}":{{"_id":"x","status":{status}{error}}}}}"#)
    }

    fn one(item: &str) -> Verdict {
        match outcome(200, format!(r#"{{"errors":true,"items":[{item}]}}"#).as_bytes(), 1) {
            Outcome::Settled(verdicts) => verdicts[0].clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn verdict_tells_the_document_from_its_circumstances() {
        assert_eq!(one(&item("index", 201, "")), Verdict::Indexed);
        assert_eq!(one(&item("index", 200, "")), Verdict::Indexed);
        assert_eq!(one(&item("create", 409, "")), Verdict::WasThere);
        let bad = r#","error":{"type":"mapper_parsing_exception","reason":"no number","caused_by":{"type":"x","reason":"'a'"}}"#;
        assert_eq!(one(&item("index", 400, bad)), Verdict::Rejected("400 mapper_parsing_exception: no number; 'a'".into()));
        assert_eq!(one(&item("index", 400, r#","error":"old words""#)), Verdict::Rejected("400 old words".into()));
        for (status, kind) in [
            (429, "es_rejected_execution_exception"),
            (503, "unavailable_shards_exception"),
            (403, "cluster_block_exception"),
            (404, "index_not_found_exception"),
            (400, "index_closed_exception"),
        ] {
            let error = format!(r#","error":{{"type":"{kind}","reason":"r"}}"#);
            assert_eq!(one(&item("index", status, &error)), Verdict::Later(format!("{status} {kind}: r")));
        }
    }

    #[test]
    fn request_is_sent_again_cut_or_given_up() {
        let again = |status, body: &str| assert!(matches!(outcome(status, body.as_bytes(), 1), Outcome::Again(_)), "{status} {body}");
        again(429, "");
        again(502, "<html>");
        again(200, "");
        again(200, "{}");
        again(200, r#"{"items":[]}"#);
        again(200, r#"{"items":[{"index":{"status":201}},{"index":{"status":201}}]}"#);
        assert_eq!(outcome(413, b"no", 1), Outcome::TooLarge("413 no".into()));
        let refused = br#"{"error":{"type":"security_exception","reason":"who are you"},"status":401}"#;
        assert_eq!(outcome(401, refused, 1), Outcome::Refused("401 security_exception: who are you".into()));
        assert_eq!(outcome(301, b"", 1), Outcome::Refused("301 ".into()));
    }

    #[test]
    fn reason_is_cut_between_characters() {
        let long = format!(r#","error":"{}""#, "é".repeat(5000));
        let Verdict::Rejected(reason) = one(&item("index", 400, &long)) else { panic!() };
        assert!(reason.len() <= 4 + REASON_MAX_BYTES && reason.ends_with('é'));
    }
}
