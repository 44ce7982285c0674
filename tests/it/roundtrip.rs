//! Real input: every file goes in by `produce --file` and comes back by `consume`, byte for byte, also after a
//! crash, on every way of doing I/O.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use ringmain_client::wire::murmur2::partition_for_key;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::harness::{Broker, Directory, PROGRAM, Random, Start};

const PARTITIONS: u32 = 4;

#[test]
fn round_trip_by_default_io() {
    let broker = round_trip("round-trip-auto", Start::default());
    assert!(["uring", "fallback"].contains(&broker.ready().io.as_str()), "{:?}", broker.ready());
}

#[test]
fn round_trip_on_fallback() {
    let broker = round_trip("round-trip-fallback", Start::with(&["--io", "fallback"]));
    assert_eq!(broker.ready().io, "fallback");
}

#[test]
fn round_trip_where_io_uring_is_forbidden() {
    let broker = round_trip("round-trip-seccomp", Start { without_io_uring: true, ..Start::with(&["--io", "auto"]) });
    assert_eq!(broker.ready().io, "fallback");
    assert!(
        broker.said().contains("EPERM") || broker.said().contains("Operation not permitted"),
        "the cause isn't named:\n{}",
        broker.said()
    );
    let status: serde_json::Value = serde_json::from_slice(&broker.run(&["status", "--format", "json"])).unwrap();
    assert_eq!(status["io"], "fallback");
    assert_ne!(status["io_note"], "");
}

#[test]
fn uring_where_io_uring_is_forbidden_is_a_start_error() {
    let directory = Directory::new("seccomp-uring");
    let arguments = ["serve", "--io", "uring", "--native", "127.0.0.1:0", "--kafka", "off", "--admin", "off", "--data"];
    let output = crate::harness::clean(trampoline().args(arguments).arg(directory.path.join("data"))).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && !said.contains("ready "), "{said}");
    assert!(said.contains("--io"), "no remedy is named: {said}");
}

/// All inputs in, all out; killed, restarted, out again; stopped, restarted, out again.
fn round_trip(name: &str, start: Start) -> Broker {
    let mut broker = Broker::start(name, start);
    let inputs = inputs(&broker.directory);
    for (topic, path) in &inputs {
        broker.run(&["topic", "create", topic, "--partitions", &PARTITIONS.to_string()]);
        let printed = broker.run(&["produce", topic, "--file", path.to_str().unwrap(), "--key", "line"]);
        let lines = lines(&std::fs::read(path).unwrap()).len();
        assert_eq!(String::from_utf8(printed).unwrap(), format!("acknowledged={lines}\n"), "{}", path.display());
    }
    let check_all = |broker: &Broker| inputs.iter().for_each(|(topic, path)| check(broker, topic, &std::fs::read(path).unwrap()));
    check_all(&broker);
    broker.kill();
    broker.restart();
    check_all(&broker);
    broker.stop();
    broker.restart();
    check_all(&broker);
    broker
}

/// What `topic` holds is `input`: each partition has the lines whose keys belong to it, in the order of the input, and
/// nothing else.
fn check(broker: &Broker, topic: &str, input: &[u8]) {
    let mut expected: BTreeMap<u32, Vec<u8>> = (0..PARTITIONS).map(|partition| (partition, Vec::new())).collect();
    let lines = lines(input);
    for line in &lines {
        let partition = expected.entry(partition_for_key(line, PARTITIONS)).or_default();
        partition.extend_from_slice(line);
        partition.push(b'\n');
    }
    let consume = |more: &[&str]| broker.run(&[&["consume", topic, "--from", "beginning", "--exit-at-end"], more].concat());
    for (partition, expected) in &expected {
        let number = partition.to_string();
        let got = consume(&["--partition", &number]);
        assert!(got == *expected, "{topic}/{partition}: {}", first_difference(expected, &got));
        // The line was the key, too.
        let keys = consume(&["--partition", &number, "--print", "%k\\n"]);
        assert!(keys == *expected, "keys of {topic}/{partition}: {}", first_difference(expected, &keys));
        let offsets = String::from_utf8(consume(&["--partition", &number, "--print", "%o\\n"])).unwrap();
        let dense = offsets.lines().enumerate().all(|(i, offset)| offset == i.to_string());
        assert!(dense, "{topic}/{partition}: offsets aren't 0, 1, 2 …");
    }
    // All partitions at once: the same messages, mixed as they come. Lengths tell messages with LF apart from two
    // messages, were there any.
    let mut all: Vec<Vec<u8>> = self::lines(&consume(&[])).into_iter().map(<[u8]>::to_vec).collect();
    let mut whole: Vec<Vec<u8>> = lines.iter().map(|line| line.to_vec()).collect();
    all.sort_unstable();
    whole.sort_unstable();
    assert!(all == whole, "{topic}: {} messages came back, {} went in, or they differ", all.len(), whole.len());
}

/// Only LF ends a line; a last line without LF counts.
fn lines(input: &[u8]) -> Vec<&[u8]> {
    let mut lines: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
    if lines.last().is_some_and(|last| last.is_empty()) {
        lines.pop();
    }
    lines
}

fn first_difference(expected: &[u8], got: &[u8]) -> String {
    let at = expected.iter().zip(got).position(|(a, b)| a != b).unwrap_or(expected.len().min(got.len()));
    let show = |bytes: &[u8]| bytes[at.saturating_sub(40).min(bytes.len())..(at + 40).min(bytes.len())].escape_ascii().to_string();
    format!(
        "{} bytes expected, {} came; they differ at {at}:\n expected …{}\n got      …{}",
        expected.len(),
        got.len(),
        show(expected),
        show(got)
    )
}

/// (topic, file): the logs beside the repository if they are there, and generated ones in any case.
fn inputs(directory: &Directory) -> Vec<(String, PathBuf)> {
    let mut inputs = vec![
        ("generated-binary".to_string(), directory.file("binary", &binary(300_000))),
        ("generated-edges".to_string(), directory.file("edges", EDGES)),
        ("generated-no-lf".to_string(), directory.file("no-lf", b"one line without LF")),
        ("generated-empty-line".to_string(), directory.file("empty-line", b"\n")),
        ("generated-nothing".to_string(), directory.file("nothing", b"")),
        ("generated-long-lines".to_string(), directory.file("long-lines", &long_lines())),
    ];
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let logs = manifest.ancestors().skip(1).take(2).map(|ancestor| ancestor.join("shared/data/logs")).find(|path| path.is_dir());
    match logs {
        Some(logs) => {
            let mut found: Vec<PathBuf> =
                std::fs::read_dir(logs).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
            found.sort();
            assert!(!found.is_empty());
            inputs.extend(found.into_iter().map(|path| (format!("real-{}", path.file_name().unwrap().to_string_lossy()), path)));
        }
        None => eprintln!("no ../shared/data/logs: generated input only"),
    }
    inputs
}

/// CR, CRLF, empty lines, bytes that aren't UTF-8, the separators of Unicode, and no LF at the end.
const EDGES: &[u8] = b"plain\n\n\r\n\rcr first\ncr last\r\nlone\rcr\n\xff\xfe\n\x00\x01\n\xc3\xa9t\xc3\xa9 \xe2\x80\xa8 \xf0\x9f\x8c\x80\n\x80\n \n\t\nno lf\r";

/// Any byte, a line every 60 or so.
fn binary(len: usize) -> Vec<u8> {
    let mut random = Random(7);
    (0..len).map(|_| if random.below(60) == 0 { b'\n' } else { random.number() as u8 }).collect()
}

/// Lines around the sizes of batches, chunks and the largest message.
fn long_lines() -> Vec<u8> {
    let mut bytes = Vec::new();
    for (i, len) in [1, 4_095, 4_096, 65_535, 65_536, 65_537, 200_000, 500_000].into_iter().enumerate() {
        bytes.extend(std::iter::repeat_n(b'a' + i as u8, len));
        bytes.push(b'\n');
    }
    bytes
}

/// A command that forbids io_uring to itself and then becomes the program: this test binary, started again with only
/// `become_the_program` to run. So the filter is in place before the program's first instruction, without unsafe.
pub fn trampoline() -> Command {
    let mut command = Command::new("sh");
    // libtest takes no arguments for a test; they travel in the environment, one per line.
    let script = format!(
        "export {TRAMPOLINE}=\"$(printf '%s\\n' \"$@\")\"; exec \"$0\" --exact roundtrip::become_the_program --ignored --nocapture"
    );
    command.arg("-c").arg(script).arg(std::env::current_exe().unwrap());
    command
}

#[test]
#[ignore = "not a test: the second half of `trampoline`"]
fn become_the_program() {
    let Ok(arguments) = std::env::var(TRAMPOLINE) else { return };
    // SYS_io_uring_setup has one number on every architecture that has it.
    let rules = BTreeMap::from([(425, Vec::new())]);
    let arch: TargetArch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(1), arch).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
    let refused = io_uring::IoUring::new(8).map(drop).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(1), "the filter isn't in force: {refused}");
    // Only returns if it fails.
    let error = Command::new(PROGRAM).args(arguments.lines()).env_remove(TRAMPOLINE).exec();
    panic!("{PROGRAM}: {error}");
}

const TRAMPOLINE: &str = "RINGMAIN_TEST_TRAMPOLINE";
