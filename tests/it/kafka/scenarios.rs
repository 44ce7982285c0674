//! The programs of `tests/clients`, one test per client and scenario, each with a broker of its own.

use std::net::SocketAddr;
use std::process::Command;

use super::clients::{broker, clients, run};
use crate::harness::{Broker, Start, free_ports};

macro_rules! scenarios {
    ($($(#[$attribute:meta])* $test:ident: $client:ident $(($program:literal))? $scenario:literal;)*) => {$(
        #[test]
        $(#[$attribute])*
        fn $test() {
            let Some(clients) = clients() else { return };
            let broker = broker(stringify!($test));
            run(clients.$client($($program)?).args([&*broker.kafka(), $scenario]));
        }
    )*};
}

scenarios! {
    confluent_roundtrip: python("confluent.py") "roundtrip";
    confluent_acks: python("confluent.py") "acks";
    confluent_offsets: python("confluent.py") "offsets";
    confluent_groups: python("confluent.py") "groups";
    confluent_static_members: python("confluent.py") "static_members";
    confluent_commits: python("confluent.py") "commits";
    confluent_transactions: python("confluent.py") "transactions";
    confluent_admin_calls: python("confluent.py") "admin_calls";
    confluent_errors: python("confluent.py") "errors";
    kafka_python_roundtrip: python("kafka_python.py") "roundtrip";
    kafka_python_offsets: python("kafka_python.py") "offsets";
    kafka_python_groups: python("kafka_python.py") "groups";
    kafka_python_transactions: python("kafka_python.py") "transactions";
    kafka_python_admin_calls: python("kafka_python.py") "admin_calls";
    rdkafka_roundtrip: rdkafka "roundtrip";
    rdkafka_transactions: rdkafka "transactions";
    java_roundtrip: java("Check") "roundtrip";
    java_groups: java("Check") "groups";
    java_transactions: java("Check") "transactions";
    java_admin: java("Check") "admin";
}

#[test]
fn kafkajs_produces_consumes_shares_and_administers() {
    let Some(clients) = clients() else { return };
    let broker = broker("kafkajs");
    run(clients.node().arg(broker.kafka()));
}

/// Everything through one published port, as out of a container, and through ports that were mapped.
#[test]
fn one_port_is_enough_for_every_client() {
    let Some(clients) = clients() else { return };
    let broker = Broker::start("single-port", Start::with(&["--shards", "3", "--kafka-single-port"]));
    let metadata = run(Command::new("kcat").args(["-b", &broker.kafka(), "-L", "-J"]));
    assert!(metadata.contains(&format!("\"brokers\":[{{\"id\":0,\"name\":\"{}\"}}]", broker.kafka())), "{metadata}");
    for scenario in ["roundtrip", "groups", "commits", "transactions", "admin_calls"] {
        run(clients.python("confluent.py").args([&*broker.kafka(), scenario]));
    }
    run(clients.python("kafka_python.py").args([&*broker.kafka(), "groups"]));
    run(clients.java("Check").args([&*broker.kafka(), "transactions"]));
}

#[test]
fn advertised_address_is_where_clients_go() {
    let Some(clients) = clients() else { return };
    let port = free_ports(3);
    // Node s is at the advertised port + s, here where the shards listen by themselves. The name is another than the one connected to.
    let base = port.to_string();
    let advertised = format!("localhost:{port}");
    let start = Start::with(&["--shards", "2", "--kafka-shard-base", &base, "--kafka-advertise", &advertised]);
    let broker = Broker::start("advertised", Start { kafka: Some(SocketAddr::from(([127, 0, 0, 1], port))), ..start });
    let metadata = run(Command::new("kcat").args(["-b", &broker.kafka(), "-L", "-J"]));
    for name in [advertised, format!("localhost:{}", port + 1)] {
        assert!(metadata.contains(&format!("\"name\":\"{name}\"")), "{metadata}");
    }
    for scenario in ["roundtrip", "groups", "transactions"] {
        run(clients.python("confluent.py").args([&*broker.kafka(), scenario]));
    }
}
