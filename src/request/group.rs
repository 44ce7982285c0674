//! Consumer groups as doors ask about them. A group is named; its shard is that of its slot in the catalog, which
//! the router looks up. Metadata and assignments are opaque: what the members agree on is theirs.
//!
//! Requests own what they name: none of this is on a message's way, and it crosses cores without a copy.

use ringmain_wire::{ErrorCode, Offset, PartitionId, ProducerId};

/// Generation of whoever is no member: a consumer that assigns partitions to itself.
pub const NO_GENERATION: i32 = -1;

/// A request about one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRequest {
    /// Which.
    pub group: String,
    /// What.
    pub action: GroupAction,
}

/// What can be asked about a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupAction {
    /// Become or stay a member of the next generation → [`GroupReply::Joined`] when that is complete, or
    /// [`GroupReply::MemberIdRequired`] at once.
    Join(Join),
    /// Get this generation's assignment; the leader brings it → [`GroupReply::Synced`].
    Sync(Sync),
    /// I am alive → [`GroupReply::Alive`]; an error says what to do.
    Heartbeat {
        /// Who.
        member: MemberRef,
        /// The generation it believes in.
        generation: i32,
    },
    /// Members go, by themselves or removed by an operator → [`GroupReply::Left`].
    Leave {
        /// Who. A static member may be named by its instance alone.
        members: Vec<MemberRef>,
    },
    /// Remember positions → [`GroupReply::Committed`] once durable.
    Commit(Commit),
    /// Read positions → [`GroupReply::Offsets`].
    ReadOffsets {
        /// `None` = all there are.
        partitions: Option<Vec<PartitionId>>,
        /// Refuse (`UnstableOffset`, per partition) where a transaction is still undecided.
        stable: bool,
    },
    /// → [`GroupReply::Description`]; `GroupNotFound` if there is none.
    Describe,
    /// Forget an empty group and its offsets → [`GroupReply::Deleted`] once durable.
    Delete,
    /// Forget some offsets → [`GroupReply::Deleted`] once durable. Whether a member still wants them is the door's to check.
    DeleteOffsets {
        /// Which.
        partitions: Vec<PartitionId>,
    },
    /// A transaction that committed offsets of this group is decided: they take effect or are dropped →
    /// [`GroupReply::Decided`] once durable. Asked by the transaction's coordinator; repeating it does no harm.
    Decide {
        /// Whose.
        producer_id: ProducerId,
        /// Of which incarnation.
        producer_epoch: u16,
        /// They take effect.
        commit: bool,
    },
}

impl GroupAction {
    /// The answer may be as late as the last member.
    pub fn waits_for_others(&self) -> bool {
        matches!(self, GroupAction::Join(_) | GroupAction::Sync(_))
    }
}

/// A member as it names itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberRef {
    /// Given by the broker; empty = none yet.
    pub member_id: String,
    /// A name of its own that outlives its process (a *static* member).
    pub instance_id: Option<String>,
}

/// Asks to be a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// Who.
    pub member: MemberRef,
    /// What the client calls itself.
    pub client_id: String,
    /// Where it connects from.
    pub client_host: String,
    /// Silent for longer = gone.
    pub session_timeout_ms: u32,
    /// How long it may take to rejoin.
    pub rebalance_timeout_ms: u32,
    /// Kind of group: `consumer`, `connect` …; all members have the same.
    pub protocol_type: String,
    /// Ways to divide the work that the member knows, dearest first, each with the metadata it needs.
    pub protocols: Vec<Protocol>,
    /// A new dynamic member is given its id first and joins with it: one that never comes back leaves nothing behind.
    pub requires_member_id: bool,
    /// The client understands [`Joined::skip_assignment`].
    pub supports_skipping: bool,
}

/// A way to divide the work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// Its name.
    pub name: String,
    /// What the leader needs to know of this member.
    pub metadata: Vec<u8>,
}

/// Asks for the assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sync {
    /// Who.
    pub member: MemberRef,
    /// Of the join.
    pub generation: i32,
    /// If given, must be the group's.
    pub protocol_type: Option<String>,
    /// If given, must be the generation's.
    pub protocol: Option<String>,
    /// From the leader: member id and its share. Others send none.
    pub assignments: Vec<(String, Vec<u8>)>,
}

/// Positions to remember.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Empty for a consumer that is no member.
    pub member: MemberRef,
    /// [`NO_GENERATION`] for a consumer that is no member.
    pub generation: i32,
    /// They take effect when this producer's transaction is committed ([`GroupAction::Decide`]).
    pub transaction: Option<(ProducerId, u16)>,
    /// What to remember.
    pub offsets: Vec<GroupOffset>,
}

/// A position in one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupOffset {
    /// Where.
    pub partition: PartitionId,
    /// The next offset wanted.
    pub offset: Offset,
    /// Leader epoch of the last record read; −1 = unknown.
    pub leader_epoch: i32,
    /// As sent, at most 4,096 bytes.
    pub metadata: String,
}

/// Answers to [`GroupAction`]; errors come as `Reply::Failed`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupReply {
    /// The generation is complete.
    Joined(Joined),
    /// Join again, with this id.
    MemberIdRequired {
        /// Remembered for one session timeout.
        member_id: String,
    },
    /// The generation's assignment is durable.
    Synced {
        /// Of the group.
        protocol_type: String,
        /// Of the generation.
        protocol: String,
        /// This member's share.
        assignment: Vec<u8>,
    },
    /// Go on.
    Alive,
    /// In the order asked: `None` = gone.
    Left(Vec<(MemberRef, Option<ErrorCode>)>),
    /// Durable, but for these.
    Committed {
        /// Refused, each for itself.
        refused: Vec<(PartitionId, ErrorCode)>,
    },
    /// Committed positions; a partition without one is missing.
    Offsets {
        /// In order of partition.
        offsets: Vec<GroupOffset>,
        /// Asked for as stable and not so yet.
        unstable: Vec<PartitionId>,
    },
    /// All there is to see.
    Description(GroupDescription),
    /// Durable.
    Deleted,
    /// Durable.
    Decided,
}

/// A complete generation, as one member sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Its number.
    pub generation: i32,
    /// Of the group.
    pub protocol_type: String,
    /// Chosen by the members' votes.
    pub protocol: String,
    /// Who divides the work.
    pub leader: String,
    /// The member this answer is for.
    pub member_id: String,
    /// The leader keeps the assignment in force (a static leader that came back).
    pub skip_assignment: bool,
    /// For the leader: everyone, with the metadata for `protocol`.
    pub members: Vec<JoinedMember>,
}

/// A member as its leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinedMember {
    /// Who.
    pub member: MemberRef,
    /// As it joined.
    pub metadata: Vec<u8>,
}

/// Where a group is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum GroupPhase {
    /// No members; maybe offsets.
    #[default]
    Empty,
    /// Members are joining the next generation.
    PreparingRebalance,
    /// They have joined; the leader's assignment is awaited.
    CompletingRebalance,
    /// Everyone has, or can get, its share.
    Stable,
}

/// A group in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupListing {
    /// Its name.
    pub group: String,
    /// Kind; empty = a consumer that assigns partitions to itself.
    pub protocol_type: String,
    /// Phase.
    pub phase: GroupPhase,
    /// Members.
    pub member_count: u32,
}

/// A group from the inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDescription {
    /// Phase.
    pub phase: GroupPhase,
    /// Generation; 0 = there was none.
    pub generation: i32,
    /// Kind; empty = a consumer that assigns partitions to itself.
    pub protocol_type: String,
    /// Of the generation; empty while there is none.
    pub protocol: String,
    /// Who divides the work; empty = nobody.
    pub leader: String,
    /// Its members; metadata and assignments only while stable.
    pub members: Vec<DescribedMember>,
}

/// A member from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribedMember {
    /// Who.
    pub member: MemberRef,
    /// What it calls itself.
    pub client_id: String,
    /// Where it connects from.
    pub client_host: String,
    /// For the generation's protocol.
    pub metadata: Vec<u8>,
    /// Its share.
    pub assignment: Vec<u8>,
}
