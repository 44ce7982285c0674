//! HTTP to a search engine.

use std::time::Duration;

use anyhow::{Context, Result};

use super::bulk::{Outcome, outcome};

/// An endpoint that takes bulk requests.
pub struct Endpoint {
    agent: ureq::Agent,
    address: String,
    authorization: Option<String>,
}

impl Endpoint {
    /// `timeout`: for one request and its answer, everything included.
    pub fn new(url: &str, authorization: Option<String>, timeout: Duration) -> Endpoint {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            // A redirect would turn a POST into a GET.
            .max_redirects(0)
            .proxy(None)
            .user_agent(concat!("ringmain/", env!("CARGO_PKG_VERSION")))
            .build();
        let address = format!("{url}/_bulk?filter_path=error,errors,items.*.status,items.*.error");
        Endpoint { agent: config.new_agent(), address, authorization }
    }

    /// Sends `document_count` documents. The time beside the outcome is how long the endpoint wants to be left alone.
    ///
    /// Errors: the request can't be made at all, whoever listens.
    pub fn bulk(&self, body: &[u8], document_count: usize) -> Result<(Outcome, Option<Duration>)> {
        let mut request = self.agent.post(&self.address).header("Content-Type", "application/x-ndjson");
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let mut response = match request.send(body) {
            Ok(response) => response,
            Err(error @ (ureq::Error::BadUri(_) | ureq::Error::Http(_))) => return Err(error).context("the request can't be made"),
            Err(error) => return Ok((Outcome::Again(error.to_string()), None)),
        };
        let status = response.status().as_u16();
        let pause = response.headers().get("Retry-After").and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let pause = pause.map(|seconds: u64| Duration::from_secs(seconds).min(PAUSE_MAX));
        match response.body_mut().with_config().limit(ANSWER_MAX_BYTES).read_to_vec() {
            Ok(body) => Ok((outcome(status, &body, document_count), pause)),
            Err(error) => Ok((Outcome::Again(format!("its answer broke off: {error}")), pause)),
        }
    }
}

/// `http://HOST[:PORT][/PATH]`, without the slash at its end.
pub fn url(text: &str) -> Result<String, String> {
    let mistake = |what: &str| Err(format!("{what}; give http://HOST:PORT, with a path if there is one"));
    let Some(rest) = text.strip_prefix("http://") else {
        let is_encrypted = text.starts_with("https://");
        return mistake(if is_encrypted { "TLS isn't spoken here, put a local proxy before it" } else { "this isn't an http URL" });
    };
    if rest.split('/').next().unwrap_or_default().contains('@') {
        return mistake("a password in a URL is for everyone to see: use RINGMAIN_SINK_AUTHORIZATION");
    }
    if rest.is_empty() || rest.starts_with('/') || rest.contains(['?', '#', ' ']) {
        return mistake("this URL has no host, or more than a path");
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// 20 times the answer to the largest bulk.
const ANSWER_MAX_BYTES: u64 = 64 << 20;
/// Longer than that nobody is left alone.
const PAUSE_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_is_plain_http_with_a_host() {
        assert_eq!(url("http://127.0.0.1:9200/").unwrap(), "http://127.0.0.1:9200");
        assert_eq!(url("http://search/prefix/").unwrap(), "http://search/prefix");
        for wrong in ["", "127.0.0.1:9200", "https://search", "http://", "http:///x", "http://a:b@search", "http://search?x=1"] {
            assert!(url(wrong).is_err(), "{wrong}");
        }
    }
}
