//! Distinct types over integers, so that two numbers can't be swapped.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// One partition of one topic, unique in a data directory and never reused. 0 is the log's own
    /// state records; a client never names it.
    PartitionId(u32)
}
id! {
    /// One topic, unique in a data directory and never reused.
    TopicId(u32)
}
id! {
    /// One shard: one log and the partitions in it. Counts from 0.
    ShardId(u16)
}
id! {
    /// Position of a record in its partition. Counts from 0.
    Offset(u64)
}
id! {
    /// An idempotent producer. −1 = none.
    ProducerId(i64)
}

impl PartitionId {
    /// State records of the shard itself.
    pub const STATE: PartitionId = PartitionId(0);
}

impl ProducerId {
    /// The producer doesn't ask for idempotence.
    pub const NONE: ProducerId = ProducerId(-1);
}

impl Offset {
    /// The offset `records` further on.
    pub fn plus(self, records: u64) -> Offset {
        Offset(self.0 + records)
    }
}
