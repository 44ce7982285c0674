//! `ringmain config`: what `serve` would run with, given the same flags, environment and directory.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use ringmain::config::Loaded;
use serde_json::{Map, Value, json};

use super::serve::ServeArguments;
use super::{Format, output};

#[derive(Args)]
pub struct ConfigArguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Exit 0 if serve would accept it, else say what is wrong (exit 2)
    Check(ServeArguments),
    /// Print every key with its value in force, as a file that --config takes
    Print(ServeArguments),
}

pub fn run(arguments: &ConfigArguments, format: Format) -> Result<ExitCode> {
    match (&arguments.verb, format) {
        (Verb::Check(flags), Format::Text) => {
            flags.load()?;
            output::line("the configuration is valid")?;
        }
        (Verb::Check(flags), Format::Json) => {
            flags.load()?;
            output::json(&json!({ "valid": true }))?;
        }
        (Verb::Print(flags), Format::Text) => output::line(to_toml(&flags.load()?).trim_end())?,
        (Verb::Print(flags), Format::Json) => output::json(&to_json(&flags.load()?))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A file with every key, its environment variable and its origin.
fn to_toml(loaded: &Loaded) -> String {
    let (mut text, mut current) = (String::new(), "");
    for (knob, value, origin) in loaded.settings() {
        let (section, key) = knob.key.split_once('.').unwrap_or(("", knob.key));
        if section != current {
            text += &format!("{}[{section}]\n", if text.is_empty() { "" } else { "\n" });
            current = section;
        }
        text += &format!("{key} = {} # {}, from: {origin}\n", toml_value(&value), knob.variable());
    }
    text
}

fn toml_value(value: &str) -> String {
    let bare = value.parse::<i64>().is_ok() || value.parse::<bool>().is_ok();
    if bare { value.into() } else { toml::Value::from(value).to_string() }
}

/// `{"native.listen": {"value": "…", "origin": "…", "variable": "…"}, …}`.
fn to_json(loaded: &Loaded) -> Value {
    let entry = |value: &str, origin: String, variable| json!({ "value": value, "origin": origin, "variable": variable });
    let keys: Map<String, Value> =
        loaded.settings().map(|(knob, value, origin)| (knob.key.into(), entry(&value, origin.to_string(), knob.variable()))).collect();
    Value::Object(keys)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn printed_file_loads_to_the_same_configuration() {
        let flags = [
            ("data", "/tmp/with \"quotes\"".to_string()),
            ("cores", "0,2-3".into()),
            ("memory", "256M".into()),
            ("insecure", "true".into()),
        ];
        let loaded = ringmain::config::load(&flags, [], None).unwrap();
        let printed = to_toml(&loaded);
        let again = ringmain::config::load(&[], [], Some((Path::new("printed"), &printed))).unwrap();
        assert_eq!(again.config, loaded.config, "{printed}");
    }
}
