//! kill -9 under foreign clients: nothing acknowledged is lost, nothing of an idempotent producer is there twice, committed offsets
//! stay, transactions are whole or not there.

use std::net::SocketAddr;
use std::time::Duration;

use super::clients::{Clients, Running, clients, run, run_with_input, start, tail};
use crate::harness::{Broker, Random, Start, free_ports};

/// A broker whose ports stay the same over restarts.
fn lasting_broker(name: &str) -> Broker {
    // Two for Kafka, the native one and two of its shards behind it.
    let ports = free_ports(5);
    let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
    // Node 1 is at the port behind the bootstrap port.
    let base = ports.to_string();
    let start = Start::with(&["--shards", "2", "--kafka-shard-base", &base]);
    Broker::start(name, Start { kafka: Some(local(ports)), native: Some(local(ports + 2)), ..start })
}

fn create(clients: &Clients, broker: &Broker, topic: &str) {
    let class = "org.apache.kafka.tools.TopicCommand";
    run(clients.java(class).args(["--bootstrap-server", &broker.kafka(), "--create", "--partitions", "4", "--topic", topic]));
}

/// Kills and restarts the broker under these clients, then ends them one after the other and shows what they say.
fn kill_under(broker: &mut Broker, clients: &mut [(&str, Running)]) {
    let kills: u32 =
        std::env::var("RINGMAIN_TEST_CLIENT_KILLS").map_or(20, |kills| kills.parse().expect("RINGMAIN_TEST_CLIENT_KILLS is a number"));
    let mut random = Random::seeded();
    // A new group waits three seconds for more members.
    std::thread::sleep(Duration::from_secs(8));
    for kill in 1..=kills {
        broker.kill();
        // Every fifth start is cut short, too.
        if kill % 5 == 0 {
            drop(broker.launch());
            std::thread::sleep(Duration::from_micros(random.below(40_000)));
            broker.kill();
        }
        broker.restart();
        std::thread::sleep(Duration::from_millis(200 + random.below(1300)));
        for (name, client) in &mut *clients {
            assert!(!client.has_ended(), "after kill {kill}: {}", said(name, client));
        }
    }
    for (name, client) in clients {
        eprintln!("{}", said(name, client));
    }
}

fn said(name: &str, client: &mut Running) -> String {
    match client.finish(Duration::from_secs(240)) {
        Ok(output) if output.status.success() => format!("{name}: {}", String::from_utf8_lossy(&output.stdout).trim()),
        Ok(output) => panic!("{name} ended with {}:\n{}{}", output.status, String::from_utf8_lossy(&output.stdout), tail(&output.stderr)),
        Err(said) => panic!("{name} hangs:\n{said}"),
    }
}

#[test]
fn kills_under_idempotent_producers_groups_and_copies() {
    let Some(clients) = clients() else { return };
    let mut broker = lasting_broker("kafka-kills");
    create(clients, &broker, "endure");
    create(clients, &broker, "endure-copy");
    let address = broker.kafka();
    let mut running = [
        ("rdkafka producer", start(clients.rdkafka().args([&address, "endure", "endure"]))),
        ("confluent group", start(clients.python("confluent.py").args([&address, "endure_group", "endure", "4"]))),
        ("java copy", start(clients.java("Check").args([&address, "copy", "endure", "endure-copy"]))),
    ];
    kill_under(&mut broker, &mut running);
    run(clients.rdkafka().args([&address, "compare", "endure", "endure-copy"]));
}

#[test]
fn kills_under_transactions() {
    let Some(clients) = clients() else { return };
    let mut broker = lasting_broker("kafka-kills-transactions");
    create(clients, &broker, "endure-tx");
    let address = broker.kafka();
    let mut running = [("rdkafka transactions", start(clients.rdkafka().args([&address, "endure-transactions", "endure-tx"])))];
    kill_under(&mut broker, &mut running);
}

/// Two threads of Kafka Streams: transactions over several topics, offsets in them, a changelog that is read again after a rebalance.
#[test]
fn kills_under_kafka_streams() {
    let Some(clients) = clients() else { return };
    let mut broker = lasting_broker("kafka-kills-streams");
    let address = broker.kafka();
    let mut running = [("streams", start(clients.java("Streams").arg(&address)))];
    kill_under(&mut broker, &mut running);
}

#[test]
fn client_and_broker_die_in_a_transaction() {
    let Some(clients) = clients() else { return };
    let mut broker = lasting_broker("kafka-crash-transaction");
    let address = broker.kafka();
    let died = super::clients::output(clients.java("Check").args([&*address, "crash-in-transaction"]), b"");
    assert_eq!((died.status.code(), &*died.stdout), (Some(9), &b"open\n"[..]), "{}", tail(&died.stderr));
    broker.kill();
    broker.restart();
    let kcat = |arguments: &[&str], input: &str| {
        run_with_input(std::process::Command::new("kcat").args(["-b", &address, "-t", "java-crash"]).args(arguments), input.as_bytes())
    };
    // Held back until its successor ends the open transaction.
    assert_eq!(kcat(&["-C", "-e", "-q", "-X", "isolation.level=read_committed"], ""), "done\n");
    kcat(&["-P", "-X", "transactional.id=java-crash"], "next\n");
    assert_eq!(kcat(&["-C", "-e", "-q", "-X", "isolation.level=read_committed"], ""), "done\nnext\n");
    assert_eq!(kcat(&["-C", "-e", "-q", "-X", "isolation.level=read_uncommitted"], ""), "done\nlost\nnext\n");
}
