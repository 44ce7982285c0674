//! One blocking connection for everything that isn't measured: topics, offsets, the broker's counters.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ringmain_wire::control::{
    self, CONTROL_VERSION, CreateTopic, ErrorReply, Hello, HelloReply, ListOffsets, ListOffsetsReply, MetadataReply, MetadataRequest,
    StatsReply, StatsRequest, TopicInfo, TopicName,
};
use ringmain_wire::queue::{CreateQueue, QueueInfo, QueueName, read_config, write_config};
use ringmain_wire::{Envelope, ErrorCode, Op, PROTOCOL_VERSION, envelope};

/// A broker that answers nothing for this long is taken for dead.
const PATIENCE: Duration = Duration::from_secs(30);
/// No answer of a control operation is larger; a length beyond is no envelope.
const LONGEST_ANSWER_BYTES: u32 = 64 << 20;

/// A connection that has said hello.
#[derive(Debug)]
pub struct Control {
    stream: TcpStream,
    correlation: u64,
    /// What the broker said about itself.
    pub hello: HelloReply,
}

impl Control {
    /// Connects and negotiates.
    pub fn connect(address: SocketAddr) -> Result<Control> {
        let stream =
            TcpStream::connect_timeout(&address, PATIENCE).with_context(|| format!("no broker answers at {address}; is it running?"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let hello =
            HelloReply { protocol_version: 0, broker_version: String::new(), cluster_id: 0, max_request_bytes: 0, max_in_flight: 0 };
        let mut control = Control { stream, correlation: 0, hello };
        let hello = Hello {
            protocol_version: PROTOCOL_VERSION,
            client_name: "ringmain bench".into(),
            auth_mechanism: String::new(),
            auth_data: Vec::new(),
        };
        let mut body = Vec::new();
        control::write_open(&hello, &mut body);
        let answer = control.call(Op::Hello, &body)?;
        control.hello = control::read_open(&answer)?;
        Ok(control)
    }

    /// The socket, to be driven by someone else.
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// One request and its answer's body.
    pub fn call(&mut self, op: Op, body: &[u8]) -> Result<Vec<u8>> {
        self.correlation += 1;
        let request = Envelope { len: body.len() as u32, op: op as u16, flags: 0, correlation: self.correlation };
        let mut bytes = request.to_bytes().to_vec();
        bytes.extend_from_slice(body);
        self.stream.write_all(&bytes).with_context(|| format!("sending {op:?}"))?;
        let mut head = [0; Envelope::BYTES];
        self.stream.read_exact(&mut head).with_context(|| format!("waiting for the answer to {op:?}"))?;
        let Some(reply) = Envelope::read(&head) else { bail!("the answer to {op:?} has no envelope") };
        if reply.correlation != self.correlation || reply.op != op as u16 || reply.len > LONGEST_ANSWER_BYTES {
            bail!("the answer to {op:?} is none: {reply:?}");
        }
        let mut answer = vec![0; reply.len as usize];
        self.stream.read_exact(&mut answer).with_context(|| format!("reading the answer to {op:?}"))?;
        if reply.flags & envelope::flags::ERROR != 0 {
            bail!("{op:?}: {}", error_text(&answer));
        }
        Ok(answer)
    }

    /// Topics and the shard map.
    pub fn metadata(&mut self, topic: &str) -> Result<(Option<TopicInfo>, Vec<u16>)> {
        let mut body = Vec::new();
        control::write_open(&MetadataRequest { topics: Some(vec![topic.to_owned()]) }, &mut body);
        let reply: MetadataReply = control::read_open(&self.call(Op::Metadata, &body)?)?;
        Ok((reply.topics.into_iter().find(|t| t.name == topic), reply.shard_ports))
    }

    /// Creates a topic; returns once it is durable.
    pub fn create_topic(&mut self, request: &CreateTopic) -> Result<()> {
        let mut body = Vec::new();
        control::write_open(request, &mut body);
        self.call(Op::CreateTopic, &body).with_context(|| format!("creating topic '{}'", request.name)).map(drop)
    }

    /// Deletes a topic.
    pub fn delete_topic(&mut self, name: &str) -> Result<()> {
        let mut body = Vec::new();
        control::write_open(&TopicName { name: name.to_owned() }, &mut body);
        self.call(Op::DeleteTopic, &body).map(drop)
    }

    /// Creates a queue; its number, once it is durable.
    pub fn create_queue(&mut self, request: &CreateQueue) -> Result<u32> {
        let mut body = Vec::new();
        write_config(request, &mut body);
        let answer = self.call(Op::CreateQueue, &body).with_context(|| format!("creating queue '{}'", request.name))?;
        let info: QueueInfo = read_config(&answer)?;
        Ok(info.queue)
    }

    /// Deletes a queue.
    pub fn delete_queue(&mut self, name: &str) -> Result<()> {
        let mut body = Vec::new();
        control::write_open(&QueueName { name: name.to_owned() }, &mut body);
        self.call(Op::DeleteQueue, &body).map(drop)
    }

    /// `when`: [`control::LATEST`] or [`control::EARLIEST`].
    pub fn offset(&mut self, partition: u32, when: i64) -> Result<u64> {
        let request = ListOffsets { version: CONTROL_VERSION, reserved: 0, partition, timestamp_ms: when };
        let answer = self.call(Op::ListOffsets, &request.to_bytes())?;
        Ok(ListOffsetsReply::read(&answer)?.offset)
    }

    /// The broker's counters.
    pub fn stats(&mut self) -> Result<StatsReply> {
        let mut body = Vec::new();
        control::write_open(&StatsRequest { reserved: 0 }, &mut body);
        Ok(control::read_open(&self.call(Op::Stats, &body)?)?)
    }
}

/// The body of an error reply, for people.
pub fn error_text(body: &[u8]) -> String {
    match control::read_open::<ErrorReply>(body) {
        Ok(error) => format!("{} ({})", error.message, ErrorCode::from_number(error.code)),
        Err(_) => "an error reply that can't be read".into(),
    }
}
