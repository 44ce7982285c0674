//! `ringmain serve`: the flags are made from [`ringmain::config::KNOBS`].

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, ValueHint, value_parser};
use ringmain::config::{self, KNOBS, Loaded};

/// Flags that were given, and where the file is.
#[derive(Clone, Debug)]
pub struct ServeArguments {
    file: Option<PathBuf>,
    flags: Vec<(&'static str, String)>,
}

pub fn run(arguments: &ServeArguments) -> Result<ExitCode> {
    let config = arguments.load()?.config;
    tracing_subscriber::fmt().with_env_filter(&config.log_level).with_writer(std::io::stderr).with_target(false).init();
    ringmain::server::run(&config)?;
    Ok(ExitCode::SUCCESS)
}

impl ServeArguments {
    /// Reads the file and the environment and lays them under the flags.
    pub fn load(&self) -> Result<Loaded> {
        let here = Path::new(DEFAULT_FILE);
        let path = self.file.as_deref().or_else(|| here.exists().then_some(here));
        let text = match path {
            Some(path) => std::fs::read_to_string(path).with_context(|| format!("can't read the configuration file {}", path.display()))?,
            None => String::new(),
        };
        // Names and values that aren't UTF-8 can't be ours.
        let environment = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Ok(config::load(&self.flags, environment, path.map(|path| (path, text.as_str())))?)
    }
}

impl Args for ServeArguments {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new(FILE)
            .long(FILE)
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .value_hint(ValueHint::FilePath)
            .help("Configuration file [default: ./ringmain.toml if there is one]");
        let knobs = KNOBS.iter().map(|knob| {
            let help = format!("{}\n[{} = {}] [default: {}]", knob.help, knob.key, knob.variable(), knob.default_value());
            let flag = Arg::new(knob.flag).long(knob.flag).help(help).hide(knob.hidden).action(ArgAction::Set);
            if knob.value.is_empty() {
                flag.value_name("true|false").num_args(0..=1).require_equals(true).default_missing_value("true").hide_possible_values(true)
            } else {
                flag.value_name(knob.value).allow_hyphen_values(true)
            }
        });
        command.arg(file).args(knobs).after_help(LAYERS)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ServeArguments {
    fn from_arg_matches(matches: &ArgMatches) -> Result<ServeArguments, clap::Error> {
        let given = |flag: &'static str| matches.get_one::<String>(flag).map(|value| (flag, value.clone()));
        Ok(ServeArguments { file: matches.get_one(FILE).cloned(), flags: KNOBS.iter().filter_map(|knob| given(knob.flag)).collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

const FILE: &str = "config";
const DEFAULT_FILE: &str = "ringmain.toml";
const LAYERS: &str = "\
A flag beats the environment variable, which beats the file, which beats the default.
In the file, native.listen is written as
    [native]
    listen = \"127.0.0.1:7171\"
'ringmain config print' with the same flags shows what is in force and why.";
