use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::consumer::StartFrom;
use crate::fake::server::Server;
use crate::links::LinkConfig;
use crate::queue::{Message, QueueConsumerConfig};

fn drain(consumer: &mut Consumer, records: usize) -> Vec<Vec<u64>> {
    let mut read = vec![Vec::new(); 8];
    let deadline = Instant::now() + Duration::from_secs(20);
    while read.iter().map(Vec::len).sum::<usize>() < records {
        assert!(Instant::now() < deadline, "{consumer:?}");
        if let Some(batch) = consumer.poll(Duration::from_millis(100)).unwrap() {
            for record in batch.records() {
                let value: u64 = std::str::from_utf8(record.value.unwrap()).unwrap().parse().unwrap();
                read[record.partition_index as usize].push(value);
            }
            consumer.recycle(batch);
        }
    }
    read
}

#[test]
fn produced_records_are_consumed_over_real_sockets() {
    let server = Server::start(3, 4);
    let client = Client::connect(&server.address()).unwrap();
    assert_eq!(client.hello().unwrap().broker_version, "fake");
    let delivered = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&delivered);
    let config = ProducerConfig { batch_bytes: 2_000, buffer_bytes: 20_000, ..ProducerConfig::default() };
    let on_delivery = move |delivery: &Delivery| {
        counter.fetch_add(u64::from(delivery.record_count), Ordering::SeqCst);
    };
    let mut producer = client.producer_with("t", config, on_delivery).unwrap();
    for i in 0..20_000u64 {
        let value = i.to_string();
        producer.send(Record { value: Some(value.as_bytes()), partition: Some((i % 4) as u32), ..Record::default() }).unwrap();
        if i % 5_000 == 2_500 {
            server.cut_connections();
        }
    }
    producer.flush().unwrap();
    assert_eq!((producer.acknowledged(), producer.open_records(), delivered.load(Ordering::SeqCst)), (20_000, 0, 20_000));
    let (receipt, delivery) = producer.send_and_wait(Record { value: Some(b"20000"), partition: Some(0), ..Record::default() }).unwrap();
    assert_eq!(delivery.offset_of(receipt), Some(5_000));
    producer.close().unwrap();

    let config = ConsumerConfig { name: Some("c".into()), max_wait: Duration::from_millis(20), ..ConsumerConfig::default() };
    let mut consumer = client.consumer("t", config.clone()).unwrap();
    let read = drain(&mut consumer, 20_001);
    for (index, values) in read.iter().enumerate().take(4) {
        assert!(values.iter().zip(0..).all(|(value, i)| *value == i * 4 + index as u64), "partition {index} in order");
    }
    while !consumer.at_end() {
        assert!(consumer.poll(Duration::from_millis(50)).unwrap().is_none());
    }
    server.cut_connections();
    consumer.commit().unwrap();
    assert_eq!(client.read_offset("c", PartitionId(10)).unwrap().offset, Some(5_001));
    let mut again = client.consumer("t", ConsumerConfig { from: StartFrom::Committed, ..config }).unwrap();
    assert!(again.poll(Duration::from_millis(200)).unwrap().is_none());
    assert_eq!(server.broker.lock().unwrap().moved, 0, "every request went straight to the owner");
}

#[test]
fn linger_ends_without_a_flush() {
    let server = Server::start(1, 1);
    let client = Client::connect(&server.address()).unwrap();
    let mut producer = client.producer("t", ProducerConfig { linger: Duration::from_millis(5), ..ProducerConfig::default() }).unwrap();
    for round in 1..=3 {
        producer.send(Record { value: Some(b"x"), ..Record::default() }).unwrap();
        let begin = Instant::now();
        while producer.acknowledged() < round {
            assert!(begin.elapsed() < Duration::from_secs(5));
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert_eq!(server.broker.lock().unwrap().produce_requests, 3);
}

#[test]
fn idle_producer_uses_no_processor_time() {
    let server = Server::start(2, 2);
    let client = Client::connect(&server.address()).unwrap();
    let mut producer = client.producer("t", ProducerConfig::default()).unwrap();
    producer.send(Record { value: Some(b"x"), ..Record::default() }).unwrap();
    producer.flush().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let turns = producer.shared.lock().turns;
    std::thread::sleep(Duration::from_millis(300));
    assert!(producer.shared.lock().turns - turns <= 2, "{} turns while idle", producer.shared.lock().turns - turns);
}

#[test]
fn calls_reach_the_broker_and_refusals_come_back_typed() {
    let server = Server::start(1, 2);
    let client = Client::connect(&server.address()).unwrap();
    assert_eq!(client.metadata(None).unwrap().topics.len(), 1);
    assert!(matches!(client.topic_map("nowhere"), Err(CallError::UnknownTopic { .. })));
    assert!(matches!(client.delete_topic("t"), Err(CallError::Broker(error)) if error.code == ringmain_wire::ErrorCode::UnsupportedOp));
    server.cut_connections();
    assert_eq!(client.list_offset(PartitionId(10), ringmain_wire::control::LATEST).unwrap().offset, 0, "asked again over a new connection");
    let mut builder = ringmain_wire::RecordBatchBuilder::new();
    builder.push(1, None, Some(b"v"), b"");
    let frame = builder.finish(ringmain_wire::frame::Identity::plain(PartitionId(11)));
    assert_eq!(client.produce_frame(frame).unwrap().base_offset, 0);
    let request =
        FetchRequest { version: 1, reserved: 0, partition: 11, offset: 0, min_bytes: 1, max_bytes: 1 << 20, max_wait_ms: 0, flags: 0 };
    let (head, body) = client.fetch_frames(&request).unwrap();
    assert_eq!((head.next_offset, body.len()), (1, FetchReply::BYTES + ringmain_wire::align_up(frame.len())));
}

#[test]
fn nobody_there_and_somebody_else_there_are_typed_errors() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = Client::connect(&free.to_string());
    assert!(matches!(nobody, Err(CallError::Connection(ConnectionError::Connect { .. }))));
    assert!(matches!(Client::connect("no port here"), Err(CallError::Connection(ConnectionError::Resolve { .. }))));

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream: TcpStream = stream;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
            let _ = stream.read(&mut [0; 1_000]);
        }
    });
    let links = LinkConfig::default();
    let other = Client::connect_with(ClientConfig { address, connect_timeout: Duration::from_secs(1), links });
    assert!(matches!(other, Err(CallError::Connection(ConnectionError::Session(_)))), "{other:?}");
}

#[test]
fn queue_is_received_and_settled_over_real_sockets() {
    let server = Server::start(3, 4);
    server.broker.lock().unwrap().partitions.iter_mut().for_each(|partition| partition.queue.ready = (0..1_000).collect());
    let client = Client::connect(&server.address()).unwrap();
    let config = QueueConsumerConfig { prefetch: 200, max_wait: Duration::from_millis(20), ..QueueConsumerConfig::default() };
    let mut consumer = client.queue_consumer("q", config).unwrap();
    let mut acked = 0;
    while acked < 4_000 {
        let message = consumer.recv(Duration::from_secs(10)).unwrap().expect("a message");
        assert_eq!(message.value(), Some(message.offset().to_string().as_bytes()));
        acked += u64::from(consumer.ack(&message));
    }
    assert_eq!(consumer.close().unwrap().settled, 4_000);

    server.wait_until_served(1);
    server.broker.lock().unwrap().partitions[1].queue.ready = (2_000..2_010).collect();
    let mut pulling = client.queue_consumer("q", QueueConsumerConfig { prefetch: 0, ..QueueConsumerConfig::default() }).unwrap();
    assert_eq!(client.peek_queue("q", 2, 0, 10).unwrap(), []);
    let taken = pulling.get(4, Duration::from_secs(5)).unwrap();
    assert_eq!(taken.iter().map(Message::offset).collect::<Vec<_>>(), [2_000, 2_001, 2_002, 2_003]);
    pulling.ack_up_to(&taken[2]);
    pulling.nack(&taken[3], Duration::ZERO);
    assert_eq!(pulling.flush().unwrap().settled, 4);
    assert_eq!(client.purge_queue("q").unwrap(), 7);
    assert!(pulling.get(4, Duration::from_millis(30)).unwrap().is_empty());
    assert!(matches!(client.queue_map("other"), Err(CallError::UnknownQueue { .. })));
}

/// Data and end are told in one go; the end must not be forgotten over the data.
#[test]
fn end_that_comes_with_the_last_bytes_is_seen() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut sockets = Sockets::new(listener.local_addr().unwrap(), Duration::from_secs(5)).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        assert!(stream.read(&mut [0; 4096]).unwrap() > 0, "the hello");
        stream.write_all(b"a reply cut").unwrap();
    });
    let topic = TopicMap {
        topic: 1,
        name: "t".into(),
        partitions: vec![crate::links::Place { partition: 1, port: 0 }],
        max_message_bytes: 1 << 20,
    };
    let mut machine = ConsumerMachine::new(ConsumerConfig::default(), topic).unwrap();
    let mut access = &mut machine;
    while !server.is_finished() {
        assert!(access.connection_problem().is_none());
        sockets.advance(&mut access);
        if access.read_buffer(0).is_empty() {
            sockets.wait_and_read(&mut access, Some(Instant::now() + Duration::from_millis(5))).unwrap();
        } else {
            sockets.advance(&mut access);
            // Nothing is read before both are there.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    server.join().unwrap();
    sockets.wait_and_read(&mut access, Some(Instant::now() + Duration::from_secs(5))).unwrap();
    assert!(access.connection_problem().is_some());
}
