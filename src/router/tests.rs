//! What the router decides without a shard: who answers, and with what.

use std::sync::Arc;
use std::time::Instant;

use ringmain_wire::control::{PartitionPlace, PartitionState, TopicConfig, TopicInfo};
use ringmain_wire::{ErrorCode, PartitionId};

use super::*;
use crate::device::wake::Waker;
use crate::request::Fetch;

const NOW: Now = Now { monotonic_us: 0, wall_ms: 0 };

/// Core 0 of two; shard 0 is here but closed, shard 1 at the other core, whose end of the mailboxes is returned.
fn router() -> (Router, Mailboxes<Question, Answer>) {
    let broker = Broker {
        io: "uring",
        io_note: String::new(),
        started: Instant::now(),
        core_of_shard: vec![0, 1],
        shard_ports: vec![7172, 7173],
        memory_limit_bytes: 0,
        gauges: vec![CachePadded::new(Gauges::default()), CachePadded::new(Gauges::default())],
    };
    let mut mails = mailbox::mesh((0..2).map(|_| Waker::eventfd().unwrap().0).collect());
    let other = mails.pop().unwrap();
    let mut router = Router::new(0, Arc::new(broker), Shards::closed(), mails.pop().unwrap());
    let mut catalog = Catalog::default();
    catalog.apply(&CatalogChange::TopicCreated {
        topic: 1,
        name: "t".into(),
        config: TopicConfig::default(),
        partitions: vec![PartitionPlace { partition: 1, shard: 1 }, PartitionPlace { partition: 2, shard: 1 }],
    });
    router.set_catalog(&catalog, NOW);
    (router, other)
}

fn origin(request: u64) -> Origin {
    Origin { core: 0, connection: 5, generation: 1, request }
}

fn fetch(partition: u32, max_wait_ms: u32) -> Request<'static> {
    Request::Fetch(Fetch {
        partition: PartitionId(partition),
        from: Default::default(),
        min_bytes: 1,
        max_bytes: 1,
        max_wait_ms,
        committed_only: false,
    })
}

#[test]
fn unknown_partition_is_answered_at_once() {
    let (mut router, _) = router();
    let Ok(Some(Reply::Failed(failure))) = router.submit(origin(1), &fetch(9, 0), NOW) else { panic!() };
    assert_eq!(failure.code, ErrorCode::UnknownPartition);
}

#[test]
fn metadata_names_topics_found_and_shard_ports() {
    let (mut router, _) = router();
    let request = Request::Metadata { topics: Some(vec!["t".into(), "none".into()]) };
    let Ok(Some(Reply::Metadata { topics, shard_ports })) = router.submit(origin(1), &request, NOW) else { panic!() };
    assert_eq!(topics.iter().map(|topic| topic.name.as_str()).collect::<Vec<_>>(), ["t"]);
    assert_eq!(shard_ports, [7172, 7173]);
}

#[test]
fn request_for_another_core_crosses_and_its_answer_is_marked_as_moved() {
    let (mut router, mut other) = router();
    assert!(router.submit(origin(7), &fetch(1, 0), NOW).unwrap().is_none());
    let Some((0, Question::Request { origin: asked, shard, request: OwnedRequest::Fetch(fetch) })) = other.poll_question() else {
        panic!()
    };
    assert_eq!((asked, shard, fetch.partition), (origin(7), ShardId(1), PartitionId(1)));
    other.answer(0, Answer { origin: asked, shard, reply: OwnedReply::Committed });
    router.pump(NOW);
    let delivery = router.poll_delivery().unwrap();
    assert!(delivery.moved && delivery.origin == origin(7) && matches!(delivery.reply, Reply::Committed));
}

#[test]
fn full_mailbox_is_busy_until_an_answer_comes() {
    let (mut router, mut other) = router();
    for n in 0..mailbox::SLOTS as u64 {
        router.submit(origin(n), &fetch(1, 0), NOW).unwrap();
    }
    assert!(router.submit(origin(9999), &fetch(1, 0), NOW).is_err());
    let Some((_, Question::Request { origin: asked, shard, .. })) = other.poll_question() else { panic!() };
    other.answer(0, Answer { origin: asked, shard, reply: OwnedReply::Committed });
    router.pump(NOW);
    router.submit(origin(9999), &fetch(1, 0), NOW).unwrap();
}

#[test]
fn long_polls_leave_slots_for_others() {
    let (mut router, mut other) = router();
    for n in 0..=WAITING_AWAY_MAX as u64 {
        router.submit(origin(n), &fetch(1, 60_000), NOW).unwrap();
    }
    let mut waits = std::iter::from_fn(|| other.poll_question()).map(|(_, question)| match question {
        Question::Request { request: OwnedRequest::Fetch(fetch), .. } => fetch.max_wait_ms,
        other => panic!("{other:?}"),
    });
    assert!(waits.by_ref().take(WAITING_AWAY_MAX).all(|wait| wait == WAIT_AWAY_MAX_MS));
    assert_eq!(waits.next(), Some(WAIT_SHORT_MS), "one too many is answered soon");
}

#[test]
fn description_is_gathered_in_order_of_index() {
    let (mut router, mut other) = router();
    assert!(router.submit(origin(3), &Request::DescribeTopic { name: "t" }, NOW).unwrap().is_none());
    let Some((_, Question::Request { origin: asked, shard, request: OwnedRequest::PartitionStates { partitions } })) =
        other.poll_question()
    else {
        panic!()
    };
    assert_eq!(partitions, [PartitionId(1), PartitionId(2)]);
    let state = |partition| PartitionState { partition, log_start: 0, high_watermark: 1, size_bytes: 2 };
    other.answer(0, Answer { origin: asked, shard, reply: OwnedReply::PartitionStates(vec![state(2), state(1)]) });
    router.pump(NOW);
    let Some(Delivery { origin: to, reply: Reply::Description(description), .. }) = router.poll_delivery() else { panic!() };
    assert_eq!(to, origin(3));
    assert_eq!(description.partitions, [state(1), state(2)]);
}

#[test]
fn change_of_shard_0_is_applied_here_and_acknowledged() {
    let (mut router, mut other) = router();
    let info = TopicInfo {
        topic: 2,
        name: "new".into(),
        partitions: vec![PartitionPlace { partition: 3, shard: 1 }],
        config: TopicConfig::default(),
    };
    let change =
        CatalogChange::TopicCreated { topic: 2, name: "new".into(), config: TopicConfig::default(), partitions: info.partitions.clone() };
    other.tell(0, Question::Catalog { change_id: 4, change: Arc::new(change) });
    router.pump(NOW);
    assert!(matches!(other.poll_question(), Some((0, Question::CatalogApplied { change_id: 4 }))));
    let Ok(Some(Reply::Metadata { topics, .. })) = router.submit(origin(1), &Request::Metadata { topics: Some(vec!["new".into()]) }, NOW)
    else {
        panic!()
    };
    assert_eq!(topics, [info]);
}

#[test]
fn own_change_is_acknowledged_when_every_core_has_it() {
    let (mut router, mut other) = router();
    router.publish(1, CatalogChange::TopicDeleted { topic: 1, partitions: Vec::new() }, NOW);
    assert_eq!(router.unapplied.len(), 1);
    assert!(matches!(other.poll_question(), Some((0, Question::Catalog { change_id: 1, .. }))));
    other.tell(0, Question::CatalogApplied { change_id: 1 });
    router.pump(NOW);
    assert!(router.unapplied.is_empty());
    assert_eq!(router.topic_count(), 0);
}
