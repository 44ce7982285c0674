//! Transactions in the native protocol: several publishes and acknowledgements that take effect together, or not at all.
//!
//! A transactional producer has a name of its own choice, the *transactional id*. It takes the id over ([`TransactionCall::Init`])
//! and gets a number and an *epoch*; whoever had the id before is *fenced* and what it had open is aborted. Every transaction
//! has an epoch of its own: the answer to [`TransactionCall::End`] names the next. So nothing begins a transaction by itself: frames with
//! [`crate::frame::flags::TRANSACTIONAL`], the producer's number and the epoch belong to it (their sequences begin at 0 in each
//! partition), and so do settlements sent with [`crate::Op::QueueStage`]. The partitions join by themselves. What comes late, after
//! the end, is refused by its epoch.
//!
//! Readers and queues see what was published when it is committed, and never what was aborted.
//!
//! **Two phases with check-back**, for a producer that publishes, works on something of its own, and then says whether the message counts: if
//! it is gone meanwhile, somebody else who can find out must say it. [`TransactionCall::Init`] with a [`CheckBack`] names a group of such.
//! A transaction that is open for longer than [`CheckBack::after_ms`] is offered to whoever of the group asks with [`TransactionsToCheck`], once
//! per `after_ms`; the decision is an ordinary [`TransactionCall::End`] with the producer offered, or nothing, if it isn't known
//! yet. After the timeout it is aborted: that and `after_ms` say how often it is asked about. The transactional id is what the
//! checker knows the transaction by: name it after what it is about (`order 4711`).
//! Until the decision nobody gets anything behind an undecided record of its partition: use a topic of its own for such messages.

use rkyv::{Archive, Deserialize, Serialize};

/// Longest transactional id, in bytes.
pub const TRANSACTIONAL_ID_MAX_BYTES: usize = 1024;
/// Longest time that a transaction may be open, in ms.
pub const TRANSACTION_TIMEOUT_MAX_MS: u32 = 900_000;
/// A producer with this epoch can do nothing more but [`TransactionCall::Init`], which gives it another number.
pub const EPOCH_LAST: u16 = i16::MAX as u16;

/// Longest name of a group of checkers, in bytes.
pub const CHECK_GROUP_MAX_BYTES: usize = 255;
/// Most transactions of one answer to [`TransactionsToCheck`].
pub const TO_CHECK_MAX: u32 = 1_000;

/// Who is asked about transactions that stay open.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct CheckBack {
    /// Whoever asks for this group's; 1 to [`CHECK_GROUP_MAX_BYTES`] bytes.
    pub group: String,
    /// A transaction that is open for so long is offered, and again after so long; at least 1.
    pub after_ms: u32,
}

/// Asks for transactions of a group that are to be decided, of one shard. Answered when there are some, or when the wait is over.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct TransactionsToCheck {
    /// Which.
    pub group: String,
    /// An index into [`crate::control::MetadataReply::shard_ports`]; any shard may have some.
    pub shard: u16,
    /// At most so many, 1 to [`TO_CHECK_MAX`].
    pub max: u32,
    /// Answer empty after so many ms; at most [`crate::queue::RECEIVE_WAIT_MAX_MS`].
    pub max_wait_ms: u32,
}

/// Transactions to be decided; none of them is offered to another before its interval is over.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct TransactionsChecked {
    /// The one that has waited longest first.
    pub transactions: Vec<TransactionToCheck>,
}

/// A transaction to be decided, with [`TransactionCall::End`].
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct TransactionToCheck {
    /// Its id.
    pub transactional_id: String,
    /// Who it is open for.
    pub producer: TransactionProducer,
    /// When it began, ms since the Unix epoch.
    pub begun_ms: i64,
}

/// A transactional producer in one of its epochs.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TransactionProducer {
    /// Its number.
    pub producer_id: i64,
    /// Which epoch: which transaction.
    pub epoch: u16,
}

/// A request about the transactions of one id.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct TransactionRequest {
    /// 1 to [`TRANSACTIONAL_ID_MAX_BYTES`] bytes.
    pub transactional_id: String,
    /// What is wanted.
    pub call: TransactionCall,
}

/// What can be asked about the transactions of one id. `ConcurrentTransactions` = the last step isn't complete: ask again.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum TransactionCall {
    /// Takes the id over; what is open is aborted → [`TransactionAnswer::Producer`], durable.
    Init {
        /// A transaction that is open for longer is aborted; 1 to [`TRANSACTION_TIMEOUT_MAX_MS`].
        timeout_ms: u32,
        /// Who is asked about a transaction that stays open; `None` = nobody.
        check: Option<CheckBack>,
        /// The last producer that the caller knows as its own: `ProducerFenced` if another has taken over since.
        current: Option<TransactionProducer>,
    },
    /// Ends the transaction, also one without anything in it → [`TransactionAnswer::Producer`] for the next one, when that is durable. Asking again does
    /// no harm. `ProducerFenced`; `InvalidTransactionState` = it was decided otherwise, by its timeout for instance.
    End {
        /// Whose.
        producer: TransactionProducer,
        /// It takes effect; else it doesn't.
        commit: bool,
    },
    /// → [`TransactionAnswer::Description`], or `TransactionNotFound`.
    Describe,
}

/// Answers to [`TransactionCall`].
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum TransactionAnswer {
    /// Who the caller is from now on.
    Producer(TransactionProducer),
    /// All there is to see.
    Description {
        /// As in a list.
        listed: TransactionListed,
        /// A transaction open for longer is aborted.
        timeout_ms: u32,
        /// Numbers of partitions that take part now.
        partitions: Vec<u32>,
        /// Consumer groups whose offsets take part now.
        groups: Vec<String>,
    },
}

/// Asks for every transactional id.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListTransactions {
    /// 0.
    pub reserved: u32,
}

/// Every transactional id, in order.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct TransactionList {
    /// Theirs.
    pub transactions: Vec<TransactionListed>,
}

/// A transactional id.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct TransactionListed {
    /// Its name.
    pub transactional_id: String,
    /// Its producer.
    pub producer: TransactionProducer,
    /// `Empty`, `Ongoing`, `Committing`, `Aborting`, `Committed`, `Aborted`.
    pub phase: String,
    /// When the one that isn't done yet began, ms since the Unix epoch; -1 = there is none.
    pub begun_ms: i64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{read_open, write_open};

    #[test]
    fn requests_round_trip() {
        let producer = TransactionProducer { producer_id: 1 << 48, epoch: 7 };
        let check = Some(CheckBack { group: "payments".into(), after_ms: 6_000 });
        for call in [
            TransactionCall::Init { timeout_ms: 1, check, current: Some(producer) },
            TransactionCall::End { producer, commit: true },
            TransactionCall::Describe,
        ] {
            let request = TransactionRequest { transactional_id: "order 4711".into(), call };
            let mut bytes = Vec::new();
            write_open(&request, &mut bytes);
            assert_eq!(read_open::<TransactionRequest>(&bytes), Ok(request));
        }
    }

    proptest::proptest! {
        /// Random bytes are refused or read; they never panic.
        #[test]
        fn random_bytes_never_panic(mut input in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            if input.len() > 2 { input[0] = 1; input[1] = 0; }
            let _ = read_open::<TransactionRequest>(&input);
            let _ = read_open::<TransactionAnswer>(&input);
            let _ = read_open::<TransactionsToCheck>(&input);
            let _ = read_open::<TransactionsChecked>(&input);
            let _ = crate::queue::QueueStage::read(&input);
        }
    }
}
