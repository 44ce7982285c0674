//! Consumer groups in the native protocol: one op, whose body says what is wanted.
//!
//! A member joins, learns from the answer who divides the work (the *leader*), and asks for its share, which the leader
//! brings along. From then on it sends heartbeats; the error [`RebalanceInProgress`](crate::ErrorCode::RebalanceInProgress)
//! means: join again. Metadata and shares are the members' own affair. Kafka's clients can be members of the same
//! group: then both sides use the formats of [`Subscription`] and [`Share`].

use rkyv::{Archive, Deserialize, Serialize};

/// Generation of whoever is no member.
pub const NO_GENERATION: i32 = -1;

/// A request about a group.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct GroupRequest {
    /// Its name, 1 to 255 bytes.
    pub group: String,
    /// What is wanted.
    pub call: GroupCall,
}

/// What can be asked of a group.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum GroupCall {
    /// → [`GroupAnswer::Joined`] when the generation is complete, or [`GroupAnswer::MemberIdRequired`]: join again with it.
    Join {
        /// Who.
        member: GroupMember,
        /// What the client calls itself.
        client_id: String,
        /// Silent for longer = gone; 6 s to 30 min.
        session_timeout_ms: u32,
        /// How long a rebalance may take.
        rebalance_timeout_ms: u32,
        /// `consumer` for consumers; all members have the same.
        protocol_type: String,
        /// Ways to divide the work, dearest first, with the member's metadata for each.
        protocols: Vec<GroupProtocol>,
    },
    /// → [`GroupAnswer::Synced`] when the leader has divided the work.
    Sync {
        /// Who.
        member: GroupMember,
        /// Of the join.
        generation: i32,
        /// From the leader: member id and share.
        shares: Vec<GroupShare>,
    },
    /// → [`GroupAnswer::Alive`].
    Heartbeat {
        /// Who.
        member: GroupMember,
        /// Of the join.
        generation: i32,
    },
    /// → [`GroupAnswer::Done`].
    Leave {
        /// Who.
        member: GroupMember,
    },
    /// → [`GroupAnswer::Committed`], durable.
    Commit {
        /// Who; empty = no member.
        member: GroupMember,
        /// Of the join, or [`NO_GENERATION`].
        generation: i32,
        /// Positions.
        offsets: Vec<GroupOffset>,
    },
    /// → [`GroupAnswer::Offsets`].
    ReadOffsets {
        /// Numbers of partitions; `None` = all with an offset.
        partitions: Option<Vec<u32>>,
    },
    /// → [`GroupAnswer::Description`].
    Describe,
    /// → [`GroupAnswer::Done`], durable. Only without members.
    Delete,
    /// → [`GroupAnswer::Done`], durable.
    DeleteOffsets {
        /// Numbers of partitions.
        partitions: Vec<u32>,
    },
}

/// A member as it names itself.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupMember {
    /// Given by the broker; empty = none yet.
    pub member_id: String,
    /// A name of its own that outlives its process.
    pub instance_id: Option<String>,
}

/// A way to divide the work.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct GroupProtocol {
    /// Its name.
    pub name: String,
    /// What the leader needs to know of the member.
    pub metadata: Vec<u8>,
}

/// A member's share of the work.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct GroupShare {
    /// Whose.
    pub member_id: String,
    /// What.
    pub share: Vec<u8>,
}

/// A committed position.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct GroupOffset {
    /// Number of the partition, from the metadata.
    pub partition: u32,
    /// The next offset wanted.
    pub offset: u64,
    /// Anything, at most 4,096 bytes.
    pub metadata: String,
}

/// Answers to [`GroupCall`].
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum GroupAnswer {
    /// The generation is complete.
    Joined {
        /// Its number.
        generation: i32,
        /// How the work is divided.
        protocol: String,
        /// Who divides it.
        leader: String,
        /// Who this answer is for.
        member_id: String,
        /// For the leader: everyone.
        members: Vec<GroupJoined>,
    },
    /// Join again with this id.
    MemberIdRequired {
        /// It.
        member_id: String,
    },
    /// The generation's division is durable.
    Synced {
        /// This member's share.
        share: Vec<u8>,
    },
    /// Go on.
    Alive,
    /// It is so.
    Done,
    /// Durable, but for these.
    Committed {
        /// Partition and number of the [`ErrorCode`](crate::ErrorCode).
        refused: Vec<(u32, u16)>,
    },
    /// In order of partition.
    Offsets {
        /// Those that were committed.
        offsets: Vec<GroupOffset>,
    },
    /// All there is to see.
    Description {
        /// Phase: `Empty`, `PreparingRebalance`, `CompletingRebalance`, `Stable`.
        phase: String,
        /// 0 = there was none.
        generation: i32,
        /// Kind; empty = consumers that assign partitions to themselves.
        protocol_type: String,
        /// How the work is divided.
        protocol: String,
        /// Member id; empty = nobody.
        leader: String,
        /// Who is in it.
        members: Vec<GroupMemberInfo>,
    },
}

/// A member as its leader sees it.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct GroupJoined {
    /// Its id.
    pub member_id: String,
    /// For the generation's protocol.
    pub metadata: Vec<u8>,
}

/// A member from outside.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct GroupMemberInfo {
    /// Who.
    pub member: GroupMember,
    /// What it calls itself.
    pub client_id: String,
    /// Where it connects from.
    pub client_host: String,
    /// Its share, while the group is stable.
    pub share: Vec<u8>,
}

/// Asks for all groups.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ListGroups {
    /// 0.
    pub reserved: u32,
}

/// All groups, in order of name.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct GroupList {
    /// They.
    pub groups: Vec<GroupListed>,
}

/// A group in a list.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct GroupListed {
    /// Its name.
    pub group: String,
    /// Kind; empty = consumers that assign partitions to themselves.
    pub protocol_type: String,
    /// As in [`GroupAnswer::Description`].
    pub phase: String,
    /// Members.
    pub member_count: u32,
}

/// What a consumer wants, as all consumers write it: version 0, topics, no data of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subscription {
    /// Names.
    pub topics: Vec<String>,
}

/// What a consumer is given, as all consumers write it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Topic and indexes of partitions.
    pub topics: Vec<(String, Vec<u32>)>,
}

impl Subscription {
    /// The bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![0, 0];
        put_count(&mut out, self.topics.len());
        self.topics.iter().for_each(|topic| put_text(&mut out, topic));
        out.extend_from_slice(&(-1i32).to_be_bytes());
        out
    }

    /// Reads what any version begins with. `None` = these bytes are something else.
    pub fn read(bytes: &[u8]) -> Option<Subscription> {
        let mut rest = bytes.get(2..)?;
        let count = take_count(&mut rest)?;
        let topics = (0..count).map(|_| take_text(&mut rest)).collect::<Option<_>>()?;
        Some(Subscription { topics })
    }
}

impl Share {
    /// The bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![0, 0];
        put_count(&mut out, self.topics.len());
        for (topic, partitions) in &self.topics {
            put_text(&mut out, topic);
            put_count(&mut out, partitions.len());
            partitions.iter().for_each(|index| out.extend_from_slice(&index.to_be_bytes()));
        }
        out.extend_from_slice(&(-1i32).to_be_bytes());
        out
    }

    /// Reads what any version begins with. `None` = these bytes are something else. No bytes = nothing is given.
    pub fn read(bytes: &[u8]) -> Option<Share> {
        if bytes.is_empty() {
            return Some(Share::default());
        }
        let mut rest = bytes.get(2..)?;
        let count = take_count(&mut rest)?;
        let mut topics = Vec::new();
        for _ in 0..count {
            let topic = take_text(&mut rest)?;
            let partition_count = take_count(&mut rest)?;
            let partitions = (0..partition_count).map(|_| take_count(&mut rest)).collect::<Option<_>>()?;
            topics.push((topic, partitions));
        }
        Some(Share { topics })
    }
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&(count as u32).to_be_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn take_count(rest: &mut &[u8]) -> Option<u32> {
    let (count, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    u32::try_from(i32::from_be_bytes(*count)).ok()
}

fn take_text(rest: &mut &[u8]) -> Option<String> {
    let (length, after) = rest.split_first_chunk::<2>()?;
    let (text, after) = after.split_at_checked(usize::try_from(i16::from_be_bytes(*length)).ok()?)?;
    *rest = after;
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subscription_and_share_are_what_kafkas_consumers_write() {
        let subscription = Subscription { topics: vec!["ab".into()] };
        assert_eq!(subscription.to_bytes(), b"\0\0\0\0\0\x01\0\x02ab\xff\xff\xff\xff");
        let newer = b"\0\x03\0\0\0\x01\0\x02ab\xff\xff\xff\xff\0\0\0\0\0\0\0\x07\xff\xff";
        assert_eq!(Subscription::read(newer), Some(subscription));
        let share = Share { topics: vec![("ab".into(), vec![0, 3])] };
        assert_eq!(share.to_bytes(), b"\0\0\0\0\0\x01\0\x02ab\0\0\0\x02\0\0\0\0\0\0\0\x03\xff\xff\xff\xff");
        assert_eq!(Share::read(&share.to_bytes()), Some(share));
        assert_eq!(Share::read(b""), Some(Share::default()));
    }

    proptest::proptest! {
        /// Random bytes are refused or read; they never panic or allocate beyond what is there.
        #[test]
        fn random_bytes_never_panic(mut input in proptest::collection::vec(proptest::num::u8::ANY, 0..100)) {
            let _ = (Subscription::read(&input), Share::read(&input));
            if input.len() > 4 { input[..4].copy_from_slice(&[1, 0, 0, 0]); }
            let _ = crate::control::read_open::<GroupRequest>(&input);
            let _ = crate::control::read_open::<GroupAnswer>(&input);
        }
    }
}
