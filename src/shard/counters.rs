//! What a shard counts, for `status` and the metrics: plain integers, read between turns.

/// Counted since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Records appended.
    pub records_in: u64,
    /// Bytes of frames appended, padding excluded.
    pub bytes_in: u64,
    /// Frames appended.
    pub frames_in: u64,
    /// Bytes of frames in fetch replies.
    pub bytes_out: u64,
    /// Fetch replies with frames.
    pub fetches: u64,
    /// Fetch replies that needed the device.
    pub fetches_cold: u64,
    /// Duplicates recognised.
    pub duplicates: u64,
    /// Requests answered with an error.
    pub failures: u64,
    /// Requests turned away for later: memory or a queue was full.
    pub busy: u64,
    /// Checkpoints completed.
    pub checkpoints: u64,
    /// State records appended, their bytes.
    pub state_bytes: u64,
    /// Partitions of which retention dropped something.
    pub retention_cuts: u64,
    /// Fetches waiting now.
    pub waiting_fetches: u64,
    /// Produce requests waiting for their acknowledgement now.
    pub waiting_acks: u64,
    /// Idempotent producers remembered now, over all partitions.
    pub producers: u64,
    /// Message ids remembered now, over all partitions.
    pub message_ids: u64,
    /// Transactions open in partitions now.
    pub transactions_open: u64,
    /// Aborted transactions remembered now, over all partitions.
    pub transactions_aborted: u64,
    /// Transaction markers appended.
    pub markers: u64,
    /// Consumer groups now.
    pub groups: u64,
    /// Bytes charged for groups and their offsets now.
    pub group_bytes: u64,
    /// Cursors of queues now, one per queue and partition.
    pub queue_cursors: u64,
    /// Things they remember one by one now.
    pub queue_entries: u64,
    /// Receives waiting now.
    pub waiting_receives: u64,
    /// Messages delivered by queues.
    pub messages_delivered: u64,
    /// Messages settled by consumers.
    pub messages_settled: u64,
}
