//! The nodes, for clients that ask for nothing else.

use kafka_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use kafka_protocol::messages::{BrokerId, DescribeClusterResponse};

use super::metadata::cluster_id;
use super::{Answer, Call, Context, encode, text};
use crate::frontend::kafka::decode::DescribeClusterRequest;
use crate::frontend::kafka::errors;

/// The call: it asks nobody.
pub struct DescribeCluster {
    endpoint_type: i8,
}

/// Endpoints that serve clients; the others are controllers.
const BROKERS: i8 = 1;

impl DescribeCluster {
    /// What kind of endpoints is wanted.
    pub fn open(request: &DescribeClusterRequest) -> DescribeCluster {
        DescribeCluster { endpoint_type: request.endpoint_type }
    }
}

impl Call for DescribeCluster {
    fn respond(self: Box<Self>, version: i16, context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let mut response = DescribeClusterResponse::default().with_cluster_id(text(cluster_id(context.config)));
        if version >= 1 {
            response.endpoint_type = BROKERS;
        }
        if self.endpoint_type != BROKERS {
            let code = if self.endpoint_type == 2 { errors::MISMATCHED_ENDPOINT_TYPE } else { errors::UNSUPPORTED_ENDPOINT_TYPE };
            let response = response.with_error_code(code).with_error_message(Some(text("this endpoint serves clients; ask for brokers")));
            return encode(&response.with_controller_id(BrokerId(-1)), version, out);
        }
        let brokers = context.nodes().map(|(node, host, port)| {
            DescribeClusterBroker::default().with_broker_id(BrokerId(node)).with_host(text(host)).with_port(i32::from(port))
        });
        encode(&response.with_controller_id(BrokerId(0)).with_brokers(brokers.collect()), version, out)
    }
}
