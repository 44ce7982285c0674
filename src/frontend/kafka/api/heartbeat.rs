//! A member is alive.

use kafka_protocol::messages::HeartbeatResponse;

use super::{Answer, Call, Context, encode, group};
use crate::frontend::kafka::decode::HeartbeatRequest;
use crate::frontend::kafka::errors;
use crate::request::Reply;
use crate::request::group::{GroupAction, MemberRef};

/// The call.
pub struct Heartbeat {
    group: String,
    member: MemberRef,
    generation: i32,
    error: i16,
}

impl Heartbeat {
    /// Nothing asked yet.
    pub fn open(request: &HeartbeatRequest<'_>) -> Heartbeat {
        Heartbeat {
            group: request.group_id.to_owned(),
            member: group::member(request.member_id, request.group_instance_id),
            generation: request.generation_id,
            error: errors::UNKNOWN_SERVER_ERROR,
        }
    }
}

impl Call for Heartbeat {
    fn begin(&mut self, context: &mut Context<'_>) {
        let action = GroupAction::Heartbeat { member: std::mem::take(&mut self.member), generation: self.generation };
        context.ask(0, group::ask(&self.group, action));
    }

    fn answer(&mut self, _part: u32, reply: Reply, _context: &mut Context<'_>) {
        match reply {
            Reply::Group(_) => self.error = errors::NONE,
            Reply::Failed(failure) => self.error = group::code(&failure),
            _ => {}
        }
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        encode(&HeartbeatResponse::default().with_error_code(self.error), version, out)
    }
}
