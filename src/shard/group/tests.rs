//! One coordinator, sans-IO, by hand: every transition; and whole shards on the simulated disk.

use ringmain_wire::Offset;

use super::offsets::{GroupOffsets, METADATA_MAX_BYTES};
use super::*;

/// Enough offsets, with metadata, for many checkpoint pieces.
pub fn many_offsets() -> Groups {
    let mut groups = Groups::default();
    for consumer in 0..200 {
        let group = groups.make(&format!("{consumer:0255}"), Now::default());
        group.offsets.restore(PartitionId(7), at(consumer, &"m".repeat(METADATA_MAX_BYTES)));
        group.offsets.stage(ProducerId(4), 1, [(PartitionId(8), at(consumer, "staged"))]);
    }
    let group = groups.make("wide", Now::default());
    (1..5_000).for_each(|partition| group.offsets.restore(PartitionId(partition), at(u64::from(partition), "")));
    groups
}

fn at(offset: u64, metadata: &str) -> Committed {
    Committed { offset: Offset(offset), leader_epoch: -1, metadata: metadata.into(), commit_ms: 5 }
}

/// A checkpoint lies behind what is on its way, so it must say that, not what is durable so far.
#[test]
fn offset_on_its_way_is_what_a_checkpoint_stores() {
    let logged = |offsets: &GroupOffsets| offsets.logged_after(None).map(|(_, committed)| committed.offset.0).collect::<Vec<_>>();
    let partition = PartitionId(3);
    let mut offsets = GroupOffsets::default();
    offsets.logged(partition, 5, at(1, "abc"));
    offsets.logged(partition, 6, at(2, "de"));
    assert_eq!((offsets.durable(partition), logged(&offsets)), (None, vec![2]));
    offsets.flushed(partition, 5, at(1, "abc"));
    assert_eq!((offsets.durable(partition), logged(&offsets)), (Some(&at(1, "abc")), vec![2]));
    assert_eq!(offsets.charged_bytes(), offsets::ENTRY_BYTES + 5);
    offsets.flushed(partition, 6, at(2, "de"));
    assert_eq!((offsets.durable(partition), logged(&offsets)), (Some(&at(2, "de")), vec![2]));
    assert_eq!(offsets.charged_bytes(), offsets::ENTRY_BYTES + 2);
    offsets.forget(partition);
    assert_eq!((offsets.charged_bytes(), offsets.is_empty()), (0, true));
}
