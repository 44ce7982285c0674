//! An endpoint for bulk requests that is strict about the protocol and can be made to fail. Where the reference of Elasticsearch's
//! `_bulk` leaves something open, it is the stricter of what Elasticsearch 9 and OpenSearch 2.19 do.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

/// What is to go wrong with one request.
pub enum Fault {
    None,
    /// Nothing is taken.
    Status(u16),
    /// Every third document is taken, the others are answered with 429.
    BusyItems,
    /// Everything is taken and nobody told.
    TakenWithoutAnswer,
    /// Everything is taken, and the answer ends in the middle.
    AnswerCut,
    /// It takes so long.
    Slow(Duration),
}

/// Chooses by the number of the request, from 0.
pub type Faults = Box<dyn FnMut(u64) -> Fault + Send>;

pub struct Endpoint {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    listening: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

struct State {
    index: BTreeMap<String, Value>,
    violations: Vec<String>,
    faults: Faults,
    most_bytes: usize,
    requests: u64,
}

impl Endpoint {
    pub fn start() -> Endpoint {
        let state = State {
            index: BTreeMap::new(),
            violations: Vec::new(),
            faults: Box::new(|_| Fault::None),
            most_bytes: usize::MAX,
            requests: 0,
        };
        let address = SocketAddr::from(([127, 0, 0, 1], crate::harness::free_ports(1)));
        let mut endpoint = Endpoint { address, state: Arc::new(Mutex::new(state)), listening: None };
        endpoint.restart();
        endpoint
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Listens at the same address, with everything that was taken before.
    pub fn restart(&mut self) {
        let listener = TcpListener::bind(self.address).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (state, stopping) = (Arc::clone(&self.state), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopping.load(Ordering::SeqCst) {
                    return;
                }
                let (state, stopping) = (Arc::clone(&state), Arc::clone(&stopping));
                std::thread::spawn(move || serve(stream.unwrap(), &state, &stopping));
            }
        });
        self.listening = Some((stop, thread));
    }

    /// Answers nobody any more; connections break at their next request.
    pub fn stop(&mut self) {
        let (stop, thread) = self.listening.take().unwrap();
        stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        thread.join().unwrap();
    }

    pub fn faults(&self, faults: Faults) {
        lock(&self.state).faults = faults;
    }

    pub fn takes_at_most(&self, bytes: usize) {
        lock(&self.state).most_bytes = bytes;
    }

    /// Documents by id.
    pub fn index(&self) -> BTreeMap<String, Value> {
        lock(&self.state).index.clone()
    }

    /// What wasn't as the protocol demands.
    pub fn violations(&self) -> Vec<String> {
        lock(&self.state).violations.clone()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection, until it ends or is to break.
fn serve(stream: TcpStream, state: &Mutex<State>, stopping: &AtomicBool) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    while let Some((head, body)) = request(&mut reader) {
        if stopping.load(Ordering::SeqCst) {
            return;
        }
        let fault = {
            let mut state = lock(state);
            let number = state.requests;
            state.requests += 1;
            state.violations.extend(wrong_in_head(&head));
            (state.faults)(number)
        };
        if let Fault::Slow(time) = fault {
            std::thread::sleep(time);
        }
        let (status, answer) = match fault {
            Fault::Status(401) => (401, json!({ "error": { "type": "security_exception", "reason": "who are you" }, "status": 401 })),
            Fault::Status(status) => (status, Value::Null),
            _ if body.len() > lock(state).most_bytes => (413, Value::Null),
            _ => match take(&body, matches!(fault, Fault::BusyItems), &mut lock(state)) {
                Ok(items) => (200, json!({ "took": 1, "errors": true, "items": items })),
                Err(violation) => {
                    lock(state).violations.push(violation);
                    (400, json!({ "error": { "type": "illegal_argument_exception", "reason": "see the test" }, "status": 400 }))
                }
            },
        };
        let answer = answer.to_string();
        let mut whole = format!("HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", answer.len());
        whole += &answer;
        let sent = match fault {
            Fault::TakenWithoutAnswer => return,
            Fault::AnswerCut => &whole[..whole.len() / 2],
            _ => &whole[..],
        };
        if stream.write_all(sent.as_bytes()).is_err() || sent.len() < whole.len() {
            return;
        }
    }
}

/// Lines of the head, and the body; `None` = the peer has gone.
fn request(reader: &mut BufReader<TcpStream>) -> Option<(Vec<String>, Vec<u8>)> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let length = header(&head, "content-length")?.parse().ok()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((head, body))
}

fn header<'a>(head: &'a [String], name: &str) -> Option<&'a str> {
    let line = head.iter().skip(1).find(|line| line.split(':').next().is_some_and(|found| found.eq_ignore_ascii_case(name)))?;
    Some(line.split_once(':')?.1.trim())
}

fn wrong_in_head(head: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    let path = head[0].split(' ').nth(1).unwrap_or_default().split('?').next().unwrap_or_default();
    if !head[0].starts_with("POST ") || path != "/_bulk" {
        wrong.push(format!("not a bulk request: {}", head[0]));
    }
    if header(head, "content-type") != Some("application/x-ndjson") {
        wrong.push(format!("a content type of {:?}", header(head, "content-type")));
    }
    wrong
}

/// Takes the documents; the items of the answer. Errors: the body isn't pairs of lines, and nothing is taken.
fn take(body: &[u8], is_busy: bool, state: &mut State) -> Result<Vec<Value>, String> {
    let text = std::str::from_utf8(body).map_err(|error| format!("a body that isn't UTF-8: {error}"))?;
    let lines: Vec<&str> = text.strip_suffix('\n').ok_or("no LF at the end of the body")?.split('\n').collect();
    if !lines.len().is_multiple_of(2) {
        return Err(format!("{} lines aren't pairs", lines.len()));
    }
    let mut pairs = Vec::new();
    for pair in lines.chunks(2) {
        let action: Value = serde_json::from_str(pair[0]).map_err(|error| format!("an action that isn't JSON ({error}): {}", pair[0]))?;
        let (name, action) = action.as_object().and_then(|action| action.iter().next()).ok_or("an action that is none")?;
        let id = action["_id"].as_str().filter(|id| (1..=512).contains(&id.len())).ok_or_else(|| format!("no id: {action}"))?;
        if !["index", "create"].contains(&&**name) || action["_index"] != "logs" {
            return Err(format!("an action that nobody asked for: {}", pair[0]));
        }
        let source: Value = serde_json::from_str(pair[1]).map_err(|error| format!("a document that isn't JSON ({error}): {}", pair[1]))?;
        if !source.is_object() {
            return Err(format!("a document that isn't an object: {source}"));
        }
        pairs.push((name.clone(), id.to_owned(), source));
    }
    let mut items = Vec::new();
    for (at, (action, id, source)) in pairs.into_iter().enumerate() {
        let (status, error) = if is_busy && at % 3 != 0 {
            (429, json!({ "type": "es_rejected_execution_exception", "reason": "busy" }))
        } else if !source["n"].is_null() && !source["n"].is_number() {
            (400, json!({ "type": "mapper_parsing_exception", "reason": "failed to parse field [n] of type [long]" }))
        } else if action == "create" && state.index.contains_key(&id) {
            (409, json!({ "type": "version_conflict_engine_exception", "reason": "document already exists" }))
        } else {
            match state.index.insert(id.clone(), source.clone()) {
                Some(before) if before != source => return Err(format!("{id} was {before} and is {source}")),
                Some(_) => (200, Value::Null),
                None => (201, Value::Null),
            }
        };
        let mut item = json!({ "status": status });
        if !error.is_null() {
            item["error"] = error;
        }
        items.push(json!({ action: item }));
    }
    Ok(items)
}
