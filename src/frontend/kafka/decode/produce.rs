//! A Produce request partition by partition: no list is made, and one can go on later where one stopped.

use super::reader::{Decode, DecodeError, Reader};
use super::requests::{ProducePartition, ProduceRequest, Request};

/// What stands before the topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProduceHead<'a> {
    pub transactional_id: Option<&'a str>,
    pub acks: i16,
    pub timeout_ms: i32,
}

/// A place between two partitions of a Produce request. It holds no borrow: give it the same body every time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProduceWalk {
    version: i16,
    /// In the body.
    position: usize,
    topics_left: usize,
    /// Of the topic whose name is at `topic_position`.
    partitions_left: usize,
    topic_position: usize,
    in_topic: bool,
}

/// One partition's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProduceStep<'a> {
    pub topic: &'a str,
    pub index: i32,
    pub records: Option<&'a [u8]>,
}

impl ProduceWalk {
    /// Reads up to the first topic.
    pub fn begin(body: &[u8], version: i16) -> Result<(ProduceHead<'_>, ProduceWalk), DecodeError> {
        if !ProduceRequest::VERSIONS.contains(&version) {
            return Err(DecodeError::Unsupported { api_key: ProduceRequest::API_KEY, version });
        }
        let mut reader = Reader::new(body, version, version >= ProduceRequest::FLEXIBLE_SINCE);
        let head = ProduceHead {
            transactional_id: Decode::decode(&mut reader)?,
            acks: Decode::decode(&mut reader)?,
            timeout_ms: Decode::decode(&mut reader)?,
        };
        let topics_left = reader.count(super::ProduceTopic::min_bytes(version, reader.flexible))?.ok_or(DecodeError::Null)?;
        let position = body.len() - reader.left().len();
        Ok((head, ProduceWalk { version, position, topics_left, partitions_left: 0, topic_position: 0, in_topic: false }))
    }

    /// The next partition; `None` after the last, when the request has been read to its end.
    pub fn next<'a>(&mut self, body: &'a [u8]) -> Result<Option<ProduceStep<'a>>, DecodeError> {
        let flexible = self.version >= ProduceRequest::FLEXIBLE_SINCE;
        let mut reader = Reader::new(&body[self.position..], self.version, flexible);
        while self.partitions_left == 0 {
            if self.in_topic {
                self.in_topic = false;
                reader.skip_tagged_fields()?;
            }
            self.position = body.len() - reader.left().len();
            if self.topics_left == 0 {
                reader.skip_tagged_fields()?;
                return Ok(None);
            }
            self.topic_position = self.position;
            <&str>::decode(&mut reader)?;
            self.partitions_left = reader.count(ProducePartition::min_bytes(self.version, flexible))?.ok_or(DecodeError::Null)?;
            self.topics_left -= 1;
            self.in_topic = true;
        }
        let topic = <&str>::decode(&mut Reader::new(&body[self.topic_position..], self.version, flexible))?;
        let ProducePartition { index, records } = Decode::decode(&mut reader)?;
        self.partitions_left -= 1;
        self.position = body.len() - reader.left().len();
        Ok(Some(ProduceStep { topic, index, records }))
    }

    /// Walks to the end without stopping; the number of partitions. A request is checked whole before any part of it is done.
    pub fn check(mut self, body: &[u8]) -> Result<usize, DecodeError> {
        let mut count = 0;
        while self.next(body)?.is_some() {
            count += 1;
        }
        Ok(count)
    }
}
