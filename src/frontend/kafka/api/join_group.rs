//! Becoming a member. The answer comes when the generation is complete.

use bytes::Bytes;
use kafka_protocol::messages::JoinGroupResponse;
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;

use super::{Answer, Call, Context, encode, group, text};
use crate::frontend::kafka::decode::JoinGroupRequest;
use crate::frontend::kafka::errors;
use crate::request::Reply;
use crate::request::group::{GroupAction, GroupReply, Join, Joined, Protocol};

/// Since this version a new member is given its id first.
const MEMBER_ID_REQUIRED_SINCE: i16 = 4;
/// Since this version a static leader that comes back can be told to leave the assignment alone.
const SKIP_ASSIGNMENT_SINCE: i16 = 9;

/// The call.
pub struct JoinGroup {
    group: String,
    /// Until it is asked.
    join: Option<Join>,
    member_id: String,
    error: i16,
    joined: Option<Joined>,
}

impl JoinGroup {
    /// `client_id`, `client_host`: who asks.
    pub fn open(request: &JoinGroupRequest<'_>, version: i16, client_id: Option<&str>, client_host: String) -> JoinGroup {
        let session_timeout_ms = u32::try_from(request.session_timeout_ms).unwrap_or(0);
        let protocols = request.protocols.iter();
        let join = Join {
            member: group::member(request.member_id, request.group_instance_id),
            client_id: client_id.unwrap_or_default().to_owned(),
            client_host,
            session_timeout_ms,
            rebalance_timeout_ms: u32::try_from(request.rebalance_timeout_ms).unwrap_or(session_timeout_ms),
            protocol_type: request.protocol_type.to_owned(),
            protocols: protocols.map(|known| Protocol { name: known.name.to_owned(), metadata: known.metadata.to_vec() }).collect(),
            requires_member_id: version >= MEMBER_ID_REQUIRED_SINCE,
            supports_skipping: version >= SKIP_ASSIGNMENT_SINCE,
        };
        JoinGroup {
            group: request.group_id.to_owned(),
            join: Some(join),
            member_id: request.member_id.to_owned(),
            error: errors::UNKNOWN_SERVER_ERROR,
            joined: None,
        }
    }
}

impl Call for JoinGroup {
    fn begin(&mut self, context: &mut Context<'_>) {
        if let Some(join) = self.join.take() {
            context.ask(0, group::ask(&self.group, GroupAction::Join(join)));
        }
    }

    fn answer(&mut self, _part: u32, reply: Reply, _context: &mut Context<'_>) {
        match reply {
            Reply::Group(reply) => match *reply {
                GroupReply::Joined(joined) => (self.error, self.joined) = (errors::NONE, Some(joined)),
                GroupReply::MemberIdRequired { member_id } => (self.error, self.member_id) = (errors::MEMBER_ID_REQUIRED, member_id),
                _ => {}
            },
            Reply::Failed(failure) => self.error = group::code(&failure),
            _ => {}
        }
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        // Since version 7 the names can be null.
        let name = |name: String| (version < 7 || !name.is_empty()).then(|| text(name));
        let Some(joined) = self.joined else {
            let response = JoinGroupResponse::default().with_error_code(self.error).with_generation_id(-1);
            return encode(&response.with_protocol_name(name(String::new())).with_member_id(text(self.member_id)), version, out);
        };
        let members = joined.members.into_iter().map(|member| {
            let known = JoinGroupResponseMember::default();
            let known = known.with_member_id(text(member.member.member_id)).with_metadata(Bytes::from(member.metadata));
            if version >= 5 { known.with_group_instance_id(member.member.instance_id.map(text)) } else { known }
        });
        let mut response = JoinGroupResponse::default()
            .with_generation_id(joined.generation)
            .with_protocol_name(name(joined.protocol))
            .with_leader(text(joined.leader))
            .with_member_id(text(joined.member_id))
            .with_members(members.collect());
        if version >= 7 {
            response = response.with_protocol_type(name(joined.protocol_type));
        }
        if version >= SKIP_ASSIGNMENT_SINCE {
            response = response.with_skip_assignment(joined.skip_assignment);
        }
        encode(&response, version, out)
    }

    fn held_bytes(&self) -> usize {
        let asked: usize = self.join.iter().flat_map(|join| &join.protocols).map(|known| known.metadata.len()).sum();
        asked + self.joined.iter().flat_map(|joined| &joined.members).map(|member| member.metadata.len()).sum::<usize>()
    }
}
