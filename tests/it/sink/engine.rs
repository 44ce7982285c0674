//! Against OpenSearch itself, killed and restarted like the sink.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::{Running, Sent, check_dead_letters, send, sink, until};
use crate::harness::{Broker, Start, free_ports};
use crate::kafka::clients::{Clients, clients};

struct Engine {
    clients: &'static Clients,
    directory: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Engine {
    fn start(clients: &'static Clients, directory: PathBuf) -> Engine {
        let mut engine = Engine { clients, directory, port: free_ports(1), child: None };
        engine.restart();
        engine
    }

    fn restart(&mut self) {
        let mut command = self.clients.search();
        command.arg(&self.directory).arg(self.port.to_string());
        let log = std::fs::File::create(self.directory.with_extension("log")).unwrap();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(said.any(|line| line.unwrap() == "ready"), "see {}", self.directory.with_extension("log").display());
        self.child = Some(child);
    }

    fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn ask(&self, request: &str, body: &str) -> Value {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let head = format!("{request} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all((head + body).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{request}: {error}: {answer}"))
    }

    /// Documents that a search finds.
    fn count(&self) -> u64 {
        self.ask("POST /logs/_refresh", "");
        self.ask("GET /logs/_count", "")["count"].as_u64().unwrap_or(0)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}

#[test]
fn opensearch_has_every_record_once_after_kills_of_both() {
    let Some(clients) = clients() else { return };
    let broker = Broker::start("sink-engine", Start::with(&["--shards", "2"]));
    broker.run(&["topic", "create", "t", "--partitions", "4"]);
    let mut engine = Engine::start(clients, broker.directory.path.join("engine"));
    let mapping = r#"{"settings":{"number_of_replicas":0},"mappings":{"properties":{"n":{"type":"long"}}}}"#;
    assert_eq!(engine.ask("PUT /logs", mapping)["acknowledged"], true);
    let (url, mut sent) = (format!("http://127.0.0.1:{}", engine.port), Sent::default());
    send(&broker, "t", 0..10_000, &mut sent);
    // Small bulks, so that a kill finds the work half done.
    let arguments = ["--bulk-bytes", "32K"];
    let mut running = Running::start(sink(&broker, &url, "t", &arguments));
    until("some documents", || engine.count() > 300);
    engine.kill();
    send(&broker, "t", 10_000..20_000, &mut sent);
    engine.restart();
    let before = engine.count();
    until("more documents", || engine.count() > before.min(9000) + 300);
    running.kill();
    let output = sink(&broker, &url, "t", &["--exit-at-end"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(engine.count(), sent.indexed.len() as u64);
    // Every one of them under its own id, with its own content.
    let sample = sent.indexed.iter().step_by(997);
    for (id, field) in sample {
        let source = engine.ask(&format!("GET /logs/_source/{id}"), "");
        assert_eq!(if source["n"].is_null() { &source["message"] } else { &source["n"] }, field, "{id}");
    }
    check_dead_letters(&broker, "t", &sent);
}
