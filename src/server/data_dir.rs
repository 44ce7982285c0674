//! The data directory: is it ours, which format, how many shards.
//!
//! `DIR/ringmain` says so in three lines of text; it is written once, and again when shards are added.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::device::volume::Directory;

/// The format this build reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// The file that makes a directory ours.
const MARK: &str = "ringmain";
/// Entries of a directory that was being made when its maker died, and of a fresh file system.
const HARMLESS: [&str; 4] = ["segments", "lock", "ringmain.tmp", "lost+found"];

/// An open, locked data directory.
pub struct DataDir {
    /// Its files.
    pub directory: Arc<Directory>,
    /// Shards it has.
    pub shard_count: u16,
    /// Tells it from others.
    pub cluster_id: u64,
}

/// Why a data directory can't be used.
#[derive(Debug)]
pub enum DataDirError {
    /// It holds something else.
    Foreign { path: PathBuf, found: String },
    /// A format this build doesn't know.
    Format { path: PathBuf, found: String },
    /// Another process keeps it locked.
    Locked { path: PathBuf },
    /// The system's word.
    Io { path: PathBuf, error: io::Error },
}

impl fmt::Display for DataDirError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DataDirError::Foreign { path, found } => {
                write!(f, "--data {}: not a Ringmain data directory, it holds '{found}'; name an empty or a new directory", path.display())
            }
            DataDirError::Format { path, found } => {
                write!(
                    f,
                    "--data {}: {found}; this build reads format {FORMAT_VERSION}: use the release that wrote it, or a newer one",
                    path.display()
                )
            }
            DataDirError::Locked { path } => write!(f, "--data {}: another process uses it; stop that one first", path.display()),
            DataDirError::Io { path, error } => match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    write!(f, "--data {}: {error}; give this user the directory, or name another", path.display())
                }
                io::ErrorKind::StorageFull => write!(f, "--data {}: the file system is full; free some space", path.display()),
                _ => write!(f, "--data {}: {error}", path.display()),
            },
        }
    }
}

impl std::error::Error for DataDirError {}

/// What the mark says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    shards: u16,
    cluster_id: u64,
}

impl DataDir {
    /// Opens the directory or makes it, with `shards` or one per core. An existing one keeps its shards and gets more
    /// when there are more cores. `waiting` is told if another process must let go of it first.
    pub fn open(path: &Path, shards: Option<u16>, cores: u16, waiting: &mut dyn FnMut(&str)) -> Result<DataDir, DataDirError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::WouldBlock => DataDirError::Locked { path: path.into() },
            _ => DataDirError::Io { path: path.into(), error },
        };
        refuse_foreign(path)?;
        let directory = Directory::open(path, waiting).map_err(failed)?;
        let (mark, is_new) = match fs::read_to_string(path.join(MARK)) {
            Ok(text) => (Mark::parse(&text).map_err(|found| DataDirError::Format { path: path.into(), found })?, false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (Mark { shards: shards.unwrap_or(cores).max(1), cluster_id: super::random_u64().map_err(failed)? }, true)
            }
            Err(error) => return Err(failed(error)),
        };
        if let Some(wanted) = shards
            && wanted != mark.shards
        {
            tracing::warn!("--shards {wanted}: {} was made with {} shards and keeps them", path.display(), mark.shards);
        }
        // More cores get shards of their own; `--shards` is the will to have just so many.
        let shard_count = if shards.is_none() { mark.shards.max(cores) } else { mark.shards };
        if is_new || shard_count != mark.shards {
            Mark { shards: shard_count, ..mark }.write(path).map_err(failed)?;
        }
        Ok(DataDir { directory, shard_count, cluster_id: mark.cluster_id })
    }
}

/// Before anything is written: a directory with files of somebody else isn't touched.
fn refuse_foreign(path: &Path) -> Result<(), DataDirError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(DataDirError::Foreign { path: path.into(), found: "a file, not a directory".into() });
        }
        Err(error) => return Err(DataDirError::Io { path: path.into(), error }),
    };
    let names: Vec<String> = entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect();
    if names.iter().any(|name| name == MARK) {
        return Ok(());
    }
    match names.into_iter().find(|name| !HARMLESS.contains(&name.as_str())) {
        Some(found) => Err(DataDirError::Foreign { path: path.into(), found }),
        None => Ok(()),
    }
}

impl Mark {
    /// The error says what was found instead.
    fn parse(text: &str) -> Result<Mark, String> {
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let format = value("format").ok_or("its file 'ringmain' names no format")?;
        if format != FORMAT_VERSION.to_string() {
            return Err(format!("it has format {format}"));
        }
        let shards = value("shards")
            .and_then(|shards| shards.parse().ok())
            .filter(|shards| *shards > 0)
            .ok_or("its file 'ringmain' names no number of shards")?;
        let cluster_id =
            value("cluster_id").and_then(|id| u64::from_str_radix(id, 16).ok()).ok_or("its file 'ringmain' names no cluster")?;
        Ok(Mark { shards, cluster_id })
    }

    fn text(&self) -> String {
        format!("format={FORMAT_VERSION}\nshards={}\ncluster_id={:016x}\n", self.shards, self.cluster_id)
    }

    /// Visible only when it is whole and durable.
    fn write(&self, path: &Path) -> io::Result<()> {
        let temporary = path.join("ringmain.tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(self.text().as_bytes())?;
        file.sync_all()?;
        fs::rename(temporary, path.join(MARK))?;
        File::open(path)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temporary(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("ringmain-data-dir-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    fn open(path: &Path, shards: Option<u16>, cores: u16) -> Result<DataDir, DataDirError> {
        DataDir::open(path, shards, cores, &mut |_| ())
    }

    #[test]
    fn new_directory_has_a_shard_per_core_and_keeps_them() {
        let path = temporary("keeps");
        let made = open(&path, None, 3).unwrap();
        let cluster_id = made.cluster_id;
        assert_eq!(made.shard_count, 3);
        drop(made);
        let again = open(&path, None, 1).unwrap();
        assert_eq!((again.shard_count, again.cluster_id), (3, cluster_id));
        drop(again);
        assert_eq!(open(&path, Some(2), 1).unwrap().shard_count, 3, "asked for fewer");
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn more_cores_add_shards_for_good() {
        let path = temporary("adds");
        drop(open(&path, Some(2), 8).unwrap());
        assert_eq!(open(&path, None, 4).unwrap().shard_count, 4);
        assert_eq!(open(&path, None, 1).unwrap().shard_count, 4);
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn foreign_directory_is_refused_and_left_alone() {
        let path = temporary("foreign");
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("holiday.jpg"), "").unwrap();
        let Err(error @ DataDirError::Foreign { .. }) = open(&path, None, 1) else { panic!("opened") };
        assert!(error.to_string().contains("holiday.jpg"), "{error}");
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn directory_whose_maker_died_is_finished() {
        let path = temporary("unfinished");
        fs::create_dir_all(path.join("segments")).unwrap();
        fs::write(path.join("lock"), "").unwrap();
        assert_eq!(open(&path, None, 2).unwrap().shard_count, 2);
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn other_format_is_refused_by_name() {
        let path = temporary("format");
        drop(open(&path, None, 1).unwrap());
        fs::write(path.join(MARK), "format=9\nshards=1\ncluster_id=00\n").unwrap();
        let Err(error) = open(&path, None, 1) else { panic!("opened") };
        assert!(error.to_string().contains("it has format 9"), "{error}");
        fs::remove_dir_all(path).unwrap();
    }
}
