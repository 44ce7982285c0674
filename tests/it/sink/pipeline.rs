//! The example of a log pipeline, as people run it.

use std::process::{Command, Stdio};

use crate::harness::{Directory, PROGRAM, clean};
use crate::kafka::clients::{clients, tail};

#[test]
fn log_pipeline_brings_every_line_through_a_killed_broker() {
    let Some(clients) = clients() else { return };
    let directory = Directory::new("log-pipeline");
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/log-pipeline.sh"));
    clean(command.arg("6000").env("RINGMAIN", PROGRAM).env("CLIENTS", clients.directory())).current_dir(&directory.path);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    if output.status.code() == Some(77) {
        eprintln!("\n*** NOT tested: scripts/log-pipeline.sh, a part of it can't be had here: ***\n{said}");
        return;
    }
    assert!(output.status.success(), "{said}{}", tail(&output.stderr));
    for what in ["records in the topic", "different lines among them", "documents in the index"] {
        assert!(said.contains(&format!("{what:<28} 6000\n")), "{said}");
    }
}
