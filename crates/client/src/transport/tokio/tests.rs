use super::*;
use crate::consumer::StartFrom;
use crate::fake::server::Server;
use crate::queue::{Message, QueueConsumerConfig};
use crate::transaction::TransactionConfig;

fn run(test: impl Future<Output = ()>) {
    ::tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn produced_records_are_consumed_over_real_sockets() {
    run(async {
        let server = Server::start(3, 4);
        let client = Client::connect(&server.address()).await.unwrap();
        let config = ProducerConfig { batch_bytes: 2_000, buffer_bytes: 20_000, ..ProducerConfig::default() };
        let delivered = Arc::new(Mutex::new(0));
        let counter = Arc::clone(&delivered);
        let mut producer = client.producer_with("t", config, move |d| *counter.lock().unwrap() += d.record_count).await.unwrap();
        for i in 0..20_000u64 {
            let value = i.to_string();
            producer.send(Record { value: Some(value.as_bytes()), partition: Some((i % 4) as u32), ..Record::default() }).await.unwrap();
            if i % 5_000 == 2_500 {
                server.cut_connections();
            }
        }
        producer.flush().await.unwrap();
        assert_eq!((producer.acknowledged(), *delivered.lock().unwrap()), (20_000, 20_000));
        let (receipt, delivery) =
            producer.send_and_wait(Record { value: Some(b"20000"), partition: Some(0), ..Record::default() }).await.unwrap();
        assert_eq!(delivery.offset_of(receipt), Some(5_000));

        let config = ConsumerConfig { name: Some("c".into()), max_wait: Duration::from_millis(20), ..ConsumerConfig::default() };
        let mut consumer = client.consumer("t", config.clone()).await.unwrap();
        let mut next = [0, 1, 2, 3];
        while !consumer.at_end() {
            let Some(batch) = consumer.poll(Duration::from_secs(1)).await.unwrap() else { continue };
            for record in batch.records() {
                let value = &mut next[record.partition_index as usize];
                assert_eq!(record.value, Some(value.to_string().as_bytes()));
                *value += 4;
            }
        }
        assert_eq!(next, [20_004, 20_001, 20_002, 20_003]);
        server.cut_connections();
        consumer.commit().await.unwrap();
        assert_eq!(client.read_offset("c", PartitionId(10)).await.unwrap().offset, Some(5_001));
        let mut again = client.consumer("t", ConsumerConfig { from: StartFrom::Committed, ..config }).await.unwrap();
        assert!(again.poll(Duration::from_millis(200)).await.unwrap().is_none());
    });
}

#[test]
fn linger_ends_without_a_flush_and_nobody_there_is_typed() {
    run(async {
        let server = Server::start(1, 1);
        let client = Client::connect(&server.address()).await.unwrap();
        let mut producer =
            client.producer("t", ProducerConfig { linger: Duration::from_millis(5), ..ProducerConfig::default() }).await.unwrap();
        producer.send(Record { value: Some(b"x"), ..Record::default() }).await.unwrap();
        let begin = Instant::now();
        while producer.acknowledged() < 1 {
            assert!(begin.elapsed() < Duration::from_secs(5));
            ::tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(matches!(Client::connect(&free.to_string()).await, Err(CallError::Connection(ConnectionError::Connect { .. }))));
    });
}

#[test]
fn queue_is_received_and_settled_over_real_sockets() {
    run(async {
        let server = Server::start(3, 4);
        server.broker.lock().unwrap().partitions.iter_mut().for_each(|partition| partition.queue.ready = (0..1_000).collect());
        let client = Client::connect(&server.address()).await.unwrap();
        let config = QueueConsumerConfig { prefetch: 200, max_wait: Duration::from_millis(20), ..QueueConsumerConfig::default() };
        let mut consumer = client.queue_consumer("q", config).await.unwrap();
        let mut acked = 0;
        while acked < 4_000 {
            let message = consumer.recv(Duration::from_secs(10)).await.unwrap().expect("a message");
            assert_eq!(message.value(), Some(message.offset().to_string().as_bytes()));
            acked += u64::from(consumer.ack(&message));
        }
        assert_eq!(consumer.close().await.unwrap().settled, 4_000);

        server.wait_until_served(1);
        server.broker.lock().unwrap().partitions[1].queue.ready = (2_000..2_010).collect();
        let mut pulling = client.queue_consumer("q", QueueConsumerConfig { prefetch: 0, ..QueueConsumerConfig::default() }).await.unwrap();
        assert_eq!(client.peek_queue("q", 2, 0, 10).await.unwrap(), []);
        let taken = pulling.get(4, Duration::from_secs(5)).await.unwrap();
        assert_eq!(taken.iter().map(Message::offset).collect::<Vec<_>>(), [2_000, 2_001, 2_002, 2_003]);
        pulling.ack_up_to(&taken[2]);
        pulling.nack(&taken[3], Duration::ZERO);
        assert_eq!(pulling.flush().await.unwrap().settled, 4);
        assert_eq!(client.purge_queue("q").await.unwrap(), 7);
        assert!(pulling.get(4, Duration::from_millis(30)).await.unwrap().is_empty());
        assert!(matches!(client.queue_map("other").await, Err(CallError::UnknownQueue { .. })));
    });
}

#[test]
fn transaction_moves_messages_over_real_sockets() {
    run(async {
        let server = Server::start(3, 4);
        server.broker.lock().unwrap().partitions.iter_mut().for_each(|partition| partition.queue.ready = (0..100).collect());
        let client = Client::connect(&server.address()).await.unwrap();
        let config = QueueConsumerConfig { prefetch: 50, max_wait: Duration::from_millis(20), ..QueueConsumerConfig::default() };
        let mut consumer = client.queue_consumer("q", config).await.unwrap();
        let mut transactor = client.transactor("worker", TransactionConfig::default()).await.unwrap();
        let (mut moved, mut turn) = (0, 0);
        while moved < 400 {
            let first = consumer.recv(Duration::from_secs(10)).await.unwrap().expect("a message");
            let mut messages = vec![first];
            messages.extend(consumer.try_recv().await.unwrap());
            let mut transaction = transactor.begin().await.unwrap();
            for message in &messages {
                transaction.publish("t", message.again().partition(message.partition_index()).record()).await.unwrap();
            }
            transaction.ack(&mut consumer, &messages).await.unwrap();
            turn += 1;
            match turn % 7 {
                // As if nothing had happened: they are this consumer's, and go into the next one.
                3 | 5 => {
                    if turn % 7 == 3 {
                        transaction.abort().await.unwrap()
                    } else {
                        drop(transaction)
                    }
                    let mut transaction = transactor.begin().await.unwrap();
                    for message in &messages {
                        transaction.publish("t", message.again().partition(message.partition_index()).record()).await.unwrap();
                    }
                    transaction.ack(&mut consumer, &messages).await.unwrap();
                    transaction.commit().await.unwrap();
                }
                _ => transaction.commit().await.unwrap(),
            }
            moved += messages.len();
        }
        let broker = server.broker.lock().unwrap();
        for index in 0..4 {
            let mut values: Vec<u64> = broker
                .committed
                .iter()
                .filter(|(at, _)| *at == index)
                .map(|(_, value)| String::from_utf8_lossy(value).parse().unwrap())
                .collect();
            values.sort_unstable();
            assert_eq!(values, (0..100).collect::<Vec<u64>>());
            assert_eq!(broker.partitions[index].queue.acked.len(), 100);
        }
    });
}
