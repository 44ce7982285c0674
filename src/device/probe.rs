//! The start-up self-test: what this machine offers, and how to get what it doesn't.

use std::fmt;
use std::fs;
use std::io;

use io_uring::{Probe as Opcodes, opcode};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::uring::{RingFlags, build_ring};
use super::volume::{DirectIo, Directory};

/// Below it a few thousand connections exhaust the descriptors.
const NOFILE_ENOUGH: u64 = 65_536;

/// Kernels before 5.12 charge rings to it.
const MEMLOCK_ENOUGH_BYTES: u64 = 8 << 20;

/// What was found. `Display`: one line per finding, with a remedy where one helps.
#[derive(Debug)]
pub struct Probe {
    /// `uname -r`.
    pub kernel: String,
    /// Whether rings work.
    pub io_uring: Result<RingFlags, RingRefused>,
    /// The system's mode.
    pub huge_pages: HugePages,
    /// Of the data directory: name of the file system, how it is read and written. `None` without a directory.
    pub data: Option<(String, DirectIo)>,
    /// Soft limit; `None` = unlimited.
    pub memlock_bytes: Option<u64>,
    /// Soft limit; `None` = unlimited.
    pub nofile: Option<u64>,
}

/// Why rings can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingRefused {
    /// ENOSYS: the kernel is built without, too old, or a sandbox pretends so.
    Missing,
    /// `/proc/sys/kernel/io_uring_disabled` is 1 (privileged processes only) or 2 (nobody).
    Disabled(u8),
    /// EPERM although the system allows it: a seccomp profile, as containers have by default.
    Forbidden,
    /// Rings can be made but don't know an operation we need.
    TooOld,
    /// Another error number.
    Os(i32),
}

impl RingRefused {
    /// What an administrator can do.
    pub fn remedy(self) -> &'static str {
        match self {
            RingRefused::Missing | RingRefused::TooOld => "run Linux 5.15 or later, built with CONFIG_IO_URING",
            RingRefused::Disabled(1) => "sysctl kernel.io_uring_disabled=0, or add the user's group as kernel.io_uring_group",
            RingRefused::Disabled(_) => "sysctl kernel.io_uring_disabled=0",
            RingRefused::Forbidden => "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile",
            RingRefused::Os(libc::ENOMEM) => "raise the memlock limit: ulimit -l, LimitMEMLOCK=",
            RingRefused::Os(_) => "see the error",
        }
    }
}

impl fmt::Display for RingRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RingRefused::Missing => f.write_str("the kernel has no io_uring (ENOSYS)"),
            RingRefused::Disabled(value) => write!(f, "/proc/sys/kernel/io_uring_disabled is {value}"),
            RingRefused::Forbidden => f.write_str("io_uring is forbidden to this process (EPERM), most likely by a seccomp profile"),
            RingRefused::TooOld => f.write_str("the kernel's io_uring lacks read, write or fsync"),
            RingRefused::Os(code) => write!(f, "io_uring can't be set up: {}", io::Error::from_raw_os_error(*code)),
        }
    }
}

impl std::error::Error for RingRefused {}

/// `/sys/kernel/mm/transparent_hugepage/enabled`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// For every mapping that can have them.
    Always,
    /// For those that ask, as the arena does.
    Madvise,
    /// For nobody.
    Never,
    /// The kernel has none.
    Missing,
}

impl Probe {
    /// Looks at the machine, and at the data directory if there is one. Takes about a millisecond.
    pub fn run(directory: Option<&Directory>) -> io::Result<Probe> {
        Ok(Probe {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            io_uring: try_ring(),
            huge_pages: huge_pages(),
            data: match directory {
                Some(directory) => Some((directory.filesystem_name()?, directory.direct_io().clone())),
                None => None,
            },
            memlock_bytes: getrlimit(Resource::Memlock).current,
            nofile: getrlimit(Resource::Nofile).current,
        })
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kernel: found {}", self.kernel)?;
        match self.io_uring {
            Ok(flags) => writeln!(f, "io_uring: found, {flags}")?,
            Err(refused) => writeln!(f, "io_uring: {refused} (remedy: {})", refused.remedy())?,
        }
        match self.huge_pages {
            HugePages::Always => writeln!(f, "huge pages: found, always")?,
            HugePages::Madvise => writeln!(f, "huge pages: found, on request")?,
            HugePages::Never => {
                let path = "/sys/kernel/mm/transparent_hugepage/enabled";
                writeln!(f, "huge pages: off; large writes cost more CPU (remedy: echo madvise > {path})")?;
            }
            HugePages::Missing => writeln!(f, "huge pages: the kernel has none; large writes cost more CPU")?,
        }
        if let Some((name, direct_io)) = &self.data {
            match direct_io {
                DirectIo::Direct { memory_align_bytes: 0, .. } => writeln!(f, "data directory: found {name}, direct I/O")?,
                DirectIo::Direct { memory_align_bytes, offset_align_bytes } => {
                    writeln!(
                        f,
                        "data directory: found {name}, direct I/O in multiples of {offset_align_bytes} (memory {memory_align_bytes}) bytes"
                    )?;
                }
                DirectIo::Buffered { reason } => {
                    writeln!(f, "data directory: found {name}, through the page cache: {reason} (remedy: put it on ext4 or xfs)")?;
                }
            }
            if matches!(name.as_str(), "btrfs" | "zfs" | "bcachefs") {
                writeln!(f, "data directory: {name} copies on write, so commits cost more (remedy: put it on ext4 or xfs)")?;
            }
        }
        write_limit(
            f,
            "locked memory",
            self.memlock_bytes,
            MEMLOCK_ENOUGH_BYTES,
            "ulimit -l, LimitMEMLOCK=; matters before Linux 5.12 only",
        )?;
        write_limit(f, "open files", self.nofile, NOFILE_ENOUGH, "ulimit -n, LimitNOFILE=")
    }
}

fn write_limit(f: &mut fmt::Formatter<'_>, name: &str, found: Option<u64>, enough: u64, remedy: &str) -> fmt::Result {
    match found {
        None => writeln!(f, "{name}: found no limit"),
        Some(limit) if limit >= enough => writeln!(f, "{name}: found a limit of {limit}"),
        Some(limit) => writeln!(f, "{name}: found a limit of {limit}, better {enough} (remedy: {remedy})"),
    }
}

/// Makes a small ring and passes one operation through it. Closes it again.
pub fn try_ring() -> Result<RingFlags, RingRefused> {
    let refused = |error: io::Error| match error.raw_os_error() {
        Some(libc::ENOSYS) => RingRefused::Missing,
        Some(libc::EPERM | libc::EACCES) => match io_uring_disabled() {
            0 => RingRefused::Forbidden,
            value => RingRefused::Disabled(value),
        },
        code => RingRefused::Os(code.unwrap_or(libc::EIO)),
    };
    let (mut ring, flags) = build_ring(8).map_err(refused)?;
    let mut opcodes = Opcodes::new();
    // The call itself is as old as the operations we need.
    ring.submitter().register_probe(&mut opcodes).map_err(|_| RingRefused::TooOld)?;
    if ![opcode::Read::CODE, opcode::Write::CODE, opcode::Fsync::CODE].into_iter().all(|code| opcodes.is_supported(code)) {
        return Err(RingRefused::TooOld);
    }
    // SAFETY: this operation refers to no memory and no descriptor.
    unsafe { ring.submission().push(&opcode::Nop::new().build()) }.expect("an empty ring has room");
    ring.submit_and_wait(1).map_err(refused)?;
    match ring.completion().next().map(|completion| completion.result()) {
        Some(0) => Ok(flags),
        Some(code) => Err(RingRefused::Os(-code)),
        None => Err(RingRefused::Os(libc::EIO)),
    }
}

/// 0 where the kernel has no such switch (before 6.6).
fn io_uring_disabled() -> u8 {
    fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// The system's mode.
pub fn huge_pages() -> HugePages {
    match fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled") {
        Ok(text) if text.contains("[always]") => HugePages::Always,
        Ok(text) if text.contains("[madvise]") => HugePages::Madvise,
        Ok(_) => HugePages::Never,
        Err(_) => HugePages::Missing,
    }
}

/// Raises the soft limit of open files to the hard one; returns it (`None` = unlimited).
pub fn raise_nofile() -> io::Result<Option<u64>> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    }
    Ok(maximum)
}
