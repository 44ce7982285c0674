//! The transactional ids that this node coordinates: clients ask every node, and put the answers together.

use kafka_protocol::messages::list_transactions_response::TransactionState;
use kafka_protocol::messages::{ListTransactionsResponse, ProducerId, TransactionalId};

use super::metadata::node_of_shard;
use super::{Answer, Call, Context, encode, text, transaction};
use crate::frontend::kafka::decode::ListTransactionsRequest;
use crate::frontend::kafka::errors;
use crate::request::Reply;
use crate::request::transaction::TransactionListing;
use crate::router::letter::OwnedRequest;

/// The call.
pub struct ListTransactions {
    /// Empty = all.
    states: Vec<String>,
    /// Empty = all.
    producers: Vec<i64>,
    /// Only those open for longer; negative = all.
    open_for_ms: i64,
    error: i16,
    found: Vec<TransactionListing>,
}

impl ListTransactions {
    /// Nothing asked yet.
    pub fn open(request: &ListTransactionsRequest<'_>) -> ListTransactions {
        ListTransactions {
            states: request.state_filters.iter().map(|state| (*state).to_owned()).collect(),
            producers: request.producer_id_filters.clone(),
            open_for_ms: request.duration_filter,
            error: errors::UNKNOWN_SERVER_ERROR,
            found: Vec::new(),
        }
    }

    fn is_wanted(&self, listing: &TransactionListing, now_ms: i64) -> bool {
        let state = transaction::state(listing.phase);
        let is_open_for_long = listing.begun_ms >= 0 && now_ms.saturating_sub(listing.begun_ms) > self.open_for_ms;
        (self.states.is_empty() || self.states.iter().any(|wanted| wanted == state))
            && (self.producers.is_empty() || self.producers.contains(&listing.producer.id.0))
            && (self.open_for_ms < 0 || is_open_for_long)
    }
}

impl Call for ListTransactions {
    fn begin(&mut self, context: &mut Context<'_>) {
        context.ask(0, OwnedRequest::ListTransactions);
    }

    fn answer(&mut self, _part: u32, reply: Reply, _context: &mut Context<'_>) {
        match reply {
            Reply::Transactions(found) => (self.error, self.found) = (errors::NONE, found),
            Reply::Failed(failure) => self.error = transaction::code(&failure, true),
            _ => {}
        }
    }

    fn respond(self: Box<Self>, version: i16, context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let now_ms = context.view.now.wall_ms;
        let is_here = |listing: &TransactionListing| {
            node_of_shard(context.view.catalog.coordinator(&listing.transactional_id).0, context.config) == context.config.node
        };
        let found = self.found.iter().filter(|listing| is_here(listing) && self.is_wanted(listing, now_ms));
        let states = found.map(|listing| {
            TransactionState::default()
                .with_transactional_id(TransactionalId(text(listing.transactional_id.clone())))
                .with_producer_id(ProducerId(listing.producer.id.0))
                .with_transaction_state(text(transaction::state(listing.phase)))
        });
        let unknown = self.states.iter().filter(|state| !transaction::STATES.contains(&state.as_str()));
        let response = ListTransactionsResponse::default()
            .with_error_code(self.error)
            .with_unknown_state_filters(unknown.map(|state| text(state.clone())).collect())
            .with_transaction_states(states.collect());
        encode(&response, version, out)
    }

    fn held_bytes(&self) -> usize {
        self.found.iter().map(|listing| size_of::<TransactionListing>() + listing.transactional_id.len()).sum()
    }
}
