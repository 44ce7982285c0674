//! Groups from the inside. One that doesn't exist is "Dead", as in Apache Kafka.

use bytes::Bytes;
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::{DescribeGroupsResponse, GroupId};
use ringmain_wire::ErrorCode;

use super::{Answer, Call, Context, encode, group, text};
use crate::frontend::kafka::decode::DescribeGroupsRequest;
use crate::frontend::kafka::errors;
use crate::request::Reply;
use crate::request::group::{GroupAction, GroupDescription, GroupPhase, GroupReply};

/// The call.
pub struct DescribeGroups {
    groups: Vec<(String, i16, Option<GroupDescription>)>,
}

impl DescribeGroups {
    /// Nothing asked yet.
    pub fn open(request: &DescribeGroupsRequest<'_>) -> DescribeGroups {
        DescribeGroups { groups: request.groups.iter().map(|name| ((*name).to_owned(), errors::UNKNOWN_SERVER_ERROR, None)).collect() }
    }
}

impl Call for DescribeGroups {
    fn begin(&mut self, context: &mut Context<'_>) {
        for (part, (name, ..)) in (0..).zip(&self.groups) {
            context.ask(part, group::ask(name, GroupAction::Describe));
        }
    }

    fn answer(&mut self, part: u32, reply: Reply, _context: &mut Context<'_>) {
        let Some((_, error, found)) = self.groups.get_mut(part as usize) else { return };
        match reply {
            Reply::Group(reply) => {
                if let GroupReply::Description(description) = *reply {
                    (*error, *found) = (errors::NONE, Some(description));
                }
            }
            Reply::Failed(failure) if failure.code == ErrorCode::GroupNotFound => *error = errors::NONE,
            Reply::Failed(failure) => *error = group::code(&failure),
            _ => {}
        }
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let groups = self.groups.into_iter().map(|(name, error, found)| {
            let described = DescribedGroup::default().with_error_code(error).with_group_id(GroupId(text(name)));
            let Some(found) = found else {
                let state = if error == errors::NONE { "Dead" } else { "" };
                return described.with_group_state(text(state));
            };
            let protocol = if found.phase == GroupPhase::Stable { found.protocol } else { String::new() };
            let members = found.members.into_iter().map(|member| {
                let described = DescribedGroupMember::default()
                    .with_member_id(text(member.member.member_id))
                    .with_client_id(text(member.client_id))
                    .with_client_host(text(member.client_host))
                    .with_member_metadata(Bytes::from(member.metadata))
                    .with_member_assignment(Bytes::from(member.assignment));
                if version >= 4 { described.with_group_instance_id(member.member.instance_id.map(text)) } else { described }
            });
            described
                .with_group_state(text(group::state(found.phase)))
                .with_protocol_type(text(found.protocol_type))
                .with_protocol_data(text(protocol))
                .with_members(members.collect())
        });
        encode(&DescribeGroupsResponse::default().with_groups(groups.collect()), version, out)
    }

    fn held_bytes(&self) -> usize {
        let members = self.groups.iter().flat_map(|(_, _, found)| found.iter().flat_map(|found| &found.members));
        members.map(|member| 256 + member.metadata.len() + member.assignment.len()).sum()
    }
}
