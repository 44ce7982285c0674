//! What both disks share: who owns the memory of an operation, and where its file is.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;

use super::janitor::{JanitorHandle, JanitorPort, Request};
use super::volume::{Directory, OpenFile};
use super::wake::Waker;
use super::{BLOCK_BYTES, Buffer, Completion, Fault, FileId, Operation, Outcome, Slice, Token};

/// One write, read or flush, from `submit` until its completion is reaped. Owns its memory and its descriptor.
#[derive(Debug)]
pub(super) struct Entry {
    pub token: Token,
    pub file: FileId,
    pub open: Arc<OpenFile>,
    pub transfer: Transfer,
}

#[derive(Debug)]
pub(super) enum Transfer {
    Write {
        position: u64,
        data: Slice,
        durable: bool,
    },
    Read {
        position: u64,
        into: Buffer,
        /// Bytes the kernel has filled so far.
        filled: usize,
        /// It came back short or interrupted once.
        continued: bool,
    },
    Flush,
}

/// What to do with an entry whose result is there.
pub(super) enum Reaped {
    Done(Completion),
    /// A short read: ask for the rest.
    Again(Entry),
}

impl Entry {
    /// `result`: bytes transferred, or an error number.
    pub fn reaped(mut self, result: Result<usize, i32>) -> Reaped {
        let token = self.token;
        let done = |outcome| Reaped::Done(Completion { token, outcome });
        match &mut self.transfer {
            Transfer::Flush => done(Outcome::Flushed(result.map(drop).map_err(Fault::Os))),
            Transfer::Write { data, .. } => done(Outcome::Written(match result {
                Ok(got) if got == data.len() => Ok(()),
                Ok(got) => Err(short(data.len(), got)),
                Err(code) => Err(Fault::Os(code)),
            })),
            Transfer::Read { into, filled, continued, .. } => {
                *filled += *result.as_ref().unwrap_or(&0);
                let whole = *filled == into.len();
                // Direct I/O can only continue at a block.
                let worthwhile = match result {
                    Ok(got) => got > 0 && got.is_multiple_of(BLOCK_BYTES),
                    Err(code) => code == libc::EINTR || code == libc::EAGAIN,
                };
                if !whole && worthwhile && !*continued {
                    *continued = true;
                    return Reaped::Again(self);
                }
                let fault = match result {
                    Ok(_) => short(into.len(), *filled),
                    Err(code) => Fault::Os(code),
                };
                match self.transfer {
                    Transfer::Read { into, .. } if whole => done(Outcome::Read(Ok(into))),
                    _ => done(Outcome::Read(Err(fault))),
                }
            }
        }
    }
}

fn short(wanted: usize, got: usize) -> Fault {
    Fault::Short { wanted_bytes: wanted as u64, got_bytes: got as u64 }
}

/// Entries in flight, by slot. Growing it moves entries, never the memory they own.
#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<Option<Entry>>,
    free: Vec<u32>,
}

impl Table {
    pub fn insert(&mut self, entry: Entry) -> u32 {
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(entry);
                slot
            }
            None => {
                self.slots.push(Some(entry));
                (self.slots.len() - 1) as u32
            }
        }
    }

    pub fn get_mut(&mut self, slot: u32) -> &mut Entry {
        self.slots[slot as usize].as_mut().expect("a slot in use")
    }

    pub fn remove(&mut self, slot: u32) -> Entry {
        let entry = self.slots[slot as usize].take().expect("each completion comes once");
        self.free.push(slot);
        entry
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn uses(&self, file: FileId) -> bool {
        self.slots.iter().flatten().any(|entry| entry.file == file)
    }
}

/// Turns operations into entries; sends those on whole files to the janitor.
#[derive(Debug)]
pub(super) struct Intake {
    directory: Arc<Directory>,
    janitor: JanitorPort,
    /// Descriptors this core has used.
    files: HashMap<FileId, Arc<OpenFile>>,
    /// Operations that failed before they began.
    failed: VecDeque<Completion>,
    waker: Waker,
}

impl Intake {
    pub fn new(janitor: &JanitorHandle, waker: Waker) -> Intake {
        let directory = janitor.directory().clone();
        Intake { directory, janitor: janitor.connect(waker.clone()), files: HashMap::new(), failed: VecDeque::new(), waker }
    }

    /// Returns the slot of a new entry in `table`; `None` if the completion comes another way.
    pub fn submit(&mut self, token: Token, operation: Operation, table: &mut Table) -> Option<u32> {
        let (file, transfer) = match operation {
            Operation::Write { file, position, data, durable } => {
                check_blocks(position, &data);
                (file, Transfer::Write { position, data, durable })
            }
            Operation::Read { file, position, into } => {
                check_blocks(position, &into);
                (file, Transfer::Read { position, into, filled: 0, continued: false })
            }
            Operation::Flush { file } => (file, Transfer::Flush),
            Operation::Acquire { at_least_bytes } => {
                self.janitor.submit(token, Request::Acquire { at_least_bytes });
                return None;
            }
            Operation::Extend { file, to_bytes } => {
                self.janitor.submit(token, Request::Extend { file, to_bytes });
                return None;
            }
            Operation::Release { file } => {
                // Its next owner may be another core, whose bytes must not meet ours.
                assert!(!table.uses(file), "{file} is released with operations in flight");
                self.files.remove(&file);
                self.janitor.submit(token, Request::Release { file });
                return None;
            }
        };
        match self.open(file) {
            Ok(open) => Some(table.insert(Entry { token, file, open, transfer })),
            Err(error) => {
                let fault = Fault::Os(error.raw_os_error().unwrap_or(libc::EIO));
                let outcome = match transfer {
                    Transfer::Write { .. } => Outcome::Written(Err(fault)),
                    Transfer::Read { .. } => Outcome::Read(Err(fault)),
                    Transfer::Flush => Outcome::Flushed(Err(fault)),
                };
                self.failed.push_back(Completion { token, outcome });
                self.waker.wake();
                None
            }
        }
    }

    fn open(&mut self, file: FileId) -> io::Result<Arc<OpenFile>> {
        if let Some(open) = self.files.get(&file) {
            return Ok(open.clone());
        }
        let open = self.directory.file(file)?;
        self.files.insert(file, open.clone());
        Ok(open)
    }

    pub fn poll(&mut self, completions: &mut Vec<Completion>) {
        completions.extend(self.failed.drain(..));
        self.janitor.poll(completions);
    }

    pub fn in_flight(&self) -> usize {
        self.failed.len() + self.janitor.in_flight()
    }

    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }
}

/// A log that asks for anything else has lost count of its positions.
fn check_blocks(position: u64, memory: &[u8]) {
    let aligned = memory.as_ptr().addr().is_multiple_of(BLOCK_BYTES) && memory.len().is_multiple_of(BLOCK_BYTES);
    assert!(position.is_multiple_of(BLOCK_BYTES as u64) && aligned, "{} bytes at {position} aren't whole blocks", memory.len());
    assert!(memory.len() <= i32::MAX as usize, "{} bytes in one operation", memory.len());
}
