//! How the memory budget comes about and what it is divided into.

use std::fs;

use ringmain_wire::{DEFAULT_MAX_MESSAGE_BYTES, MAX_MESSAGE_BYTES_LIMIT};

/// The default has no more per core.
const DEFAULT_PER_CORE_BYTES: u64 = 1 << 30;
/// The default has no less in all.
const LEAST_BYTES: u64 = 64 << 20;
/// Room for what is around a message in a request, and for control messages.
const REQUEST_EXTRA_BYTES: u64 = 64 << 10;

/// One core's share, divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoreMemory {
    /// Chunks, tail caches and blocks read, of all its shards.
    pub arena_bytes: usize,
    /// Of `arena_bytes`, for one shard.
    pub shard_bytes: usize,
    /// Input of connections.
    pub connection_bytes: usize,
    /// Largest request body.
    pub request_bytes_max: u32,
}

impl CoreMemory {
    /// Five eighths for the logs, a quarter for connections; the last eighth is what tables, replies and the
    /// allocator take.
    pub fn divide(total_bytes: u64, core_count: usize, shard_count: usize) -> CoreMemory {
        let share = total_bytes / core_count.max(1) as u64;
        let arena_bytes = (share / 8 * 5) as usize;
        let connection_bytes = (share / 4) as usize;
        let message_bytes = (share / 8).clamp(u64::from(DEFAULT_MAX_MESSAGE_BYTES), u64::from(MAX_MESSAGE_BYTES_LIMIT));
        CoreMemory {
            arena_bytes,
            shard_bytes: arena_bytes / shard_count.max(1),
            connection_bytes,
            request_bytes_max: (message_bytes + REQUEST_EXTRA_BYTES) as u32,
        }
    }
}

/// Half of what this process may use, at most 1 GiB per core.
pub fn default_bytes(core_count: usize) -> u64 {
    let usable = [cgroup_limit(), Some(machine_bytes())].into_iter().flatten().min().unwrap_or(LEAST_BYTES * 2);
    (usable / 2).min(DEFAULT_PER_CORE_BYTES * core_count as u64).max(LEAST_BYTES)
}

fn machine_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram as u64 * u64::from(info.mem_unit).max(1)
}

/// The smallest limit on the way from this process's control group to the root; `None` without one.
fn cgroup_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let unified = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let legacy = groups.lines().find_map(|line| line.split_once(":memory:").map(|(_, path)| path));
    let read = |path: String| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let limits = [
        unified.map(|path| ("/sys/fs/cgroup", path, "memory.max")),
        legacy.map(|path| ("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes")),
    ];
    limits
        .into_iter()
        .flatten()
        .flat_map(|(root, path, file)| ancestors(path).filter_map(move |path| read(format!("{root}{path}/{file}"))))
        .min()
}

/// `/a/b` → `/a/b`, `/a`, ``.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    let path = path.trim_end_matches('/');
    std::iter::successors(Some(path), |path| Some(&path[..path.rfind('/')?]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_fit_into_the_share() {
        for total in [64 << 20, 256 << 20, 1 << 30, 64 << 30] {
            for (cores, shards) in [(1, 1), (1, 64), (8, 1)] {
                let memory = CoreMemory::divide(total, cores, shards);
                let share = total as usize / cores;
                assert!(memory.arena_bytes + memory.connection_bytes <= share * 7 / 8, "{memory:?}");
                assert!(memory.shard_bytes * shards <= memory.arena_bytes);
                assert!(memory.request_bytes_max as usize >= DEFAULT_MAX_MESSAGE_BYTES as usize);
            }
        }
    }

    #[test]
    fn ancestors_end_at_the_root() {
        assert_eq!(ancestors("/a/b").collect::<Vec<_>>(), ["/a/b", "/a", ""]);
        assert_eq!(ancestors("/").collect::<Vec<_>>(), [""]);
    }

    #[test]
    fn default_is_within_its_bounds() {
        assert!((LEAST_BYTES..=DEFAULT_PER_CORE_BYTES * 2).contains(&default_bytes(2)));
    }
}
