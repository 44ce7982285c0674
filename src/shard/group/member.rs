//! A member of a group, and the timers that watch over members and groups.

use std::sync::Arc;

use crate::request::Origin;
use crate::request::group::{DescribedMember, Join, JoinedMember, MemberRef, Protocol};

/// Charged per member beside its strings and bytes.
const MEMBER_BYTES: usize = 512;
/// Longest name a client gives itself that is kept; longer ones are cut.
pub const CLIENT_NAME_MAX_BYTES: usize = 255;

/// One member.
#[derive(Debug)]
pub struct Member {
    /// Its own name, if it is static.
    pub instance_id: Option<Arc<str>>,
    /// What the client calls itself.
    pub client_id: Box<str>,
    /// Where it connects from.
    pub client_host: Box<str>,
    /// Silent for longer = gone.
    pub session_timeout_us: u64,
    /// Longest time to rejoin.
    pub rebalance_timeout_us: u64,
    /// What it can do, dearest first.
    pub protocols: Vec<Protocol>,
    /// Its share of the generation.
    pub assignment: Vec<u8>,
    /// A join that waits for the next generation.
    pub joining: Option<Origin>,
    /// A sync that waits for the leader.
    pub syncing: Option<Origin>,
    /// Has asked for its share of this generation.
    pub has_synced: bool,
    /// In no generation yet: given up after a while even if its join waits.
    pub is_new: bool,
    /// When it is given up.
    pub session_deadline_us: u64,
    /// When its timer is looked at: never later than the deadline.
    pub timer_at_us: u64,
}

impl Member {
    /// As it asks to join.
    pub fn new(join: &Join) -> Member {
        let mut member = Member {
            instance_id: join.member.instance_id.as_deref().map(Arc::from),
            client_id: cut(&join.client_id).into(),
            client_host: cut(&join.client_host).into(),
            session_timeout_us: 0,
            rebalance_timeout_us: 0,
            protocols: Vec::new(),
            assignment: Vec::new(),
            joining: None,
            syncing: None,
            has_synced: false,
            is_new: true,
            session_deadline_us: 0,
            timer_at_us: 0,
        };
        member.update(join);
        member
    }

    /// As it asks to rejoin.
    pub fn update(&mut self, join: &Join) {
        self.session_timeout_us = u64::from(join.session_timeout_ms) * 1000;
        self.rebalance_timeout_us = u64::from(join.rebalance_timeout_ms.max(1)) * 1000;
        self.protocols.clone_from(&join.protocols);
    }

    /// Knows the protocol.
    pub fn supports(&self, protocol: &str) -> bool {
        self.protocols.iter().any(|known| known.name == protocol)
    }

    /// What it says for that protocol.
    pub fn metadata(&self, protocol: &str) -> &[u8] {
        self.protocols.iter().find(|known| known.name == protocol).map_or(&[], |known| &known.metadata)
    }

    /// As it names itself.
    pub fn named(&self, member_id: &str) -> MemberRef {
        MemberRef { member_id: member_id.into(), instance_id: self.instance_id.as_deref().map(String::from) }
    }

    /// As its leader sees it.
    pub fn joined(&self, member_id: &str, protocol: &str) -> JoinedMember {
        JoinedMember { member: self.named(member_id), metadata: self.metadata(protocol).to_vec() }
    }

    /// As people see it; `protocol`: of a stable generation.
    pub fn described(&self, member_id: &str, protocol: Option<&str>) -> DescribedMember {
        DescribedMember {
            member: self.named(member_id),
            client_id: self.client_id.to_string(),
            client_host: self.client_host.to_string(),
            metadata: protocol.map_or(Vec::new(), |protocol| self.metadata(protocol).to_vec()),
            assignment: if protocol.is_some() { self.assignment.clone() } else { Vec::new() },
        }
    }

    /// What it is charged.
    pub fn charge(&self, member_id: &str) -> usize {
        let protocols: usize = self.protocols.iter().map(|protocol| 64 + protocol.name.len() + protocol.metadata.len()).sum();
        let names = member_id.len() + self.client_id.len() + self.client_host.len() + self.instance_id.as_ref().map_or(0, |id| id.len());
        MEMBER_BYTES + names * 2 + protocols + self.assignment.len()
    }
}

/// What a joining member will be charged at most.
pub fn join_charge(join: &Join) -> usize {
    let protocols: usize = join.protocols.iter().map(|protocol| 64 + protocol.name.len() + protocol.metadata.len()).sum();
    let names = 3 * CLIENT_NAME_MAX_BYTES + join.member.member_id.len() + join.member.instance_id.as_ref().map_or(0, String::len);
    MEMBER_BYTES + names * 2 + protocols
}

/// What a timer is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TimerOf {
    /// The group's phase.
    Phase,
    /// A member's session.
    Member(Arc<str>),
    /// A member id that was given and not used yet.
    Promised(Arc<str>),
}

/// A timer: when, of which group, about what.
pub type Timer = (u64, Arc<str>, TimerOf);

/// At most [`CLIENT_NAME_MAX_BYTES`] of it, whole characters.
fn cut(name: &str) -> &str {
    &name[..name.floor_char_boundary(CLIENT_NAME_MAX_BYTES)]
}
