//! The transactions of some ids: phase, age, who takes part.

use std::collections::BTreeMap;

use kafka_protocol::messages::describe_transactions_response::{TopicData, TransactionState};
use kafka_protocol::messages::{DescribeTransactionsResponse, ProducerId, TopicName, TransactionalId};

use super::transaction::PARTS_AT_A_TIME;
use super::{Answer, Call, Context, encode, text, transaction};
use crate::frontend::kafka::decode::DescribeTransactionsRequest;
use crate::frontend::kafka::errors;
use crate::request::Reply;
use crate::request::transaction::{TransactionAction, TransactionDescription, TransactionReply};

/// The call.
pub struct DescribeTransactions {
    ids: Vec<Asked>,
    /// The first that hasn't been asked.
    next: usize,
    unanswered: usize,
}

struct Asked {
    id: String,
    error: i16,
    found: Option<TransactionDescription>,
}

impl DescribeTransactions {
    /// Nothing asked yet.
    pub fn open(request: &DescribeTransactionsRequest<'_>) -> DescribeTransactions {
        let asked = |id: &&str| Asked { id: (*id).to_owned(), error: errors::NONE, found: None };
        DescribeTransactions { ids: request.transactional_ids.iter().map(asked).collect(), next: 0, unanswered: 0 }
    }

    fn ask(&mut self, context: &mut Context<'_>) {
        while self.unanswered < PARTS_AT_A_TIME && self.next < self.ids.len() {
            context.ask(self.next as u32, transaction::ask(&self.ids[self.next].id, TransactionAction::Describe));
            self.next += 1;
            self.unanswered += 1;
        }
    }
}

impl Call for DescribeTransactions {
    fn begin(&mut self, context: &mut Context<'_>) {
        self.ask(context);
    }

    fn answer(&mut self, number: u32, reply: Reply, context: &mut Context<'_>) {
        if let Some(asked) = self.ids.get_mut(number as usize) {
            match reply {
                Reply::Transaction(reply) => match *reply {
                    TransactionReply::Description(description) => asked.found = Some(description),
                    _ => asked.error = errors::UNKNOWN_SERVER_ERROR,
                },
                Reply::Failed(failure) => asked.error = transaction::code(&failure, true),
                _ => asked.error = errors::UNKNOWN_SERVER_ERROR,
            }
        }
        self.unanswered -= 1;
        self.ask(context);
    }

    fn respond(self: Box<Self>, version: i16, context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let states = self.ids.into_iter().map(|Asked { id, error, found }| {
            let state = TransactionState::default().with_error_code(error).with_transactional_id(TransactionalId(text(id)));
            let Some(TransactionDescription { listing, timeout_ms, partitions, .. }) = found else { return state };
            let mut topics: BTreeMap<String, Vec<i32>> = BTreeMap::new();
            for (topic, index) in partitions.iter().filter_map(|partition| context.topic_and_index(*partition)) {
                topics.entry(topic).or_default().push(index);
            }
            let topics =
                topics.into_iter().map(|(topic, indexes)| TopicData::default().with_topic(TopicName(text(topic))).with_partitions(indexes));
            state
                .with_transaction_state(text(transaction::state(listing.phase)))
                .with_transaction_timeout_ms(timeout_ms as i32)
                .with_transaction_start_time_ms(listing.begun_ms)
                .with_producer_id(ProducerId(listing.producer.id.0))
                .with_producer_epoch(listing.producer.epoch as i16)
                .with_topics(topics.collect())
        });
        encode(&DescribeTransactionsResponse::default().with_transaction_states(states.collect()), version, out)
    }

    fn held_bytes(&self) -> usize {
        let partitions = |asked: &Asked| asked.found.as_ref().map_or(0, |found| 64 + 4 * found.partitions.len());
        self.ids.iter().map(|asked| size_of::<Asked>() + asked.id.len() + partitions(asked)).sum()
    }
}
