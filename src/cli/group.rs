//! `ringmain group`: consumer groups, whichever door their members come through.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use ringmain_client::wire::control::{EARLIEST, LATEST, TopicDescription};
use ringmain_client::wire::group::{
    GroupAnswer, GroupCall, GroupMember, GroupMemberInfo, GroupOffset, GroupRequest, ListGroups, NO_GENERATION, Share,
};
use ringmain_client::wire::{ErrorCode, PartitionId};
use ringmain_client::{Client, StartFrom};
use serde_json::{Value, json};

use super::output::{self, Cell};
use super::{Format, Target, consume};

#[derive(Args)]
pub struct GroupArguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List the groups
    List(#[command(flatten)] Target),
    /// Show a group's members, and how far behind it is in each partition
    Describe(NameArguments),
    /// Move a group without members to other offsets; its members then begin there
    Seek(SeekArguments),
    /// Forget a group without members, and its offsets, without asking
    Delete(DeleteArguments),
}

#[derive(Args)]
struct NameArguments {
    name: String,
    #[command(flatten)]
    target: Target,
}

#[derive(Args)]
struct SeekArguments {
    name: String,
    /// In which topic
    #[arg(long, value_name = "TOPIC")]
    topic: String,
    /// In this partition only, counted from 0; may be repeated [default: all]
    #[arg(long, value_name = "N")]
    partition: Vec<u32>,
    /// Where to: beginning, end, an offset, @ and milliseconds since 1970, or a time as 2026-11-21T10:00:00Z
    #[arg(long, value_name = "WHERE", value_parser = consume::start)]
    to: StartFrom,
    #[command(flatten)]
    target: Target,
}

#[derive(Args)]
struct DeleteArguments {
    name: String,
    /// Succeed if there is no such group
    #[arg(long)]
    if_exists: bool,
    #[command(flatten)]
    target: Target,
}

pub fn run(arguments: GroupArguments, format: Format) -> Result<ExitCode> {
    match arguments.verb {
        Verb::List(target) => {
            let groups = target.client()?.call(&ListGroups { reserved: 0 })?.groups;
            let row = |listed: &ringmain_client::wire::group::GroupListed| {
                vec![
                    Cell::text(&listed.group),
                    Cell::text(&listed.phase),
                    Cell::text(kind(&listed.protocol_type)),
                    Cell::Count(listed.member_count.into()),
                ]
            };
            match format {
                Format::Text => output::table(&LIST_HEAD, &groups.iter().map(row).collect::<Vec<_>>())?,
                Format::Json => {
                    let object = |listed: &ringmain_client::wire::group::GroupListed| {
                        json!({
                            "group": listed.group, "state": listed.phase, "protocol_type": listed.protocol_type,
                            "members": listed.member_count,
                        })
                    };
                    output::json(&groups.iter().map(object).collect())?;
                }
            }
        }
        Verb::Describe(arguments) => describe(&arguments.target.client()?, &arguments.name, format)?,
        Verb::Seek(arguments) => seek(arguments, format)?,
        Verb::Delete(arguments) => {
            let deleted = match ask(&arguments.target.client()?, &arguments.name, GroupCall::Delete) {
                Ok(_) => true,
                Err(error) if arguments.if_exists && is(&error, ErrorCode::GroupNotFound) => false,
                Err(error) => return Err(error.into()),
            };
            match format {
                Format::Text => output::line(&format!("{} {}", if deleted { "deleted" } else { "there is no" }, arguments.name))?,
                Format::Json => output::json(&json!({ "name": arguments.name, "deleted": deleted }))?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One partition that the group has an offset in, or that a member reads.
struct Line {
    topic: String,
    index: u32,
    committed: Option<u64>,
    end: Option<u64>,
    start: Option<u64>,
    member: String,
}

impl Line {
    /// Records that are there and not done: from the start of what is stored, if the group's position has gone.
    fn lag(&self) -> Option<u64> {
        Some(self.end?.saturating_sub(self.committed?.max(self.start?)))
    }
}

fn describe(client: &Client, name: &str, format: Format) -> Result<()> {
    let GroupAnswer::Description { phase, generation, protocol_type, protocol, leader, members } = ask(client, name, GroupCall::Describe)?
    else {
        bail!("the broker's answer isn't a description");
    };
    let lines = lines(client, name, &members)?;
    match format {
        Format::Text => {
            eprintln!(
                "{name}: {phase}, generation {generation}, {}, {} members{}",
                kind(&protocol_type),
                members.len(),
                if protocol.is_empty() { String::new() } else { format!(", divided by {protocol}") }
            );
            let number = |number: Option<u64>| number.map_or(Cell::text("-"), Cell::Count);
            let row = |line: &Line| {
                vec![
                    Cell::text(&line.topic),
                    Cell::Count(line.index.into()),
                    number(line.committed),
                    number(line.end),
                    number(line.lag()),
                    Cell::text(if line.member.is_empty() { "-" } else { &line.member }),
                ]
            };
            output::table(&OFFSET_HEAD, &lines.iter().map(row).collect::<Vec<_>>())?;
        }
        Format::Json => {
            let object = |line: &Line| {
                json!({
                    "topic": line.topic, "partition": line.index, "committed": line.committed, "end": line.end, "lag": line.lag(),
                    "member": (!line.member.is_empty()).then_some(&line.member),
                })
            };
            let member = |info: &GroupMemberInfo| {
                json!({
                    "member": info.member.member_id, "instance": info.member.instance_id, "client": info.client_id,
                    "host": info.client_host, "leader": info.member.member_id == leader,
                })
            };
            output::json(&json!({
                "group": name, "state": phase, "generation": generation, "protocol_type": protocol_type, "protocol": protocol,
                "members": members.iter().map(member).collect::<Value>(),
                "partitions": lines.iter().map(object).collect::<Value>(),
                "lag": lines.iter().filter_map(Line::lag).sum::<u64>(),
            }))?;
        }
    }
    Ok(())
}

/// By topic and partition.
fn lines(client: &Client, name: &str, members: &[GroupMemberInfo]) -> Result<Vec<Line>> {
    let GroupAnswer::Offsets { offsets } = ask(client, name, GroupCall::ReadOffsets { partitions: None })? else {
        bail!("the broker's answer isn't a list of offsets");
    };
    let committed: BTreeMap<u32, u64> = offsets.into_iter().map(|at| (at.partition, at.offset)).collect();
    let mut readers: BTreeMap<(String, u32), String> = BTreeMap::new();
    for info in members {
        for (topic, partitions) in Share::read(&info.share).unwrap_or_default().topics {
            readers.extend(partitions.into_iter().map(|index| ((topic.clone(), index), info.member.member_id.clone())));
        }
    }
    let mut lines = Vec::new();
    for info in client.metadata(None)?.topics {
        let wanted = |index: u32, number: u32| committed.contains_key(&number) || readers.contains_key(&(info.name.clone(), index));
        if !(0..).zip(&info.partitions).any(|(index, place)| wanted(index, place.partition)) {
            continue;
        }
        let description: TopicDescription = client.describe_topic(&info.name)?;
        for (index, place) in (0..).zip(&info.partitions).filter(|(index, place)| wanted(*index, place.partition)) {
            let state = description.partitions.iter().find(|state| state.partition == place.partition);
            lines.push(Line {
                topic: info.name.clone(),
                index,
                committed: committed.get(&place.partition).copied(),
                end: state.map(|state| state.high_watermark),
                start: state.map(|state| state.log_start),
                member: readers.get(&(info.name.clone(), index)).cloned().unwrap_or_default(),
            });
        }
    }
    lines.sort_by(|a, b| (&a.topic, a.index).cmp(&(&b.topic, b.index)));
    Ok(lines)
}

fn seek(arguments: SeekArguments, format: Format) -> Result<()> {
    let client = arguments.target.client()?;
    let info = client.describe_topic(&arguments.topic)?.info;
    if let Some(index) = arguments.partition.iter().find(|index| **index as usize >= info.partitions.len()) {
        bail!("topic '{}' has {} partitions; there is no {index}", arguments.topic, info.partitions.len());
    }
    let mut moved = Vec::new();
    for (index, place) in (0u32..).zip(&info.partitions) {
        if !arguments.partition.is_empty() && !arguments.partition.contains(&index) {
            continue;
        }
        let offset = match arguments.to {
            StartFrom::Offset(offset) => offset,
            StartFrom::End => client.list_offset(PartitionId(place.partition), LATEST)?.offset,
            StartFrom::Timestamp(time) => client.list_offset(PartitionId(place.partition), time)?.offset,
            StartFrom::Beginning | StartFrom::Committed => client.list_offset(PartitionId(place.partition), EARLIEST)?.offset,
        };
        moved.push((index, GroupOffset { partition: place.partition, offset, metadata: String::new() }));
    }
    let offsets = moved.iter().map(|(_, at)| at.clone()).collect();
    let commit = GroupCall::Commit { member: GroupMember::default(), generation: NO_GENERATION, offsets };
    match ask(&client, &arguments.name, commit) {
        Ok(_) => {}
        Err(error) if is(&error, ErrorCode::UnknownMember) => bail!("group '{}' has members; stop them first", arguments.name),
        Err(error) => return Err(error.into()),
    }
    let row = |(index, at): &(u32, GroupOffset)| vec![Cell::text(&arguments.topic), Cell::Count((*index).into()), Cell::Count(at.offset)];
    match format {
        Format::Text => output::table(&SEEK_HEAD, &moved.iter().map(row).collect::<Vec<_>>())?,
        Format::Json => {
            let object = |(index, at): &(u32, GroupOffset)| json!({ "topic": arguments.topic, "partition": index, "committed": at.offset });
            output::json(&moved.iter().map(object).collect())?;
        }
    }
    Ok(())
}

fn ask(client: &Client, group: &str, call: GroupCall) -> Result<GroupAnswer, ringmain_client::CallError> {
    client.call(&GroupRequest { group: group.into(), call })
}

fn is(error: &ringmain_client::CallError, code: ErrorCode) -> bool {
    matches!(error, ringmain_client::CallError::Broker(error) if error.code == code)
}

fn kind(protocol_type: &str) -> &str {
    if protocol_type.is_empty() { "offsets only" } else { protocol_type }
}

const LIST_HEAD: [&str; 4] = ["group", "state", "kind", "members"];
const OFFSET_HEAD: [&str; 6] = ["topic", "partition", "committed", "end", "lag", "member"];
const SEEK_HEAD: [&str; 3] = ["topic", "partition", "committed"];
