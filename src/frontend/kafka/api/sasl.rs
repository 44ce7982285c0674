//! Authentication isn't there yet, and says so: a client that insists on it learns why it gets no further.

use kafka_protocol::messages::{SaslAuthenticateResponse, SaslHandshakeResponse};

use super::{Answer, Call, Context, encode, text};
use crate::frontend::kafka::errors;

/// A mechanism is asked for.
pub struct SaslHandshake;

/// Somebody wants to prove who they are.
pub struct SaslAuthenticate;

impl Call for SaslHandshake {
    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        encode(&SaslHandshakeResponse::default().with_error_code(errors::UNSUPPORTED_SASL_MECHANISM), version, out)
    }
}

impl Call for SaslAuthenticate {
    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let message = "this broker has no authentication yet: connect with security.protocol PLAINTEXT";
        let response =
            SaslAuthenticateResponse::default().with_error_code(errors::ILLEGAL_SASL_STATE).with_error_message(Some(text(message)));
        encode(&response, version, out)
    }
}
