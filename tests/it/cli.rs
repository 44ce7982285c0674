//! The command line as scripts see it: standard output, exit codes, and what is said when something is wrong.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ringmain_client::wire::control::{Cleanup, CreateTopic, TopicConfig};
use serde_json::Value;

use crate::harness::{Broker, Directory, PROGRAM, Start, clean, free_ports, ringmain};

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|e| panic!("not one JSON value ({e}): {}", String::from_utf8_lossy(bytes)))
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// Runs the program, which has to end with `code` and say `said` on standard error.
fn check_failure(arguments: &[&str], code: i32, said: &str) {
    let output = ringmain(arguments, b"");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    assert!(stderr.contains(said), "{arguments:?} said: {stderr}");
    assert!(output.stdout.is_empty(), "{arguments:?} wrote to standard output");
}

#[test]
fn wrong_usage_and_configuration_exit_with_2() {
    check_failure(&["fly"], 2, "unrecognized subcommand");
    check_failure(&["serve", "--nativ", "off"], 2, "--native");
    check_failure(&["serve", "--native", "0.0.0.0:0"], 2, "--insecure");
    check_failure(&["serve", "--segment-bytes", "4097"], 2, "log.segment_bytes");
    check_failure(&["config", "check", "--memory", "plenty"], 2, "memory.limit");
    check_failure(&["consume", "t", "--print", "%x"], 2, "%v is the message");
    check_failure(&["consume", "t", "--from", "yesterday"], 2, "beginning");
    check_failure(&["topic", "create", "t", "--durability", "eternal"], 2, "durable, written or memory");
    check_failure(&["topic", "alter", "t"], 2, "--partitions");
}

#[test]
fn missing_broker_exits_with_69_and_says_what_to_do() {
    let nobody = format!("127.0.0.1:{}", free_ports(1));
    for verb in [&["status"][..], &["health"], &["topic", "list"], &["consume", "t"], &["produce", "t"]] {
        check_failure(&[verb, &["--connect", &nobody]].concat(), 69, "ringmain serve");
    }
}

#[test]
fn configuration_is_layered_and_shows_its_origin() {
    let directory = Directory::new("config");
    let file = directory.file("r.toml", b"[native]\nlisten = \"127.0.0.1:1\"\n[admin]\nlisten = \"off\"\n[memory]\nlimit = \"1G\"\n");
    let mut command = Command::new(PROGRAM);
    clean(&mut command).args(["config", "print", "--format", "json", "--native", "127.0.0.1:3", "--config"]).arg(&file);
    command.env("RINGMAIN_NATIVE__LISTEN", "127.0.0.1:2").env("RINGMAIN_ADMIN__LISTEN", "127.0.0.1:4").env("RINGMAIN_CONNECT", "x");
    let printed = json(&command.output().unwrap().stdout);
    assert_eq!(printed["native.listen"]["value"], "127.0.0.1:3");
    assert_eq!(printed["native.listen"]["origin"], "--native");
    assert_eq!(printed["admin.listen"]["value"], "127.0.0.1:4");
    assert_eq!(printed["admin.listen"]["origin"], "RINGMAIN_ADMIN__LISTEN");
    assert_eq!(printed["memory.limit"]["origin"], format!("{}:6", file.display()));
    assert_eq!(printed["io.mode"]["origin"], "default");

    let wrong = directory.file("wrong.toml", b"[log]\nsegment_byte = 1\n");
    check_failure(&["config", "check", "--config", wrong.to_str().unwrap()], 2, "did you mean 'log.segment_bytes'?");
    check_failure(&["config", "check", "--config", "/no/such/file"], 1, "/no/such/file");
}

#[test]
fn help_names_the_key_of_every_flag_of_serve() {
    let help = text(ringmain(&["serve", "--help"], b"").stdout);
    for knob in ringmain::config::KNOBS.iter().filter(|knob| !knob.hidden) {
        assert!(help.contains(&format!("--{}", knob.flag)), "{}", knob.flag);
        assert!(help.contains(&format!("{} = {}", knob.key, knob.variable())), "{}", knob.key);
    }
    assert!(!help.contains("exit-with-parent"));
}

#[test]
fn completions_are_printed_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = text(ringmain(&["completions", shell], b"").stdout);
        assert!(script.contains("ringmain") && script.contains("produce"), "{shell}");
    }
}

#[test]
fn topics_are_created_listed_described_altered_and_deleted() {
    let broker = Broker::start("topics", Start::default());
    let create = ["topic", "create", "orders", "--partitions", "3", "--durability", "written", "--retention-ms", "60000"];
    broker.run(&create);
    let again = ringmain(&[&create[..], &["--connect", &broker.address()]].concat(), b"");
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("exists"), "{again:?}");
    broker.run(&[&create[..], &["--if-not-exists"]].concat());

    let list = json(&broker.run(&["topic", "list", "--format", "json"]));
    assert_eq!(list.as_array().map(Vec::len), Some(1));
    let expected = [("name", Value::from("orders")), ("partitions", 3.into()), ("durability", "written".into())];
    expected.iter().for_each(|(key, value)| assert_eq!(list[0][key], *value, "{key}"));
    assert_eq!((&list[0]["retention_ms"], &list[0]["retention_bytes"]), (&Value::from(60_000), &Value::Null));
    // Not on a terminal: tab-separated, a head line first.
    let plain = text(broker.run(&["topic", "list"]));
    assert_eq!(plain, "topic\tpartitions\tdurability\tretention_ms\tretention_bytes\norders\t3\twritten\t60000\tnone\n");

    broker.run(&["topic", "alter", "orders", "--partitions", "5", "--retention-ms", "none", "--retention-bytes", "1G"]);
    broker.run_with_input(&["produce", "orders", "--partition", "4"], b"a\nb\n");
    let described = json(&broker.run(&["topic", "describe", "orders", "--format", "json"]));
    assert_eq!((&described["retention_ms"], &described["retention_bytes"]), (&Value::Null, &Value::from(1 << 30)));
    let partitions = described["partitions"].as_array().unwrap();
    assert_eq!(partitions.len(), 5);
    assert_eq!((&partitions[4]["log_start"], &partitions[4]["high_watermark"]), (&Value::from(0), &Value::from(2)));
    assert!(partitions[4]["size_bytes"].as_u64().unwrap() > 0);

    broker.run(&["topic", "delete", "orders"]);
    assert_eq!(json(&broker.run(&["topic", "list", "--format", "json"])), Value::Array(Vec::new()));
    broker.run(&["topic", "delete", "orders", "--if-exists"]);
    check_failure(&["topic", "delete", "orders", "--connect", &broker.address()], 1, "no such topic");
    check_failure(&["topic", "describe", "orders", "--connect", &broker.address()], 1, "topic create");
}

#[test]
fn lines_become_messages_and_nothing_is_added_or_lost() {
    let broker = Broker::start("lines", Start::default());
    broker.run(&["topic", "create", "t"]);
    let printed = broker.run_with_input(&["produce", "t"], b"one\n\ntwo\r\nlast");
    assert_eq!(text(printed), "acknowledged=4\n");
    let consume = |more: &[&str]| broker.run(&[&["consume", "t", "--from", "beginning", "--exit-at-end"], more].concat());
    assert_eq!(consume(&[]), b"one\n\ntwo\r\nlast\n");
    assert_eq!(consume(&["--print", "%t/%p/%o [%k] %v%%\\0\\t\\\\\\n", "--count", "1"]), b"t/0/0 [] one%\0\t\\\n");

    // An empty line is an empty message; null is something else.
    let lines = text(consume(&["--format", "json"]));
    let messages: Vec<Value> = lines.lines().map(|line| json(line.as_bytes())).collect();
    assert_eq!(messages.len(), 4);
    assert_eq!((&messages[1]["value"], &messages[1]["key"], &messages[1]["offset"]), (&Value::from(""), &Value::Null, &Value::from(1)));
    assert_eq!(messages[2]["value"], "two\r");
    assert_eq!(json(&broker.run_with_input(&["produce", "t", "--format", "json"], b"x"))["acknowledged"], 1);
}

#[test]
fn separator_divides_key_and_message() {
    let broker = Broker::start("separator", Start::default());
    broker.run(&["topic", "create", "t", "--partitions", "4"]);
    broker.run_with_input(&["produce", "t", "--key", ":"], b"k:1:a\nk:2\n:3\n");
    let mut lines: Vec<String> =
        text(broker.run(&["consume", "t", "--exit-at-end", "--print", "%k=%v\\n"])).lines().map(ToString::to_string).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["=3", "k=1:a", "k=2"]);
    let refused = ringmain(&["produce", "t", "--key", ":", "--connect", &broker.address()], b"k:4\nno separator\nk:5\n");
    assert_eq!((refused.status.code(), text(refused.stdout)), (Some(1), "acknowledged=1\n".into()));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("line 2"));
}

#[test]
fn consume_begins_and_stops_where_it_is_told() {
    let broker = Broker::start("from", Start::default());
    broker.run(&["topic", "create", "t"]);
    broker.run_with_input(&["produce", "t"], b"0\n1\n2\n");
    std::thread::sleep(Duration::from_millis(20));
    let between = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis();
    std::thread::sleep(Duration::from_millis(20));
    broker.run_with_input(&["produce", "t"], b"3\n4\n");
    let consume = |from: &str, more: &[&str]| text(broker.run(&[&["consume", "t", "--exit-at-end", "--from", from], more].concat()));
    assert_eq!(consume("beginning", &["--count", "2"]), "0\n1\n");
    assert_eq!(consume("3", &[]), "3\n4\n");
    assert_eq!(consume(&format!("@{between}"), &[]), "3\n4\n");
    assert_eq!(consume("2020-01-01T00:00:00Z", &["--count", "1"]), "0\n");
    assert_eq!(consume("end", &[]), "");
    check_failure(&["consume", "t", "--from", "17", "--count", "1", "--connect", &broker.address()], 1, "17");
    check_failure(&["consume", "nobody", "--connect", &broker.address()], 1, "topic create");
}

#[test]
fn consume_follows_and_prints_each_message_at_once() {
    let broker = Broker::start("follow", Start::default());
    broker.run(&["topic", "create", "t"]);
    let mut command = Command::new(PROGRAM);
    let mut follower =
        clean(command.args(["consume", "t", "--count", "2", "--connect", &broker.address()])).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    broker.run_with_input(&["produce", "t"], b"first\n");
    // Not only when a buffer is full or the command ends.
    assert_eq!(lines.next().unwrap().unwrap(), "first");
    broker.run_with_input(&["produce", "t"], b"second\nthird\n");
    assert_eq!(lines.next().unwrap().unwrap(), "second");
    assert!(lines.next().is_none());
    assert!(follower.wait().unwrap().success());
}

#[test]
fn reader_that_has_seen_enough_ends_consume_quietly() {
    let broker = Broker::start("pipe", Start::default());
    broker.run(&["topic", "create", "t"]);
    broker.run_with_input(&["produce", "t"], &b"some line\n".repeat(200_000));
    let mut command = Command::new(PROGRAM);
    let command = clean(command.args(["consume", "t", "--connect", &broker.address()])).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"some line\n");
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn topics_that_wait_for_compaction_are_told_of() {
    let broker = Broker::start("compacted", Start::default());
    for (name, cleanup) in [("plain", Cleanup::Delete), ("table", Cleanup::Compact), ("both", Cleanup::CompactAndDelete)] {
        let config = TopicConfig { cleanup, ..TopicConfig::default() };
        broker.client().create_topic(&CreateTopic { name: name.into(), partition_count: 1, config }).unwrap();
    }
    let mut names = json(&broker.run(&["status", "--format", "json"]))["topics_not_compacted"].as_array().unwrap().clone();
    names.sort_by_key(ToString::to_string);
    assert_eq!(names, ["both", "table"]);
    let said = ringmain(&["status", "--connect", &broker.address()], b"").stderr;
    assert!(text(said).contains("every record stays: "));
    let mut stream = TcpStream::connect(broker.ready().admin.unwrap()).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut metrics = String::new();
    stream.read_to_string(&mut metrics).unwrap();
    for name in ["both", "table"] {
        assert!(metrics.contains(&format!("ringmain_topic_not_compacted{{topic=\"{name}\"}} 1\n")), "{metrics}");
    }
    assert!(!metrics.contains("\"plain\""));
}

#[test]
fn status_and_health_tell_programs_and_people() {
    let broker = Broker::start("status", Start::with(&["--shards", "2"]));
    broker.run(&["topic", "create", "t", "--partitions", "2"]);
    broker.run_with_input(&["produce", "t", "--key", "line"], b"a\nb\nc\n");
    let status = json(&broker.run(&["status", "--format", "json"]));
    assert_eq!((status["topics"].as_u64(), status["partitions"].as_u64()), (Some(1), Some(2)));
    let shards = status["shards"].as_array().unwrap();
    assert_eq!((shards.len(), shards.iter().map(|shard| shard["records_in"].as_u64().unwrap()).sum::<u64>()), (2, 3));
    assert_eq!(status["io"], broker.ready().io.as_str());
    assert_eq!(text(broker.run(&["status"])).lines().count(), 3);
    assert_eq!(text(broker.run(&["health"])), "ok\n");
    assert_eq!(json(&broker.run(&["health", "--format", "json"]))["healthy"], true);
}

#[test]
fn serve_is_ready_fast_and_stops_cleanly() {
    let mut broker = Broker::start("start-stop", Start::default());
    let ready = broker.ready().clone();
    assert!(ready.admin.is_some() && ready.native.port() != 0 && ready.shards > 0, "{ready:?}");
    assert!(ready.after < Duration::from_secs(2), "{ready:?}");
    let stopped = broker.stop();
    assert!(stopped < Duration::from_secs(2), "{stopped:?}");
    let again = broker.restart();
    assert!(again < Duration::from_secs(2), "{again:?}");
}

/// Shards make their first segments at the same time and list each other's.
#[test]
fn fresh_directory_starts_at_once_whatever_the_shards_do_meanwhile() {
    for round in 0..15 {
        let broker = Broker::start("fresh", Start::with(&["--shards", "4"]));
        assert!(broker.ready().after < Duration::from_secs(5), "round {round}: {:?}, it said:\n{}", broker.ready(), broker.said());
    }
}

#[test]
fn admin_door_answers_probes_and_metrics() {
    let broker = Broker::start("admin", Start::default());
    broker.run(&["topic", "create", "t"]);
    broker.run_with_input(&["produce", "t"], b"a\nb\n");
    let get = |path: &str| {
        let mut stream = TcpStream::connect(broker.ready().admin.unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: ringmain\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    for probe in ["/livez", "/readyz"] {
        assert!(get(probe).starts_with("HTTP/1.1 200"), "{probe}: {}", get(probe));
    }
    assert!(get("/nowhere").starts_with("HTTP/1.1 404"));
    let metrics = get("/metrics");
    assert!(metrics.starts_with("HTTP/1.1 200") && metrics.contains("# TYPE ") && metrics.trim_end().ends_with("# EOF"), "{metrics}");
    let records: f64 = metrics
        .lines()
        .filter(|line| line.starts_with("ringmain_") && line.contains("records") && line.contains("_total") && line.contains("shard="))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .fold(0.0, f64::max);
    assert!(records >= 2.0, "no counter has seen the two messages:\n{metrics}");
}

#[test]
fn second_broker_on_a_directory_is_refused() {
    let broker = Broker::start("twice", Start::default());
    let data = broker.data();
    let began = Instant::now();
    let second = ringmain(&["serve", "--native", "127.0.0.1:0", "--admin", "off", "--kafka", "off", "--data", data.to_str().unwrap()], b"");
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("in use") || said.contains("lock"), "{said}");
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[test]
fn taken_port_is_a_start_error_that_names_the_flag() {
    let broker = Broker::start("port", Start::default());
    let directory = Directory::new("port-second");
    let (address, data) = (broker.address(), directory.path.join("data"));
    let second = ringmain(&["serve", "--native", &address, "--admin", "off", "--kafka", "off", "--data", data.to_str().unwrap()], b"");
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("--native") && said.contains(&address), "{said}");
}

#[test]
fn foreign_directory_is_refused_and_left_alone() {
    let directory = Directory::new("foreign");
    let precious = directory.file("thesis.tex", b"years of work");
    let output = ringmain(
        &["serve", "--native", "127.0.0.1:0", "--admin", "off", "--kafka", "off", "--data", directory.path.to_str().unwrap()],
        b"",
    );
    assert!(!output.status.success());
    assert_eq!(std::fs::read(precious).unwrap(), b"years of work");
    assert_eq!(std::fs::read_dir(&directory.path).unwrap().count(), 1, "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn log_verify_says_whole_torn_damaged_or_in_use() {
    let mut broker = Broker::start("verify", Start::with(&["--shards", "1", "--cores", "0"]));
    broker.run(&["topic", "create", "t"]);
    for _ in 0..20 {
        broker.run_with_input(&["produce", "t"], &b"a line that will be looked for\n".repeat(100));
    }
    let data = broker.data();
    let data = data.to_str().unwrap();
    let verify = |expected: i32| {
        let output = ringmain(&["log", "verify", data, "--format", "json"], b"");
        assert_eq!(output.status.code(), Some(expected), "{output:?}");
        output
    };
    assert!(String::from_utf8_lossy(&verify(5).stderr).contains("in use"));
    broker.stop();
    assert_eq!(json(&verify(0).stdout)["verdict"], "whole");
    assert!(text(ringmain(&["log", "dump", data, "--frames"], b"").stdout).contains("partition"));

    // One bit, in the middle of what was acknowledged long ago.
    let segments: Vec<_> = std::fs::read_dir(broker.data().join("segments")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let needle = b"a line that will be looked for";
    let (path, mut bytes, at) = segments
        .iter()
        .find_map(|path| {
            let bytes = std::fs::read(path).unwrap();
            let at = bytes.windows(needle.len()).position(|window| window == needle)?;
            Some((path, bytes, at))
        })
        .expect("the lines are on the disk as they are");
    bytes[at] ^= 1;
    std::fs::write(path, &bytes).unwrap();
    let damaged = json(&verify(4).stdout);
    assert_eq!(damaged["verdict"], "damaged");
    assert_eq!(damaged["damage"][0]["place"]["file"], path.file_name().unwrap().to_str().unwrap());
    bytes[at] ^= 1;
    std::fs::write(path, &bytes).unwrap();
    verify(0);
    assert_eq!(ringmain(&["log", "verify", "/no/such/directory"], b"").status.code(), Some(1));
}

/// The harness at its smallest, and the names that scripts rely on.
#[test]
fn bench_prints_the_promised_json_and_verifies() {
    let broker = Broker::start("bench", Start::default());
    for (mode, more) in [
        ("produce", &["--rate", "20000"][..]),
        ("produce", &[]),
        ("consume", &["--preload", "1M"]),
        ("e2e", &["--rate", "5000"]),
        ("ping", &[]),
    ] {
        let arguments = [
            &[
                "bench",
                mode,
                "--size",
                "100",
                "--connections",
                "2",
                "--partitions",
                "2",
                "--batch",
                "10",
                "--in-flight",
                "4",
                "--count",
                "2000",
                "--durability",
                "durable",
                "--format",
                "json",
            ],
            more,
        ]
        .concat();
        let report = json(&broker.run(&arguments));
        assert_eq!((&report["mode"], &report["verified"]), (&Value::from(mode), &Value::Bool(true)), "{report}");
        assert!(report["messages"].as_u64().unwrap() >= 2_000, "{report}");
        for key in ["messages_per_second", "megabytes_per_second"] {
            assert!(report[key].as_f64().unwrap() > 0.0, "{key} in {report}");
        }
        for key in [
            "broker_cpu_seconds_per_million",
            "client_cpu_seconds_per_million",
            "broker_rss_bytes",
            "device_bytes_per_payload_byte",
            "durability",
            "io",
        ] {
            assert!(report.get(key).is_some(), "{key} in {report}");
        }
        for key in ["p50", "p90", "p99", "p999", "p9999", "max"] {
            assert!(report["latency_us"].get(key).is_some(), "latency_us.{key} in {report}");
        }
    }
}
