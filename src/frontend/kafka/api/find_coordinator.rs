//! Where groups and transactions are coordinated: the node of the shard of their slot. Answered from the catalog.

use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::{BrokerId, FindCoordinatorResponse};

use super::metadata::node_of_shard;
use super::{Answer, Call, Context, encode, text};
use crate::frontend::kafka::decode::FindCoordinatorRequest;
use crate::frontend::kafka::errors;

const GROUP: i8 = 0;
const TRANSACTION: i8 = 1;

/// The call.
pub struct FindCoordinator {
    key_type: i8,
    keys: Vec<String>,
}

impl FindCoordinator {
    /// One key before version 4, a list from then on.
    pub fn open(request: &FindCoordinatorRequest<'_>, version: i16) -> FindCoordinator {
        let keys = if version >= 4 { request.coordinator_keys.as_slice() } else { &[request.key] };
        FindCoordinator { key_type: request.key_type, keys: keys.iter().map(|key| (*key).to_owned()).collect() }
    }

    fn find(&self, key: &str, context: &Context<'_>) -> Coordinator {
        let answer = Coordinator::default().with_key(text(key)).with_node_id(BrokerId(-1)).with_port(-1);
        let is_possible = self.key_type == GROUP || (self.key_type == TRANSACTION && !key.is_empty());
        let shard = context.view.catalog.coordinator(key);
        let id = node_of_shard(shard.0, context.config);
        let Some(node) = context.config.nodes.get(id as usize).filter(|_| is_possible) else {
            let error = if is_possible { errors::COORDINATOR_NOT_AVAILABLE } else { errors::INVALID_REQUEST };
            return answer.with_error_code(error);
        };
        let host = node.host.clone().unwrap_or_else(|| context.local.to_string());
        answer.with_node_id(BrokerId(id)).with_host(text(host)).with_port(i32::from(node.port))
    }
}

impl Call for FindCoordinator {
    fn respond(self: Box<Self>, version: i16, context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let mut found: Vec<Coordinator> = self.keys.iter().map(|key| self.find(key, context)).collect();
        if version >= 4 {
            return encode(&FindCoordinatorResponse::default().with_coordinators(found), version, out);
        }
        let Coordinator { node_id, host, port, error_code, .. } = found.pop().unwrap_or_default();
        let response = FindCoordinatorResponse::default().with_error_code(error_code).with_node_id(node_id).with_host(host).with_port(port);
        encode(&response, version, out)
    }
}
