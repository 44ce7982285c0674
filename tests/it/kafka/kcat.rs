//! kcat: what people type.

use std::process::Command;

use super::clients::{broker, clients, run, run_with_input};

fn kcat(address: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("kcat");
    command.args(["-b", address, "-X", "fetch.wait.max.ms=100"]).args(arguments);
    command
}

#[test]
fn kcat_produces_lists_and_consumes() {
    if clients().is_none() {
        return;
    }
    let broker = broker("kcat");
    let address = broker.kafka();
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let topic = format!("kcat-{codec}");
        let lines: String = (0..2000).map(|n| format!("k{n}:value {n} {}\n", "ab".repeat(n % 90))).collect();
        let produce = ["-P", "-t", &topic, "-K:", "-z", codec, "-H", "a=1", "-H", "a=2"];
        run_with_input(&mut kcat(&address, &produce), lines.as_bytes());
        assert!(run(&mut kcat(&address, &["-C", "-t", &topic, "-e", "-q", "-K:"])) == lines, "{codec}: read isn't what was written");
        let format = ["-C", "-t", &topic, "-o", "1998", "-e", "-q", "-f", "%p %o %k %h\n"];
        assert_eq!(run(&mut kcat(&address, &format)), "0 1998 k1998 a=1,a=2\n0 1999 k1999 a=1,a=2\n", "{codec}");
    }
    // Null values.
    run_with_input(&mut kcat(&address, &["-P", "-t", "kcat-null", "-Z", "-K:"]), b"gone:\nhere:x\n");
    assert_eq!(run(&mut kcat(&address, &["-C", "-t", "kcat-null", "-e", "-q", "-f", "%k %S\n"])), "gone -1\nhere 1\n");
    let listed = run(&mut kcat(&address, &["-L", "-J"]));
    assert!(listed.contains("\"topic\":\"kcat-zstd\",\"partitions\":[{\"partition\":0,\"leader\":"), "{listed}");
    assert_eq!(run(&mut kcat(&address, &["-Q", "-t", "kcat-lz4:0:-1"])).trim(), "kcat-lz4 [0] offset 2000");
    assert_eq!(run(&mut kcat(&address, &["-Q", "-t", "kcat-lz4:0:1"])).trim(), "kcat-lz4 [0] offset 0");
}

#[test]
fn kcat_in_a_group_and_in_a_transaction() {
    if clients().is_none() {
        return;
    }
    let broker = broker("kcat-group");
    let address = broker.kafka();
    run_with_input(&mut kcat(&address, &["-P", "-t", "kcat-tx", "-X", "transactional.id=kcat"]), b"one\ntwo\n");
    let group = ["-G", "kcat-group", "-X", "auto.offset.reset=earliest", "-X", "isolation.level=read_committed", "-e", "-q", "kcat-tx"];
    assert_eq!(run(&mut kcat(&address, &group)), "one\ntwo\n");
    run_with_input(&mut kcat(&address, &["-P", "-t", "kcat-tx"]), b"three\n");
    // Its offsets were committed when it left.
    assert_eq!(run(&mut kcat(&address, &group)), "three\n");
}
