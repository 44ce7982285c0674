//! Kafka's own command-line tools.

use super::clients::{Clients, broker, clients, output, run, run_with_input, tail};
use crate::harness::Broker;

struct Tools<'a> {
    clients: &'a Clients,
    address: String,
}

impl Tools<'_> {
    fn run(&self, tool: &str, arguments: &[&str]) -> String {
        self.run_with_input(tool, arguments, "")
    }

    fn run_with_input(&self, tool: &str, arguments: &[&str], input: &str) -> String {
        run_with_input(self.clients.java(&class(tool)).args(["--bootstrap-server", &self.address]).args(arguments), input.as_bytes())
    }

    /// It has to fail and say this.
    fn fails(&self, tool: &str, arguments: &[&str], reason: &str) {
        let output = output(self.clients.java(&class(tool)).args(["--bootstrap-server", &self.address]).args(arguments), b"");
        let said = tail(&output.stdout) + &tail(&output.stderr);
        assert!(
            !output.status.success() && said.contains(reason),
            "{tool} {arguments:?} ended with {}, without '{reason}':\n{said}",
            output.status
        );
    }
}

fn class(tool: &str) -> String {
    if tool.starts_with("kafka.") { tool.into() } else { format!("org.apache.kafka.tools.{tool}") }
}

fn tools(broker: &Broker) -> Option<Tools<'static>> {
    Some(Tools { clients: clients()?, address: broker.kafka() })
}

fn contains(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "no '{part}' in:\n{said}");
    }
}

#[test]
fn java_tools_for_topics_and_records() {
    if clients().is_none() {
        return;
    }
    let broker = broker("java-topics");
    let t = tools(&broker).unwrap();
    t.run("TopicCommand", &["--create", "--topic", "tools", "--partitions", "3", "--config", "retention.ms=86400000"]);
    t.fails("TopicCommand", &["--create", "--topic", "tools"], "TopicExistsException");
    contains(
        &t.run("TopicCommand", &["--describe", "--topic", "tools"]),
        &["PartitionCount: 3", "ReplicationFactor: 1", "retention.ms=86400000"],
    );
    t.run("TopicCommand", &["--alter", "--topic", "tools", "--partitions", "4"]);
    t.run(
        "kafka.admin.ConfigCommand",
        &["--alter", "--entity-type", "topics", "--entity-name", "tools", "--add-config", "max.message.bytes=2000000"],
    );
    let settings = t.run("kafka.admin.ConfigCommand", &["--describe", "--all", "--entity-type", "topics", "--entity-name", "tools"]);
    contains(&settings, &["max.message.bytes=2000000", "cleanup.policy=delete", "retention.ms=86400000"]);

    let lines = "h1:a,h1:b\tk1\tfirst\nh2:\tk2\tsecond ü\n";
    let parse = ["--reader-property", "parse.key=true", "--reader-property", "parse.headers=true", "--compression-codec", "zstd"];
    t.run_with_input("ConsoleProducer", &[&["--topic", "tools"][..], &parse].concat(), lines);
    let print =
        ["--formatter-property", "print.key=true", "--formatter-property", "print.headers=true", "--from-beginning", "--max-messages", "2"];
    let read = t.run("consumer.ConsoleConsumer", &[&["--topic", "tools", "--group", "tools-group"][..], &print].concat());
    let mut read: Vec<&str> = read.lines().collect();
    read.sort_unstable();
    assert_eq!(read, ["h1:a,h1:b\tk1\tfirst", "h2:\tk2\tsecond ü"]);

    let ends = t.run("GetOffsetShell", &["--topic", "tools", "--time", "-1"]);
    let total: u64 = ends.lines().map(|line| line.rsplit(':').next().unwrap().parse::<u64>().unwrap()).sum();
    assert_eq!((ends.lines().count(), total), (4, 2), "{ends}");
    contains(&t.run("LogDirsCommand", &["--describe", "--topic-list", "tools"]), &["\"partition\":\"tools-3\"", "\"error\":null"]);
    let cut = broker.directory.file(
        "cut.json",
        br#"{"partitions":[{"topic":"tools","partition":0,"offset":-1},{"topic":"tools","partition":1,"offset":-1}],"version":1}"#,
    );
    contains(&t.run("DeleteRecordsCommand", &["--offset-json-file", cut.to_str().unwrap()]), &["partition: tools-0\tlow_watermark: "]);
    t.run("TopicCommand", &["--delete", "--topic", "tools"]);
    t.fails("TopicCommand", &["--describe", "--topic", "tools"], "does not exist");
}

#[test]
fn java_tools_for_the_cluster_and_its_speed() {
    if clients().is_none() {
        return;
    }
    let broker = broker("java-perf");
    let t = tools(&broker).unwrap();
    let versions = t.run("BrokerApiVersionsCommand", &[]);
    contains(&versions, &["(id: 0 ", "Produce(0): 0 to ", "EndTxn(26): "]);
    let cluster = run(t.clients.java(&class("ClusterTool")).args(["cluster-id", "--bootstrap-server", &t.address]));
    contains(&cluster, &["Cluster ID: "]);
    let supported =
        ["--cluster-id-supported", "--offsets-for-times-supported", "--create-topics-supported", "--describe-configs-supported"];
    let supported = supported.into_iter().chain(["--idempotent-producer-supported"]).flat_map(|flag| [flag, "True"]);
    let not = ["--describe-acls-supported", "False", "--expect-record-too-large-exception", "False", "--num-cluster-nodes", "2"];
    let compatible = t
        .clients
        .java(&class("ClientCompatibilityTest"))
        .args(["--bootstrap-server", &t.address, "--topic", "compatible"])
        .args(supported)
        .args(not)
        .output();
    let compatible = compatible.unwrap();
    assert!(compatible.status.success(), "{}{}", tail(&compatible.stdout), tail(&compatible.stderr));
    t.run("TopicCommand", &["--create", "--topic", "speed", "--partitions", "2"]);
    for codec in ["none", "lz4"] {
        let producer = ["--topic", "speed", "--num-records", "100000", "--record-size", "200", "--throughput", "-1", "--command-property"];
        let said = run(t.clients.java(&class("ProducerPerformance")).args(producer).args([
            &format!("bootstrap.servers={}", t.address),
            "acks=all",
            &format!("compression.type={codec}"),
        ]));
        contains(&said, &["100000 records sent"]);
    }
    let said = t.run("ConsumerPerformance", &["--topic", "speed", "--num-records", "200000", "--timeout", "60000"]);
    contains(&said, &[", 200000, "]);
    let transactions =
        ["--topic", "speed", "--num-records", "2000", "--record-size", "100", "--throughput", "-1", "--transaction-duration-ms", "50"];
    let transactions = [&transactions[..], &["--transactional-id", "speed", "--bootstrap-server", &t.address]].concat();
    contains(&run(t.clients.java(&class("ProducerPerformance")).args(transactions)), &["2000 records sent"]);
    let latency =
        ["--bootstrap-server", &t.address, "--topic", "latency", "--num-records", "500", "--producer-acks", "all", "--record-size", "100"];
    contains(&run(t.clients.java(&class("EndToEndLatency")).args(latency)), &["Avg latency: "]);
}

#[test]
fn java_tools_for_groups_and_transactions() {
    if clients().is_none() {
        return;
    }
    let broker = broker("java-groups");
    let t = tools(&broker).unwrap();
    t.run("TopicCommand", &["--create", "--topic", "g", "--partitions", "2"]);
    t.run_with_input("ConsoleProducer", &["--topic", "g"], &"line\n".repeat(50));
    t.run("consumer.ConsoleConsumer", &["--topic", "g", "--group", "readers", "--from-beginning", "--max-messages", "50"]);
    let group = "consumer.group.ConsumerGroupCommand";
    contains(&t.run(group, &["--list", "--state"]), &["readers", "Empty"]);
    contains(&t.run(group, &["--describe", "--group", "readers"]), &["LAG", "readers"]);
    let reset = ["--reset-offsets", "--group", "readers", "--topic", "g", "--to-earliest", "--execute"];
    t.run(group, &reset);
    let again = t.run("consumer.ConsoleConsumer", &["--topic", "g", "--group", "readers", "--max-messages", "50"]);
    assert_eq!(again.lines().count(), 50);
    contains(&t.run(group, &["--delete-offsets", "--group", "readers", "--topic", "g"]), &["Successful"]);
    contains(&t.run(group, &["--delete", "--group", "readers"]), &["successful"]);
    // Which the tool calls a success.
    let gone = output(t.clients.java(&class(group)).args(["--bootstrap-server", &t.address, "--describe", "--group", "readers"]), b"");
    contains(&(tail(&gone.stdout) + &tail(&gone.stderr)), &["group 'readers' does not exist"]);
    contains(&run(t.clients.java(&class("TransactionsCommand")).args(["--bootstrap-server", &t.address, "list"])), &["TransactionalId"]);
}
