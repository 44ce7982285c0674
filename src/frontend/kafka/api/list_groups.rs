//! The groups that this node coordinates: clients ask every node, and put the answers together.

use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::{GroupId, ListGroupsResponse};

use super::metadata::node_of_shard;
use super::{Answer, Call, Context, encode, group, text};
use crate::frontend::kafka::decode::ListGroupsRequest;
use crate::frontend::kafka::errors;
use crate::request::Reply;
use crate::request::group::GroupListing;
use crate::router::letter::OwnedRequest;

/// The call.
pub struct ListGroups {
    /// Empty = all.
    states: Vec<String>,
    error: i16,
    groups: Vec<GroupListing>,
}

impl ListGroups {
    /// Nothing asked yet.
    pub fn open(request: &ListGroupsRequest<'_>) -> ListGroups {
        let states = request.states_filter.iter().map(|state| (*state).to_owned()).collect();
        ListGroups { states, error: errors::UNKNOWN_SERVER_ERROR, groups: Vec::new() }
    }
}

impl Call for ListGroups {
    fn begin(&mut self, context: &mut Context<'_>) {
        context.ask(0, OwnedRequest::ListGroups);
    }

    fn answer(&mut self, _part: u32, reply: Reply, _context: &mut Context<'_>) {
        match reply {
            Reply::Groups(groups) => (self.error, self.groups) = (errors::NONE, groups),
            Reply::Failed(failure) => self.error = group::code(&failure),
            _ => {}
        }
    }

    fn respond(self: Box<Self>, version: i16, context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let is_here =
            |listed: &GroupListing| node_of_shard(context.view.catalog.coordinator(&listed.group).0, context.config) == context.config.node;
        let is_wanted = |listed: &GroupListing| {
            self.states.is_empty() || self.states.iter().any(|s| s.eq_ignore_ascii_case(group::state(listed.phase)))
        };
        let groups = self.groups.iter().filter(|listed| is_here(listed) && is_wanted(listed)).map(|listed| {
            let answer = ListedGroup::default()
                .with_group_id(GroupId(text(listed.group.clone())))
                .with_protocol_type(text(listed.protocol_type.clone()));
            if version >= 4 { answer.with_group_state(text(group::state(listed.phase))) } else { answer }
        });
        encode(&ListGroupsResponse::default().with_error_code(self.error).with_groups(groups.collect()), version, out)
    }

    fn held_bytes(&self) -> usize {
        self.groups.iter().map(|listed| 64 + listed.group.len()).sum()
    }
}
