//! Empty groups are forgotten, with their offsets.

use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::{DeleteGroupsResponse, GroupId};

use super::{Answer, Call, Context, encode, group, text};
use crate::frontend::kafka::decode::DeleteGroupsRequest;
use crate::frontend::kafka::errors;
use crate::request::Reply;
use crate::request::group::GroupAction;

/// The call.
pub struct DeleteGroups {
    groups: Vec<(String, i16)>,
}

impl DeleteGroups {
    /// Nothing asked yet.
    pub fn open(request: &DeleteGroupsRequest<'_>) -> DeleteGroups {
        DeleteGroups { groups: request.groups_names.iter().map(|name| ((*name).to_owned(), errors::UNKNOWN_SERVER_ERROR)).collect() }
    }
}

impl Call for DeleteGroups {
    fn begin(&mut self, context: &mut Context<'_>) {
        for (part, (name, _)) in (0..).zip(&self.groups) {
            context.ask(part, group::ask(name, GroupAction::Delete));
        }
    }

    fn answer(&mut self, part: u32, reply: Reply, _context: &mut Context<'_>) {
        let Some((_, error)) = self.groups.get_mut(part as usize) else { return };
        match reply {
            Reply::Group(_) => *error = errors::NONE,
            Reply::Failed(failure) => *error = group::code(&failure),
            _ => {}
        }
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let results = self
            .groups
            .into_iter()
            .map(|(name, error)| DeletableGroupResult::default().with_group_id(GroupId(text(name))).with_error_code(error));
        encode(&DeleteGroupsResponse::default().with_results(results.collect()), version, out)
    }
}
