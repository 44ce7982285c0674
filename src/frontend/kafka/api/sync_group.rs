//! Getting one's share; the leader brings everybody's.

use bytes::Bytes;
use kafka_protocol::messages::SyncGroupResponse;

use super::{Answer, Call, Context, encode, group, text};
use crate::frontend::kafka::decode::SyncGroupRequest;
use crate::frontend::kafka::errors;
use crate::request::Reply;
use crate::request::group::{GroupAction, GroupReply, Sync};

/// The call.
pub struct SyncGroup {
    group: String,
    /// Until it is asked.
    sync: Option<Sync>,
    error: i16,
    protocol_type: Option<String>,
    protocol: Option<String>,
    assignment: Vec<u8>,
}

impl SyncGroup {
    /// Nothing asked yet.
    pub fn open(request: &SyncGroupRequest<'_>) -> SyncGroup {
        let sync = Sync {
            member: group::member(request.member_id, request.group_instance_id),
            generation: request.generation_id,
            protocol_type: request.protocol_type.map(str::to_owned),
            protocol: request.protocol_name.map(str::to_owned),
            assignments: request.assignments.iter().map(|share| (share.member_id.to_owned(), share.assignment.to_vec())).collect(),
        };
        SyncGroup {
            group: request.group_id.to_owned(),
            sync: Some(sync),
            error: errors::UNKNOWN_SERVER_ERROR,
            protocol_type: None,
            protocol: None,
            assignment: Vec::new(),
        }
    }
}

impl Call for SyncGroup {
    fn begin(&mut self, context: &mut Context<'_>) {
        if let Some(sync) = self.sync.take() {
            context.ask(0, group::ask(&self.group, GroupAction::Sync(sync)));
        }
    }

    fn answer(&mut self, _part: u32, reply: Reply, _context: &mut Context<'_>) {
        match reply {
            Reply::Group(reply) => {
                if let GroupReply::Synced { protocol_type, protocol, assignment } = *reply {
                    (self.error, self.assignment) = (errors::NONE, assignment);
                    (self.protocol_type, self.protocol) = (Some(protocol_type), Some(protocol));
                }
            }
            Reply::Failed(failure) => self.error = group::code(&failure),
            _ => {}
        }
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let mut response = SyncGroupResponse::default().with_error_code(self.error).with_assignment(Bytes::from(self.assignment));
        if version >= 5 {
            response = response.with_protocol_type(self.protocol_type.map(text)).with_protocol_name(self.protocol.map(text));
        }
        encode(&response, version, out)
    }

    fn held_bytes(&self) -> usize {
        self.assignment.len() + self.sync.iter().flat_map(|sync| &sync.assignments).map(|(_, share)| share.len()).sum::<usize>()
    }
}
