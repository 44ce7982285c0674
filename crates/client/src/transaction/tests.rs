use super::*;
use crate::fake::network::Network;
use crate::fake::{FakeBroker, Random};

struct Run {
    machine: TransactionMachine,
    broker: FakeBroker,
    network: Network,
}

fn run(config: TransactionConfig, seed: u64) -> Run {
    let broker = FakeBroker::new(&[0, 7], 4, seed);
    let mut machine = TransactionMachine::new(config, "worker");
    machine.learn(TopicMap::find(&broker.metadata(), "t").unwrap());
    Run { machine, broker, network: Network::new(seed) }
}

fn record(value: &[u8], partition: u32) -> Record<'_> {
    Record { value: Some(value), partition: Some(partition), ..Record::default() }
}

impl Run {
    fn until(&mut self, done: impl Fn(&mut TransactionMachine) -> bool) {
        for _ in 0..100_000 {
            if done(&mut self.machine) {
                return;
            }
            self.network.step(&mut self.machine, &mut self.broker);
        }
        panic!("not done: {:?}", self.machine);
    }

    fn finish(&mut self) -> Result<(), TransactionError> {
        for _ in 0..100_000 {
            if let Some(done) = self.machine.take_done() {
                return done;
            }
            self.network.step(&mut self.machine, &mut self.broker);
        }
        panic!("not done: {:?}", self.machine);
    }

    fn begin(&mut self) -> Result<(), TransactionError> {
        while self.machine.begin()? {
            self.finish()?;
        }
        self.machine.open();
        Ok(())
    }

    fn prepare(&mut self) {
        self.machine.seal_all();
        self.until(|machine| !machine.is_publishing());
    }

    fn end(&mut self, commit: bool) -> Result<(), TransactionError> {
        self.prepare();
        self.machine.end(commit);
        self.finish()
    }
}

/// Connections end at any time, requests are refused for a while: what is committed is there once, in order, and nothing else is.
#[test]
fn what_is_committed_is_there_once_whatever_the_network_does() {
    let mut duplicates = 0;
    for seed in 0..60 {
        let mut run = run(TransactionConfig { batch_bytes: 300, ..TransactionConfig::default() }, seed);
        (run.network.drop_one_in, run.network.cut, run.broker.refuse_one_in) = (40, true, 8);
        let mut random = Random::new(seed);
        let mut expected = vec![Vec::new(); 4];
        for number in 0..40u32 {
            run.begin().unwrap();
            let mut written = Vec::new();
            for part in 0..random.below(12) {
                let (index, value) = (random.below(4) as u32, format!("{number}.{part}"));
                assert!(run.machine.publish("t", &record(value.as_bytes(), index), 0).unwrap());
                written.push((index as usize, value));
                if random.one_in(5) {
                    run.prepare();
                }
            }
            match random.below(4) {
                0 => run.machine.abandon(),
                1 => run.end(false).unwrap(),
                _ => {
                    run.end(true).unwrap();
                    written.into_iter().for_each(|(index, value)| expected[index].push(value));
                }
            }
        }
        for (index, expected) in expected.iter().enumerate() {
            let of_partition = run.broker.committed.iter().filter(|(at, _)| *at == index);
            let got: Vec<&str> = of_partition.map(|(_, value)| std::str::from_utf8(value).unwrap()).collect();
            assert_eq!(got, *expected, "seed {seed}, partition {index}");
        }
        duplicates += run.broker.duplicates;
    }
    assert!(duplicates > 10, "only {duplicates} frames were sent twice");
}

#[test]
fn full_buffer_makes_room_and_records_beyond_every_limit_are_refused() {
    let mut run = run(TransactionConfig { buffer_bytes: 2_000, ..TransactionConfig::default() }, 1);
    run.begin().unwrap();
    let value = [7; 500];
    let taken = (0..10).take_while(|_| run.machine.publish("t", &record(&value, 1), 0).unwrap()).count();
    assert!((2..4).contains(&taken), "{taken} fit");
    run.prepare();
    assert!(run.machine.publish("t", &record(&value, 1), 0).unwrap());
    let large = vec![0; 3_000];
    let refused = run.machine.publish("t", &record(&large, 1), 0).unwrap_err();
    assert!(matches!(refused, TransactionError::Record(SendError::RecordTooLarge { limit_bytes: 2_000, .. })), "{refused}");
    let refused = run.machine.publish("t", &record(b"x", 4), 0).unwrap_err();
    assert!(matches!(refused, TransactionError::Record(SendError::NoSuchPartition { index: 4, partition_count: 4 })), "{refused}");
    run.end(true).unwrap();
    assert_eq!(run.broker.committed.len(), taken + 1);
}

#[test]
fn who_was_taken_over_is_fenced_and_an_epoch_used_up_begins_anew() {
    let mut run = run(TransactionConfig::default(), 2);
    run.begin().unwrap();
    run.machine.publish("t", &record(b"never", 0), 0).unwrap();
    let producer = run.machine.current().unwrap().0;
    // Another one takes the name.
    let known = run.broker.transactions.get_mut("worker").unwrap();
    (known.producer.epoch, known.previous) = (producer.epoch + 2, None);
    run.prepare();
    assert!(matches!(run.machine.failure(), Some(TransactionError::Aborted { .. })), "{:?}", run.machine.failure());
    run.machine.abandon();
    let fenced = run.begin().unwrap_err();
    assert!(matches!(fenced, TransactionError::Fenced { .. }), "{fenced}");
    assert!(matches!(run.machine.begin(), Err(TransactionError::Fenced { .. })), "for good");

    run.machine.rename("other");
    run.begin().unwrap();
    run.broker.transactions.get_mut("other").unwrap().producer.epoch = EPOCH_LAST - 1;
    run.machine.producer = Some(run.broker.transactions["other"].producer);
    run.end(true).unwrap();
    assert!(run.machine.begin().unwrap(), "the last epoch: the name is taken again");
    run.finish().unwrap();
    assert!(run.machine.producer.unwrap().epoch > EPOCH_LAST);
}

#[test]
fn commit_without_an_answer_is_unknown_and_the_next_one_goes_on() {
    let mut run = run(TransactionConfig::default(), 3);
    run.begin().unwrap();
    run.machine.publish("t", &record(b"x", 0), 0).unwrap();
    run.prepare();
    run.network.down = true;
    run.network.drop_all(&mut run.machine);
    run.machine.end(true);
    let outcome = run.machine.current().unwrap().1;
    for _ in 0..50 {
        run.network.step(&mut run.machine, &mut run.broker);
    }
    assert!(run.machine.take_done().is_none());
    assert!(matches!(run.machine.give_up(), TransactionError::Unknown { last_problem: Some(_), .. }));
    assert_eq!(outcome.get(), Decision::Committed, "or may be");
    run.network.down = false;
    run.begin().unwrap();
    run.machine.publish("t", &record(b"y", 0), 0).unwrap();
    run.end(true).unwrap();
    assert_eq!(run.broker.committed, [(0, b"y".to_vec())], "the first one was never asked to be committed");
}
