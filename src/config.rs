//! Every knob of `ringmain serve`: key, default, unit, bounds, and why it exists.
//!
//! [`KNOBS`] is the one list; flags and their help, environment variables, the file's keys and
//! `config print` are made from it. What is set twice is decided by the layer:
//! flag > `RINGMAIN_SECTION__KEY` > `ringmain.toml` > default. A key nobody knows is an error.

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

/// What `ringmain serve` runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeConfig {
    /// Where everything that must survive is.
    pub data_dir: PathBuf,
    /// Door of the native protocol. Port 0 = any free port, for the shard ports too.
    pub native: Listen,
    /// Door of Kafka's clients.
    pub kafka: Listen,
    /// Shard N > 0 is a broker of its own to Kafka's clients, at this port + N. 0 = any free ports.
    pub kafka_shard_base: u16,
    /// Kafka's clients are told of one address only.
    pub kafka_single_port: bool,
    /// The address that Kafka's clients are told. `None` = the one by which they have come.
    pub kafka_advertise: Option<Advertise>,
    /// A topic that a Kafka client asks for and that doesn't exist is made.
    pub kafka_creates_topics: bool,
    /// Partitions of a topic that a Kafka client makes without saying how many.
    pub kafka_partitions: u32,
    /// Door of the HTTP API and the metrics.
    pub admin: Listen,
    /// Shards of a new data directory. `None` = as many as cores; an existing directory keeps its number.
    pub shards: Option<u16>,
    /// Core numbers to run on, each pinned to one thread. `None` = every core this process may use.
    pub cores: Option<Vec<usize>>,
    /// Memory budget of the whole process in bytes. `None` = half of the cgroup's limit or of the
    /// machine's memory, at most 1 GiB per core.
    pub memory_bytes: Option<u64>,
    /// Length of a segment file in bytes. `None` = [`SEGMENT_BYTES_DEFAULT`], but at most 1/64 of the file system.
    pub segment_bytes: Option<u32>,
    /// How long a consumer group that was empty waits for more members before its first assignment, in ms.
    pub initial_rebalance_delay_ms: u32,
    /// How long a group's offsets are kept after its last member left or its last commit, in ms.
    pub offset_retention_ms: u64,
    /// How disk and sockets are driven.
    pub io: IoMode,
    /// Listen on addresses that other machines reach although there is no authentication.
    pub insecure: bool,
    /// How long an idle core thread looks for work before it sleeps, in µs.
    pub spin_us: u32,
    /// Stop when standard input ends: a harness that holds its other end takes the broker along when it ends.
    pub exit_with_parent: bool,
    /// Least important messages on standard error: error, warn, info, debug or trace.
    pub log_level: String,
}

/// A door: closed, or where it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Closed.
    Off,
    /// Port 0 = any free one; the ready line names it.
    Addr(SocketAddr),
}

/// An address for others: that of a proxy, say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertise {
    /// Name or address.
    pub host: String,
    /// Of node 0; node N is at this port + N. `None` = the ports that are listened on.
    pub port: Option<u16>,
}

/// How disk and sockets are driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum IoMode {
    /// io_uring where the kernel allows it, else the fallback, with a line in the log that says why.
    #[default]
    Auto,
    /// io_uring or no start.
    Uring,
    /// epoll for sockets, two threads per core for the disk.
    Fallback,
}

impl Default for ServeConfig {
    fn default() -> ServeConfig {
        ServeConfig {
            data_dir: PathBuf::from("./ringmain-data"),
            native: Listen::Addr(SocketAddr::from(([127, 0, 0, 1], NATIVE_PORT_DEFAULT))),
            kafka: Listen::Addr(SocketAddr::from(([127, 0, 0, 1], KAFKA_PORT_DEFAULT))),
            kafka_shard_base: KAFKA_SHARD_BASE_DEFAULT,
            kafka_single_port: false,
            kafka_advertise: None,
            kafka_creates_topics: true,
            kafka_partitions: 1,
            admin: Listen::Addr(SocketAddr::from(([127, 0, 0, 1], ADMIN_PORT_DEFAULT))),
            shards: None,
            cores: None,
            memory_bytes: None,
            segment_bytes: None,
            initial_rebalance_delay_ms: 3_000,
            offset_retention_ms: OFFSET_RETENTION_MS_DEFAULT,
            io: IoMode::Auto,
            insecure: false,
            spin_us: 0,
            exit_with_parent: false,
            log_level: "info".into(),
        }
    }
}

/// One thing that can be set.
pub struct Knob {
    /// Its name in files, `section.key`; [`Knob::variable`] is made from it.
    pub key: &'static str,
    /// Its flag, without the dashes.
    pub flag: &'static str,
    /// What the value looks like; empty = a switch, whose value is `true` or `false`.
    pub value: &'static str,
    /// What it does, unit and bounds, and why one would change it.
    pub help: &'static str,
    /// Left out of `--help`.
    pub hidden: bool,
    set: fn(&mut ServeConfig, &str) -> Result<(), String>,
    get: fn(&ServeConfig) -> String,
}

/// All of them.
pub const KNOBS: &[Knob] = &[
    Knob {
        key: "data.dir",
        flag: "data",
        value: "DIR",
        help: "Data directory; made if missing. On a disk: a RAM disk refuses the direct writes that acknowledgements stand on",
        hidden: false,
        set: |c, v| non_empty(v).map(|v| c.data_dir = PathBuf::from(v)),
        get: |c| c.data_dir.display().to_string(),
    },
    Knob {
        key: "native.listen",
        flag: "native",
        value: "HOST:PORT|off",
        help: "Where clients connect; shard N also listens at this port + 1 + N. Port 0 takes free ports",
        hidden: false,
        set: |c, v| listen(v).map(|v| c.native = v),
        get: |c| c.native.to_string(),
    },
    Knob {
        key: "kafka.listen",
        flag: "kafka",
        value: "HOST:PORT|off",
        help: "Where Kafka's clients connect first. Port 0 takes free ports, for the shards too",
        hidden: false,
        set: |c, v| listen(v).map(|v| c.kafka = v),
        get: |c| c.kafka.to_string(),
    },
    Knob {
        key: "kafka.shard_base",
        flag: "kafka-shard-base",
        value: "PORT",
        help: "Kafka's clients are led to the core that owns a partition: shard N > 0 listens at this port + N; 0 = any free ports. Not used with one core",
        hidden: false,
        set: |c, v| bounded(v, 0, u64::from(u16::MAX)).map(|n| c.kafka_shard_base = n as u16),
        get: |c| c.kafka_shard_base.to_string(),
    },
    Knob {
        key: "kafka.single_port",
        flag: "kafka-single-port",
        value: "",
        help: "Kafka's clients are told of the --kafka port only, for containers and address translation; requests then cross between cores",
        hidden: false,
        set: |c, v| switch(v).map(|v| c.kafka_single_port = v),
        get: |c| c.kafka_single_port.to_string(),
    },
    Knob {
        key: "kafka.advertise",
        flag: "kafka-advertise",
        value: "HOST[:PORT]|auto",
        help: "Address that Kafka's clients are told; with a port, node N is at this port + N. auto = the address by which the client has come",
        hidden: false,
        set: |c, v| optional(v, advertise).map(|v| c.kafka_advertise = v),
        get: |c| or_auto(c.kafka_advertise.as_ref()),
    },
    Knob {
        key: "kafka.create_topics",
        flag: "kafka-create-topics",
        value: "",
        help: "Make a topic that a Kafka client names and that doesn't exist, as Kafka does",
        hidden: false,
        set: |c, v| switch(v).map(|v| c.kafka_creates_topics = v),
        get: |c| c.kafka_creates_topics.to_string(),
    },
    Knob {
        key: "kafka.partitions",
        flag: "kafka-partitions",
        value: "N",
        help: "Partitions of a topic that a Kafka client makes without saying how many, 1 to 10000",
        hidden: false,
        set: |c, v| bounded(v, 1, 10_000).map(|n| c.kafka_partitions = n as u32),
        get: |c| c.kafka_partitions.to_string(),
    },
    Knob {
        key: "admin.listen",
        flag: "admin",
        value: "HOST:PORT|off",
        help: "Where /livez, /readyz and /metrics are served over HTTP",
        hidden: false,
        set: |c, v| listen(v).map(|v| c.admin = v),
        get: |c| c.admin.to_string(),
    },
    Knob {
        key: "shard.count",
        flag: "shards",
        value: "N|auto",
        help: "Shards of a new data directory, 1 to 1024; auto = one per core. Each has a log of its own; more than cores leaves room to grow",
        hidden: false,
        set: |c, v| optional(v, |v| bounded(v, 1, u64::from(SHARD_COUNT_MAX)).map(|n| n as u16)).map(|v| c.shards = v),
        get: |c| or_auto(c.shards),
    },
    Knob {
        key: "shard.cores",
        flag: "cores",
        value: "LIST|auto",
        help: "Cores to run on, as 0 or 0,2-3; auto = all this process may use. Leave some out to share the machine",
        hidden: false,
        set: |c, v| optional(v, core_list).map(|v| c.cores = v),
        get: |c| or_auto(c.cores.as_ref().map(|cores| cores.iter().map(usize::to_string).collect::<Vec<_>>().join(","))),
    },
    Knob {
        key: "shard.spin_us",
        flag: "spin-us",
        value: "MICROSECONDS",
        help: "How long an idle core looks for work before it sleeps, 0 to 1000000. Saves a wake-up per message at the price of a busy core",
        hidden: false,
        set: |c, v| bounded(v, 0, 1_000_000).map(|n| c.spin_us = n as u32),
        get: |c| c.spin_us.to_string(),
    },
    Knob {
        key: "memory.limit",
        flag: "memory",
        value: "BYTES|auto",
        help: "Memory budget of the process, as 256M or 4G, at least 64M; auto = half of what is there, at most 1G per core. What a client can make grow is charged to it first",
        hidden: false,
        set: |c, v| optional(v, |v| bounded(v, MEMORY_BYTES_MIN, 1 << 46)).map(|v| c.memory_bytes = v),
        get: |c| or_auto(c.memory_bytes),
    },
    Knob {
        key: "log.segment_bytes",
        flag: "segment-bytes",
        value: "BYTES|auto",
        help: "Length of a segment file, 4M to 1G in steps of 4K; auto = 256M, less on a small disk. Space comes back a segment at a time",
        hidden: false,
        set: |c, v| optional(v, segment_bytes).map(|v| c.segment_bytes = v),
        get: |c| or_auto(c.segment_bytes),
    },
    Knob {
        key: "groups.initial_rebalance_delay_ms",
        flag: "group-initial-rebalance-delay-ms",
        value: "MILLISECONDS",
        help: "How long an empty consumer group waits for more members before it divides the work, 0 to 60000. Members that start together are then served by one assignment instead of one each",
        hidden: false,
        set: |c, v| bounded(v, 0, 60_000).map(|n| c.initial_rebalance_delay_ms = n as u32),
        get: |c| c.initial_rebalance_delay_ms.to_string(),
    },
    Knob {
        key: "groups.offset_retention_ms",
        flag: "group-offset-retention-ms",
        value: "MILLISECONDS",
        help: "How long a consumer group's offsets are kept after its last member left, or after the last commit if that was later, 1000 up; the default is 7 days",
        hidden: false,
        set: |c, v| bounded(v, 1_000, i64::MAX as u64).map(|n| c.offset_retention_ms = n),
        get: |c| c.offset_retention_ms.to_string(),
    },
    Knob {
        key: "io.mode",
        flag: "io",
        value: "auto|uring|fallback",
        help: "auto = io_uring where the kernel allows it, else the fallback, which costs more CPU per message; uring = io_uring or no start",
        hidden: false,
        set: |c, v| v.parse().map(|v| c.io = v),
        get: |c| c.io.to_string(),
    },
    Knob {
        key: "security.insecure",
        flag: "insecure",
        value: "",
        help: "Allow doors on addresses that other machines reach, although there is no authentication yet",
        hidden: false,
        set: |c, v| switch(v).map(|v| c.insecure = v),
        get: |c| c.insecure.to_string(),
    },
    Knob {
        key: "diagnostics.level",
        flag: "log-level",
        value: "error|warn|info|debug|trace",
        help: "Least important messages shown on standard error",
        hidden: false,
        set: |c, v| match v {
            "error" | "warn" | "info" | "debug" | "trace" => {
                c.log_level = v.into();
                Ok(())
            }
            _ => Err("choose error, warn, info, debug or trace".into()),
        },
        get: |c| c.log_level.clone(),
    },
    Knob {
        key: "process.exit_with_parent",
        flag: "exit-with-parent",
        value: "",
        help: "Stop when standard input ends: a harness holds its other end, so the broker ends with the harness",
        hidden: true,
        set: |c, v| switch(v).map(|v| c.exit_with_parent = v),
        get: |c| c.exit_with_parent.to_string(),
    },
];

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A line of a file.
    File {
        /// As given.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// An environment variable.
    Environment(String),
    /// A flag, without the dashes.
    Flag(String),
}

/// A configuration that can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where the mistake is.
    pub origin: Origin,
    /// What is wrong and what to do.
    pub message: String,
}

/// The configuration in force.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What to run with.
    pub config: ServeConfig,
    /// For each of [`KNOBS`], in order: the layer that decided.
    pub origins: Vec<Origin>,
}

/// Lays flags over environment over file over defaults, and checks the result.
///
/// `flags`: (flag without dashes, value). `environment`: all of it; only names that begin with `RINGMAIN_`
/// and have `__` in them are looked at. `file`: its path and text.
pub fn load(
    flags: &[(&str, String)],
    environment: impl IntoIterator<Item = (String, String)>,
    file: Option<(&Path, &str)>,
) -> Result<Loaded, ConfigError> {
    let mut loaded = Loaded { config: ServeConfig::default(), origins: vec![Origin::Default; KNOBS.len()] };
    if let Some((path, text)) = file {
        for (key, value, line) in file_settings(path, text)? {
            loaded.set(&key, &value, Origin::File { path: path.into(), line })?;
        }
    }
    // Sorted: with two mistakes the same one is reported every time.
    let mut variables: Vec<(String, String)> =
        environment.into_iter().filter(|(name, _)| name.starts_with(PREFIX) && name.contains("__")).collect();
    variables.sort();
    for (name, value) in variables {
        let key = name[PREFIX.len()..].to_lowercase().replacen("__", ".", 1);
        loaded.set(&key, &value, Origin::Environment(name))?;
    }
    for (flag, value) in flags {
        let key = KNOBS.iter().find(|knob| knob.flag == *flag).map_or(*flag, |knob| knob.key);
        loaded.set(key, value, Origin::Flag((*flag).into()))?;
    }
    loaded.check()?;
    Ok(loaded)
}

impl Loaded {
    fn set(&mut self, key: &str, value: &str, origin: Origin) -> Result<(), ConfigError> {
        let Some(at) = KNOBS.iter().position(|knob| knob.key == key) else {
            return Err(ConfigError { origin, message: unknown_key(key) });
        };
        match (KNOBS[at].set)(&mut self.config, value.trim()) {
            Ok(()) => {
                self.origins[at] = origin;
                Ok(())
            }
            Err(reason) => Err(ConfigError { origin, message: format!("{key} = '{value}': {reason}") }),
        }
    }

    /// What holds between knobs.
    fn check(&self) -> Result<(), ConfigError> {
        for (key, listen) in
            [("native.listen", self.config.native), ("kafka.listen", self.config.kafka), ("admin.listen", self.config.admin)]
        {
            if let Listen::Addr(address) = listen
                && !is_loopback(address.ip())
                && !self.config.insecure
            {
                let message = format!(
                    "{key} = {address} is reachable from other machines and there is no authentication yet; \
                     listen on 127.0.0.1, or add --insecure if the network itself keeps strangers out"
                );
                return Err(ConfigError { origin: self.origin(key), message });
            }
        }
        Ok(())
    }

    /// The layer that decided `key`.
    fn origin(&self, key: &str) -> Origin {
        KNOBS.iter().position(|knob| knob.key == key).map_or(Origin::Default, |at| self.origins[at].clone())
    }

    /// Each knob with its value in force and where that comes from.
    pub fn settings(&self) -> impl Iterator<Item = (&'static Knob, String, &Origin)> {
        KNOBS.iter().zip(&self.origins).map(|(knob, origin)| (knob, (knob.get)(&self.config), origin))
    }
}

impl Knob {
    /// Its environment variable.
    pub fn variable(&self) -> String {
        format!("{PREFIX}{}", self.key.replacen('.', "__", 1).to_uppercase())
    }

    /// Its value when nobody sets it.
    pub fn default_value(&self) -> String {
        (self.get)(&ServeConfig::default())
    }
}

/// Bytes as `4096`, `256M`, `1GiB`: K, M, G and T are powers of 1024.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let shift = match text[digits..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err("write a number of bytes, as 4096, 256M or 1G".into()),
    };
    let number: u64 = text[..digits].parse().map_err(|_| "write a number of bytes, as 4096, 256M or 1G".to_string())?;
    number.checked_mul(1 << shift).ok_or_else(|| "that is more than can be counted".into())
}

/// The word nearest to `word`, if it is near enough to be meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.len() / 3).max(1);
    known
        .into_iter()
        .map(|candidate| (edit_distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions and replacements from `a` to `b`.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

fn unknown_key(key: &str) -> String {
    let by_flag = KNOBS.iter().find(|knob| knob.flag == key).map(|knob| knob.key);
    // `listen` alone, or in the wrong section: what differs is the section, however far.
    let last = key.rsplit('.').next().unwrap_or(key);
    let by_last = || KNOBS.iter().find(|knob| knob.key.rsplit('.').next() == Some(last)).map(|knob| knob.key);
    match by_flag.or_else(|| nearest(key, KNOBS.iter().map(|knob| knob.key))).or_else(by_last) {
        Some(meant) => format!("unknown key '{key}'; did you mean '{meant}'?"),
        None => format!("unknown key '{key}'; 'ringmain config print' lists the keys there are"),
    }
}

/// The settings of a TOML file as (`section.key`, value as text, line).
fn file_settings(path: &Path, text: &str) -> Result<Vec<(String, String, usize)>, ConfigError> {
    let line_at = |byte: usize| text[..byte.min(text.len())].matches('\n').count() + 1;
    let error = |byte: usize, message: String| ConfigError { origin: Origin::File { path: path.into(), line: line_at(byte) }, message };
    let table = toml::de::DeTable::parse(text).map_err(|e| error(e.span().map_or(0, |span| span.start), e.message().to_string()))?;
    let mut settings = Vec::new();
    for (section, value) in table.get_ref() {
        let Some(keys) = value.get_ref().as_table() else {
            return Err(error(section.span().start, unknown_key(section.get_ref())));
        };
        for (key, value) in keys {
            let name = format!("{}.{}", section.get_ref(), key.get_ref());
            let text = toml_text(value.get_ref()).ok_or_else(|| {
                error(value.span().start, format!("{name}: expected a string, a number, true or false, or a list of numbers"))
            })?;
            settings.push((name, text, line_at(key.span().start)));
        }
    }
    settings.sort_by_key(|(_, _, line)| *line);
    Ok(settings)
}

/// A TOML value as a flag would have it; `None` = of a kind no knob takes.
fn toml_text(value: &toml::de::DeValue<'_>) -> Option<String> {
    use toml::de::DeValue;
    Some(match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok()?.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Array(items) => items.iter().map(|item| toml_text(item.get_ref())).collect::<Option<Vec<_>>>()?.join(","),
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_) => return None,
    })
}

fn non_empty(text: &str) -> Result<&str, String> {
    if text.is_empty() { Err("must not be empty".into()) } else { Ok(text) }
}

fn switch(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "choose true or false".into())
}

fn optional<T>(text: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>, String> {
    if text == "auto" { Ok(None) } else { parse(text).map(Some) }
}

fn or_auto(value: Option<impl fmt::Display>) -> String {
    value.map_or_else(|| "auto".into(), |value| value.to_string())
}

fn bounded(text: &str, least: u64, most: u64) -> Result<u64, String> {
    let number = parse_bytes(text)?;
    if (least..=most).contains(&number) { Ok(number) } else { Err(format!("must be {least} to {most}")) }
}

fn segment_bytes(text: &str) -> Result<u32, String> {
    let bytes = bounded(text, u64::from(SEGMENT_BYTES_MIN), u64::from(SEGMENT_BYTES_MAX))?;
    if bytes % 4096 == 0 { Ok(bytes as u32) } else { Err("must be a multiple of 4096, the size of a device block".into()) }
}

/// `0`, `0,2-3`: sorted, each once.
fn core_list(text: &str) -> Result<Vec<usize>, String> {
    let mistake = || "write core numbers, as 0 or 0,2-3".to_string();
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (usize, usize) = (from.trim().parse().map_err(|_| mistake())?, to.trim().parse().map_err(|_| mistake())?);
        if from > to || to >= CORE_NUMBER_MAX {
            return Err(mistake());
        }
        cores.extend(from..=to);
    }
    cores.sort_unstable();
    cores.dedup();
    Ok(cores)
}

fn listen(text: &str) -> Result<Listen, String> {
    if text == "off" {
        return Ok(Listen::Off);
    }
    let found = text.to_socket_addrs().map_err(|e| format!("write HOST:PORT, as 127.0.0.1:7171, or off ({e})"))?.next();
    found.map(Listen::Addr).ok_or_else(|| "the name has no address".into())
}

fn advertise(text: &str) -> Result<Advertise, String> {
    let (host, port) = match text.rsplit_once(':') {
        // More than one colon without brackets is an IPv6 address without a port.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            let port = port.parse().ok().filter(|port| *port != 0).ok_or("write HOST or HOST:PORT, as broker.example:9092")?;
            (host, Some(port))
        }
        _ => (text, None),
    };
    let host = non_empty(host.trim_start_matches('[').trim_end_matches(']'))?;
    Ok(Advertise { host: host.to_owned(), port })
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Off => f.write_str("off"),
            Listen::Addr(address) => address.fmt(f),
        }
    }
}

impl fmt::Display for Advertise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) if self.host.contains(':') => write!(f, "[{}]:{port}", self.host),
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

impl fmt::Display for IoMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IoMode::Auto => "auto",
            IoMode::Uring => "uring",
            IoMode::Fallback => "fallback",
        })
    }
}

impl std::str::FromStr for IoMode {
    type Err = String;
    fn from_str(text: &str) -> Result<IoMode, String> {
        match text {
            "auto" => Ok(IoMode::Auto),
            "uring" => Ok(IoMode::Uring),
            "fallback" => Ok(IoMode::Fallback),
            _ => Err("choose auto, uring or fallback".into()),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Environment(name) => f.write_str(name),
            Origin::Flag(flag) => write!(f, "--{flag}"),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.message)
    }
}

impl std::error::Error for ConfigError {}

/// What environment variables of the configuration begin with.
const PREFIX: &str = "RINGMAIN_";
/// Port of the native door.
pub const NATIVE_PORT_DEFAULT: u16 = 7171;
/// Port of the door of Kafka's clients: the one they know.
pub const KAFKA_PORT_DEFAULT: u16 = 9092;
/// See [`ServeConfig::kafka_shard_base`].
pub const KAFKA_SHARD_BASE_DEFAULT: u16 = 19092;
/// Port of the admin door.
pub const ADMIN_PORT_DEFAULT: u16 = 9600;
/// Segment length where the file system is large enough: long enough that rolling costs nothing, short
/// enough that retention frees space in useful steps.
pub const SEGMENT_BYTES_DEFAULT: u32 = 256 << 20;
/// Seven days, as Kafka's.
pub const OFFSET_RETENTION_MS_DEFAULT: u64 = 7 * 24 * 3_600_000;
/// Shorter segments would hold little more than their footer.
pub const SEGMENT_BYTES_MIN: u32 = 4 << 20;
const SEGMENT_BYTES_MAX: u32 = 1 << 30;
/// Less leaves no room for a core's append buffers beside its connections.
const MEMORY_BYTES_MIN: u64 = 64 << 20;
const SHARD_COUNT_MAX: u16 = 1024;
const CORE_NUMBER_MAX: usize = 4096;

#[cfg(test)]
mod tests;
