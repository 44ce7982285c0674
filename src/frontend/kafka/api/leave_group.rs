//! Members go: one by itself, or several removed by an operator.

use kafka_protocol::messages::LeaveGroupResponse;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use ringmain_wire::ErrorCode;

use super::{Answer, Call, Context, encode, group, text};
use crate::frontend::kafka::decode::LeaveGroupRequest;
use crate::frontend::kafka::errors;
use crate::request::group::{GroupAction, GroupReply, MemberRef};
use crate::request::{Failure, Reply};

/// Since this version there is a list, with an error each.
const LIST_SINCE: i16 = 3;

/// The call.
pub struct LeaveGroup {
    group: String,
    members: Vec<MemberRef>,
    error: i16,
    left: Vec<(MemberRef, Option<ErrorCode>)>,
}

impl LeaveGroup {
    /// Nothing asked yet.
    pub fn open(request: &LeaveGroupRequest<'_>, version: i16) -> LeaveGroup {
        let members = if version >= LIST_SINCE {
            request.members.iter().map(|leaver| group::member(leaver.member_id, leaver.group_instance_id)).collect()
        } else {
            vec![group::member(request.member_id, None)]
        };
        LeaveGroup { group: request.group_id.to_owned(), members, error: errors::UNKNOWN_SERVER_ERROR, left: Vec::new() }
    }
}

impl Call for LeaveGroup {
    fn begin(&mut self, context: &mut Context<'_>) {
        let members = std::mem::take(&mut self.members);
        context.ask(0, group::ask(&self.group, GroupAction::Leave { members }));
    }

    fn answer(&mut self, _part: u32, reply: Reply, _context: &mut Context<'_>) {
        match reply {
            Reply::Group(reply) => {
                if let GroupReply::Left(left) = *reply {
                    (self.error, self.left) = (errors::NONE, left);
                }
            }
            Reply::Failed(failure) => self.error = group::code(&failure),
            _ => {}
        }
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let code = |error: &Option<ErrorCode>| error.map_or(errors::NONE, |error| group::code(&Failure::from(error)));
        if version < LIST_SINCE {
            let error = self.left.first().map_or(self.error, |(_, error)| code(error));
            return encode(&LeaveGroupResponse::default().with_error_code(error), version, out);
        }
        let members = self.left.into_iter().map(|(member, error)| {
            let left = MemberResponse::default().with_member_id(text(member.member_id)).with_error_code(code(&error));
            left.with_group_instance_id(member.instance_id.map(text))
        });
        encode(&LeaveGroupResponse::default().with_error_code(self.error).with_members(members.collect()), version, out)
    }
}
