//! Settings of topics by the names that Kafka's clients know: those that have an effect here, and those that are only kept.

use ringmain_wire::control::{AlterTopic, Cleanup, Durability, NoteChange, TopicConfig, TopicNote};
use ringmain_wire::{DEFAULT_MAX_MESSAGE_BYTES, MAX_MESSAGE_BYTES_LIMIT};

/// What a value is; numbers as Kafka has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bool = 1,
    Text = 2,
    Int = 3,
    Long = 5,
    Double = 6,
    List = 7,
}

/// One setting.
pub struct Setting {
    pub name: &'static str,
    pub kind: Kind,
    /// When nobody has set it.
    pub default: &'static str,
    effect: Effect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Cleanup,
    RetentionMs,
    RetentionBytes,
    MaxMessageBytes,
    TimestampType,
    Durability,
    /// Kept and given back.
    None,
    /// What it would switch on isn't there.
    MustBe(&'static str),
}

const fn setting(name: &'static str, kind: Kind, default: &'static str, effect: Effect) -> Setting {
    Setting { name, kind, default, effect }
}

const NEVER: &str = "9223372036854775807";

/// All of them, in order of name.
pub const SETTINGS: &[Setting] = &[
    setting("cleanup.policy", Kind::List, "delete", Effect::Cleanup),
    setting("compression.type", Kind::Text, "producer", Effect::None),
    setting("delete.retention.ms", Kind::Long, "86400000", Effect::None),
    setting("file.delete.delay.ms", Kind::Long, "60000", Effect::None),
    setting("flush.messages", Kind::Long, NEVER, Effect::None),
    setting("flush.ms", Kind::Long, NEVER, Effect::None),
    setting("follower.replication.throttled.replicas", Kind::List, "", Effect::None),
    setting("index.interval.bytes", Kind::Int, "4096", Effect::None),
    setting("leader.replication.throttled.replicas", Kind::List, "", Effect::None),
    setting("local.retention.bytes", Kind::Long, "-2", Effect::None),
    setting("local.retention.ms", Kind::Long, "-2", Effect::None),
    setting("max.compaction.lag.ms", Kind::Long, NEVER, Effect::None),
    setting("max.message.bytes", Kind::Int, "1048576", Effect::MaxMessageBytes),
    setting("message.timestamp.after.max.ms", Kind::Long, NEVER, Effect::None),
    setting("message.timestamp.before.max.ms", Kind::Long, NEVER, Effect::None),
    setting("message.timestamp.type", Kind::Text, "CreateTime", Effect::TimestampType),
    setting("min.cleanable.dirty.ratio", Kind::Double, "0.5", Effect::None),
    setting("min.compaction.lag.ms", Kind::Long, "0", Effect::None),
    setting("min.insync.replicas", Kind::Int, "1", Effect::None),
    setting("preallocate", Kind::Bool, "false", Effect::None),
    setting("remote.storage.enable", Kind::Bool, "false", Effect::MustBe("false")),
    setting("retention.bytes", Kind::Long, "-1", Effect::RetentionBytes),
    setting("retention.ms", Kind::Long, "-1", Effect::RetentionMs),
    setting("ringmain.durability", Kind::Text, "durable", Effect::Durability),
    setting("segment.bytes", Kind::Int, "1073741824", Effect::None),
    setting("segment.index.bytes", Kind::Int, "10485760", Effect::None),
    setting("segment.jitter.ms", Kind::Long, "0", Effect::None),
    setting("segment.ms", Kind::Long, "604800000", Effect::None),
    setting("unclean.leader.election.enable", Kind::Bool, "false", Effect::None),
];
const _: () = assert!(DEFAULT_MAX_MESSAGE_BYTES == 1_048_576);

/// The setting of that name.
pub fn find(name: &str) -> Result<&'static Setting, String> {
    SETTINGS.iter().find(|setting| setting.name == name).ok_or_else(|| format!("Unknown topic config name: {name}"))
}

impl Setting {
    /// As the topic has it; `None` = its default.
    pub fn value(&self, config: &TopicConfig) -> Option<String> {
        let value = match self.effect {
            Effect::Cleanup => config.cleanup.to_string(),
            Effect::RetentionMs => limit_text(config.retention_ms),
            Effect::RetentionBytes => limit_text(config.retention_bytes),
            Effect::MaxMessageBytes => config.max_message_bytes.to_string(),
            Effect::TimestampType => (if config.append_time { APPEND_TIME } else { CREATE_TIME }).to_owned(),
            Effect::Durability => config.durability.to_string(),
            Effect::None | Effect::MustBe(_) => {
                return config.notes.iter().find(|note| note.name == self.name).map(|note| note.value.clone());
            }
        };
        (value != self.default).then_some(value)
    }

    /// Sets it in a change of a topic; `None` = back to its default. Errors: what is wrong with the value.
    pub fn change(&self, value: Option<&str>, change: &mut AlterTopic) -> Result<(), String> {
        let is_default = value.is_none();
        let value = value.unwrap_or(self.default).trim();
        let invalid = |what: &str| format!("Invalid value {value} for configuration {}: {what}", self.name);
        self.check(value).map_err(|what| invalid(&what))?;
        match self.effect {
            Effect::Cleanup => change.cleanup = Some(cleanup(value).ok_or_else(|| invalid("delete, compact or both"))?),
            Effect::RetentionMs => change.retention_ms = Some(limit(value).map_err(invalid)?),
            Effect::RetentionBytes => change.retention_bytes = Some(limit(value).map_err(invalid)?),
            Effect::MaxMessageBytes => {
                let bytes = value.parse().ok().filter(|bytes| (MESSAGE_BYTES_LEAST..=MAX_MESSAGE_BYTES_LIMIT).contains(bytes));
                let what = format!("{MESSAGE_BYTES_LEAST} to {MAX_MESSAGE_BYTES_LIMIT}");
                change.max_message_bytes = Some(bytes.ok_or_else(|| invalid(&what))?);
            }
            Effect::TimestampType => {
                change.append_time = Some(match value {
                    CREATE_TIME => false,
                    APPEND_TIME => true,
                    _ => return Err(invalid("CreateTime or LogAppendTime")),
                });
            }
            Effect::Durability => change.durability = Some(value.parse::<Durability>().map_err(|error| invalid(&error))?),
            Effect::MustBe(only) if value != only => return Err(invalid(&format!("this broker can only do {only}"))),
            Effect::None | Effect::MustBe(_) => {
                change.notes.push(NoteChange { name: self.name.into(), value: (!is_default).then(|| value.into()) });
            }
        }
        Ok(())
    }

    fn check(&self, value: &str) -> Result<(), String> {
        let is_right = match self.kind {
            Kind::Bool => matches!(value.to_ascii_lowercase().as_str(), "true" | "false"),
            Kind::Int => value.parse::<i32>().is_ok(),
            Kind::Long => value.parse::<i64>().is_ok(),
            Kind::Double => value.parse::<f64>().is_ok(),
            Kind::Text | Kind::List => true,
        };
        is_right.then_some(()).ok_or_else(|| format!("not a number or word of type {:?}", self.kind))
    }
}

/// The configuration of a new topic. Errors: the first value that can't be.
pub fn of_new_topic<'a>(settings: impl IntoIterator<Item = (&'a str, Option<&'a str>)>) -> Result<TopicConfig, String> {
    let mut change = AlterTopic::nothing("");
    for (name, value) in settings {
        find(name)?.change(Some(value.ok_or_else(|| format!("Null value not supported for topic configs: {name}"))?), &mut change)?;
    }
    let default = TopicConfig::default();
    let mut notes: Vec<TopicNote> =
        change.notes.into_iter().filter_map(|note| Some(TopicNote { name: note.name, value: note.value? })).collect();
    notes.sort_by(|a, b| a.name.cmp(&b.name));
    // Of a name given twice the last counts.
    notes.reverse();
    notes.dedup_by(|a, b| a.name == b.name);
    notes.reverse();
    Ok(TopicConfig {
        durability: change.durability.unwrap_or(default.durability),
        retention_ms: change.retention_ms.unwrap_or(default.retention_ms),
        retention_bytes: change.retention_bytes.unwrap_or(default.retention_bytes),
        max_message_bytes: change.max_message_bytes.unwrap_or(default.max_message_bytes),
        cleanup: change.cleanup.unwrap_or(default.cleanup),
        append_time: change.append_time.unwrap_or(default.append_time),
        notes,
    })
}

const CREATE_TIME: &str = "CreateTime";
const APPEND_TIME: &str = "LogAppendTime";
const MESSAGE_BYTES_LEAST: u32 = crate::shard::catalog::MAX_MESSAGE_BYTES_LEAST;

fn limit_text(limit: Option<u64>) -> String {
    limit.map_or_else(|| "-1".into(), |limit| limit.to_string())
}

/// -1 = no limit.
fn limit(value: &str) -> Result<Option<u64>, &'static str> {
    match value.parse::<i64>() {
        Ok(-1) => Ok(None),
        Ok(limit) if limit >= 0 => Ok(Some(limit as u64)),
        _ => Err("a number from 0 on, or -1 for no limit"),
    }
}

fn cleanup(value: &str) -> Option<Cleanup> {
    let (mut deletes, mut compacts) = (false, false);
    for word in value.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match word {
            "delete" => deletes = true,
            "compact" => compacts = true,
            _ => return None,
        }
    }
    match (deletes, compacts) {
        (true, false) => Some(Cleanup::Delete),
        (false, true) => Some(Cleanup::Compact),
        (true, true) => Some(Cleanup::CompactAndDelete),
        (false, false) => None,
    }
}
