//! New settings for topics: all at once, where what isn't named goes back to its default, or one by one.

use kafka_protocol::messages::{
    AlterConfigsResponse, IncrementalAlterConfigsResponse, alter_configs_response, incremental_alter_configs_response,
};
use ringmain_wire::ErrorCode;
use ringmain_wire::control::{AlterTopic, TopicConfig};

use super::configs::TOPIC;
use super::{Answer, Call, Context, encode, text};
use crate::frontend::kafka::decode::{AlterConfigsRequest, IncrementalAlterConfigsRequest};
use crate::frontend::kafka::errors::{self, Refused};
use crate::frontend::kafka::topic_config::{self, Kind, SETTINGS};
use crate::request::Reply;
use crate::router::letter::OwnedRequest;

/// Either call.
pub struct AlterConfigs {
    is_incremental: bool,
    validate_only: bool,
    resources: Vec<Resource>,
}

struct Resource {
    kind: i8,
    name: String,
    settings: Vec<Change>,
    refused: Option<Refused>,
}

struct Change {
    name: String,
    operation: i8,
    value: Option<String>,
}

impl Resource {
    fn new(kind: i8, name: &str, settings: impl Iterator<Item = Change>) -> Resource {
        Resource { kind, name: name.to_owned(), settings: settings.collect(), refused: None }
    }
}

impl Change {
    fn new(name: &str, operation: i8, value: Option<&str>) -> Change {
        Change { name: name.to_owned(), operation, value: value.map(str::to_owned) }
    }
}

/// What is to be done with a setting.
const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;
const SUBTRACT: i8 = 3;

impl AlterConfigs {
    /// Everything anew.
    pub fn all(request: &AlterConfigsRequest<'_>) -> AlterConfigs {
        let resources = request.resources.iter().map(|resource| {
            let settings = resource.configs.iter().map(|config| Change::new(config.name, SET, config.value));
            Resource::new(resource.resource_type, resource.resource_name, settings)
        });
        AlterConfigs { is_incremental: false, validate_only: request.validate_only, resources: resources.collect() }
    }

    /// One by one.
    pub fn incremental(request: &IncrementalAlterConfigsRequest<'_>) -> AlterConfigs {
        let resources = request.resources.iter().map(|resource| {
            let settings = resource.configs.iter().map(|config| Change::new(config.name, config.config_operation, config.value));
            Resource::new(resource.resource_type, resource.resource_name, settings)
        });
        AlterConfigs { is_incremental: true, validate_only: request.validate_only, resources: resources.collect() }
    }

    /// The change of a topic that a resource asks for.
    fn change(&self, resource: &Resource, context: &Context<'_>) -> Result<AlterTopic, Refused> {
        if resource.kind != TOPIC {
            let message = "only topics' settings can be changed by clients; a broker's are in its configuration file";
            return Err(Refused::new(errors::INVALID_REQUEST, message));
        }
        let Some(topic) = context.view.catalog.topic(&resource.name) else {
            return Err(Refused::new(errors::UNKNOWN_TOPIC_OR_PARTITION, "no such topic"));
        };
        let invalid = |message: String| Refused::new(errors::INVALID_CONFIG, message);
        let mut change = AlterTopic::nothing(resource.name.as_str());
        if !self.is_incremental {
            for setting in SETTINGS.iter().filter(|setting| setting.value(&topic.config).is_some()) {
                if !resource.settings.iter().any(|change| change.name == setting.name) {
                    setting.change(None, &mut change).map_err(invalid)?;
                }
            }
        }
        for (at, wanted) in resource.settings.iter().enumerate() {
            if resource.settings[..at].iter().any(|before| before.name == wanted.name) {
                return Err(Refused::new(errors::INVALID_REQUEST, format!("{} is there twice", wanted.name)));
            }
            let setting = topic_config::find(&wanted.name).map_err(invalid)?;
            let value = new_value(wanted, setting, &topic.config)?;
            setting.change(value.as_deref(), &mut change).map_err(invalid)?;
        }
        Ok(change)
    }
}

/// `None` = the default.
fn new_value(wanted: &Change, setting: &topic_config::Setting, config: &TopicConfig) -> Result<Option<String>, Refused> {
    let missing = || Refused::new(errors::INVALID_REQUEST, format!("{}: no value", wanted.name));
    match wanted.operation {
        SET => wanted.value.clone().map(Some).ok_or_else(missing),
        DELETE => Ok(None),
        APPEND | SUBTRACT if setting.kind == Kind::List => {
            let old = setting.value(config).unwrap_or_else(|| setting.default.into());
            let words = |list: &str| list.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>();
            let (mut list, given) = (words(&old), words(wanted.value.as_deref().ok_or_else(missing)?));
            if wanted.operation == APPEND {
                list.extend(given.into_iter().filter(|word| !words(&old).contains(word)));
            } else {
                list.retain(|word| !given.contains(word));
            }
            Ok(Some(list.join(",")))
        }
        APPEND | SUBTRACT => Err(Refused::new(errors::INVALID_CONFIG, format!("{} is no list", wanted.name))),
        operation => Err(Refused::new(errors::INVALID_REQUEST, format!("operation {operation} is unknown"))),
    }
}

impl Call for AlterConfigs {
    fn begin(&mut self, context: &mut Context<'_>) {
        for number in 0..self.resources.len() {
            match self.change(&self.resources[number], context) {
                Ok(change) if !self.validate_only => context.ask(number as u32, OwnedRequest::AlterTopic(Box::new(change))),
                Ok(_) => {}
                Err(refused) => self.resources[number].refused = Some(refused),
            }
        }
    }

    fn answer(&mut self, number: u32, reply: Reply, _context: &mut Context<'_>) {
        if let Reply::Failed(failure) = reply
            && let Some(resource) = self.resources.get_mut(number as usize)
        {
            let mut refused = Refused::of(&failure);
            if failure.code == ErrorCode::InvalidArgument {
                refused.code = errors::INVALID_CONFIG;
            }
            resource.refused = Some(refused);
        }
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let parts = self.resources.into_iter().map(|resource| {
            let (code, message) = resource.refused.map_or((errors::NONE, None), |refused| (refused.code, Some(text(refused.message))));
            (code, message, resource.kind, text(resource.name))
        });
        if self.is_incremental {
            let responses = parts.map(|(code, message, kind, name)| {
                incremental_alter_configs_response::AlterConfigsResourceResponse::default()
                    .with_error_code(code)
                    .with_error_message(message)
                    .with_resource_type(kind)
                    .with_resource_name(name)
            });
            return encode(&IncrementalAlterConfigsResponse::default().with_responses(responses.collect()), version, out);
        }
        let responses = parts.map(|(code, message, kind, name)| {
            alter_configs_response::AlterConfigsResourceResponse::default()
                .with_error_code(code)
                .with_error_message(message)
                .with_resource_type(kind)
                .with_resource_name(name)
        });
        encode(&AlterConfigsResponse::default().with_responses(responses.collect()), version, out)
    }
}
