//! What is served. A version that isn't known is answered in version 0 with error 35 and the whole list, so that the client
//! can choose again on the same connection.

use kafka_protocol::messages::ApiVersionsResponse;
use kafka_protocol::messages::api_versions_response::ApiVersion;

use super::{Answer, Call, Context, SERVED, encode};
use crate::frontend::kafka::decode::ApiVersionsRequest;
use crate::frontend::kafka::errors;

/// The call.
pub struct ApiVersions {
    error: i16,
}

impl ApiVersions {
    /// The client's name isn't kept.
    pub fn open(_request: ApiVersionsRequest<'_>) -> ApiVersions {
        ApiVersions { error: errors::NONE }
    }

    /// Asked in a version nobody here knows.
    pub fn unsupported() -> ApiVersions {
        ApiVersions { error: errors::UNSUPPORTED_VERSION }
    }
}

impl Call for ApiVersions {
    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let api = |served: &super::Served| {
            ApiVersion::default().with_api_key(served.key as i16).with_min_version(served.advertised_from).with_max_version(served.to)
        };
        let response = ApiVersionsResponse::default().with_error_code(self.error).with_api_keys(SERVED.iter().map(api).collect());
        encode(&response, version, out)
    }
}
