//! What the async clients have in common.

/// The administrative calls of an async client that has `call`.
macro_rules! async_calls {
    () => {
        /// Topics (`None` = all) and the shard map; a topic that doesn't exist is missing in the answer.
        pub async fn metadata(&self, topics: Option<&[&str]>) -> Result<MetadataReply, CallError> {
            self.call(&admin::metadata(topics)).await
        }

        /// Creates a topic; durable when this returns. Errors: `Broker` (`TopicExists`, `InvalidTopic`, …).
        pub async fn create_topic(&self, topic: &CreateTopic) -> Result<TopicInfo, CallError> {
            self.call(topic).await
        }

        /// Changes a topic's settings or adds partitions. Errors: `Broker`.
        pub async fn alter_topic(&self, change: &AlterTopic) -> Result<TopicInfo, CallError> {
            self.call(change).await
        }

        /// Deletes a topic and its records. Errors: `Broker` (`UnknownTopic`).
        pub async fn delete_topic(&self, name: &str) -> Result<(), CallError> {
            self.call(&DeleteTopic(name.into())).await
        }

        /// A topic and the state of its partitions. Errors: `Broker` (`UnknownTopic`).
        pub async fn describe_topic(&self, name: &str) -> Result<TopicDescription, CallError> {
            self.call(&DescribeTopic(name.into())).await
        }

        /// The broker's counters.
        pub async fn stats(&self) -> Result<StatsReply, CallError> {
            self.call(&StatsRequest { reserved: 0 }).await
        }

        /// The first offset at or after a time (ms since the Unix epoch), or one of
        /// [`LATEST`](ringmain_wire::control::LATEST), [`EARLIEST`](ringmain_wire::control::EARLIEST).
        /// `partition`: its number from the metadata, not its index.
        pub async fn list_offset(&self, partition: PartitionId, timestamp_ms: i64) -> Result<ListOffsetsReply, CallError> {
            self.call(&admin::list_offset(partition, timestamp_ms)).await
        }

        /// Remembers `offset`, the next one wanted, for the consumer of that name; durable when this returns.
        /// `metadata`: anything, at most 4,096 bytes.
        pub async fn commit_offset(&self, consumer: &str, partition: PartitionId, offset: u64, metadata: &str) -> Result<(), CallError> {
            let request = CommitOffset { consumer: consumer.into(), partition: partition.0, offset, metadata: metadata.into() };
            self.call(&request).await
        }

        /// What the consumer of that name committed.
        pub async fn read_offset(&self, consumer: &str, partition: PartitionId) -> Result<ReadOffsetReply, CallError> {
            self.call(&ReadOffset { consumer: consumer.into(), partition: partition.0 }).await
        }

        /// An id for an idempotent producer; producers get their own.
        pub async fn init_producer(&self) -> Result<ProducerGrant, CallError> {
            self.call(&InitProducer).await
        }

        /// Where a topic is. Errors: `UnknownTopic`.
        pub async fn topic_map(&self, topic: &str) -> Result<TopicMap, CallError> {
            TopicMap::find(&self.metadata(Some(&[topic])).await?, topic).map_err(|error| match error {
                MetadataError::UnknownTopic { topic } => CallError::UnknownTopic { topic },
                other => CallError::Metadata(other),
            })
        }
    };
}
