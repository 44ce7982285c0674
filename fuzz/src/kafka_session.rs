//! A whole connection of the Kafka door: its bytes, in pieces, and answers that are errors, in another order than they were asked.

use std::net::IpAddr;
use std::rc::Rc;

use ringmain::frontend::kafka::{KafkaConfig, KafkaSession, Node};
use ringmain::frontend::{Ends, Outbox, Received, Session, View};
use ringmain::request::{Failure, Now, Reply};
use ringmain::shard::Catalog;
use ringmain::shard::catalog::CatalogLimits;
use ringmain_wire::code::ErrorCode;
use ringmain_wire::control::{CreateTopic, TopicConfig};

/// Most that one request may make the session say, in so small a world.
const ANSWERS_MAX_BYTES: usize = 64 << 20;

pub fn run(input: &[u8]) {
    let mut catalog = Catalog::default();
    for name in ["t", "hostile"] {
        let create = CreateTopic { name: name.into(), partition_count: 2, config: TopicConfig::default() };
        let change = catalog.decide_create(&create, CatalogLimits { partitions_max: 100, shard_count: 2 }).unwrap();
        catalog.apply(&change);
    }
    let config = KafkaConfig {
        cluster_id: 7,
        max_request_bytes: 1 << 20,
        nodes: vec![Node { host: None, port: 9092 }, Node { host: None, port: 19093 }],
        epochs: vec![1, 2],
        node: 0,
        data_dir: "/data".into(),
        creates_topics: true,
        default_partitions: 1,
    };
    let mut session = KafkaSession::new(Rc::new(config), Ends { local: IpAddr::from([127, 0, 0, 1]), peer: IpAddr::from([127, 0, 0, 1]) });
    let (mut out, mut pending, mut at, mut answers) = (Outbox::default(), Vec::new(), 0, 0u16);
    // Each step takes bytes or answers something, so there can't be many.
    for step in 0..100_000u64 {
        let view = View { now: Now { monotonic_us: step * 1000, wall_ms: 1_800_000_000_000 }, catalog: &catalog, memory_bytes: 1 << 30 };
        let mut waits = session.closing().is_some() || session.in_flight() >= session.max_in_flight();
        if !waits {
            match session.receive(&input[at..], &view, &mut out) {
                Err(_) => return,
                Ok(Received::More { .. }) => waits = true,
                Ok(Received::Request { consumed_bytes, id, .. }) => {
                    at += consumed_bytes;
                    pending.push(id);
                }
                Ok(Received::Handled { consumed_bytes }) => at += consumed_bytes,
            }
        }
        while let Some((id, _)) = session.poll_request() {
            pending.push(id);
        }
        if waits {
            // The latest first: other cores answer when they like.
            let Some(id) = pending.pop() else { return };
            answers += 1;
            let failure = Failure::new(ErrorCode::from_number(1 + answers % 24), "");
            session.reply(id, Reply::Failed(failure), false, &view, &mut out);
            while let Some((id, _)) = session.poll_request() {
                pending.push(id);
            }
        }
        assert!(out.len_bytes + session.held_bytes() < ANSWERS_MAX_BYTES, "{} bytes of answers", out.len_bytes);
        assert!(at <= input.len());
    }
    panic!("the session gets nowhere: {at} of {} bytes, {} requests unanswered", input.len(), pending.len());
}
