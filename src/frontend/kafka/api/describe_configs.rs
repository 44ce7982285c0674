//! Settings of topics and brokers, all of them, with where their values come from.

use kafka_protocol::messages::DescribeConfigsResponse;
use kafka_protocol::messages::describe_configs_response::{DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym};

use super::configs::{BROKER, Source, TOPIC, broker_settings, node_of};
use super::{Answer, Call, Context, encode, text};
use crate::frontend::kafka::decode::{DescribeConfigsRequest, DescribeConfigsResource};
use crate::frontend::kafka::errors;
use crate::frontend::kafka::topic_config::{Kind, SETTINGS};

/// The call: it asks nobody.
pub struct DescribeConfigs {
    include_synonyms: bool,
    resources: Vec<Resource>,
}

struct Resource {
    kind: i8,
    name: String,
    error: i16,
    message: String,
    settings: Vec<Found>,
}

struct Found {
    name: &'static str,
    kind: Kind,
    value: String,
    source: Source,
    default: Option<&'static str>,
}

impl DescribeConfigs {
    /// Looks everything up. A request is answered when its turn has come, so what was changed before is seen.
    pub fn open(request: &DescribeConfigsRequest<'_>) -> DescribeConfigs {
        let resources = request.resources.iter().map(|wanted| Resource {
            kind: wanted.resource_type,
            name: wanted.resource_name.to_owned(),
            error: errors::NONE,
            message: String::new(),
            settings: Vec::new(),
        });
        let mut call = DescribeConfigs { include_synonyms: request.include_synonyms, resources: resources.collect() };
        for (resource, wanted) in call.resources.iter_mut().zip(&request.resources) {
            resource.settings = wanted_settings(wanted);
        }
        call
    }
}

/// By name only; values come when the call begins.
fn wanted_settings(wanted: &DescribeConfigsResource<'_>) -> Vec<Found> {
    let is_wanted = |name: &str| wanted.configuration_keys.as_ref().is_none_or(|keys| keys.is_empty() || keys.contains(&name));
    let found = |name, kind, default| Found { name, kind, value: String::new(), source: Source::Default, default };
    match wanted.resource_type {
        TOPIC => SETTINGS
            .iter()
            .filter(|setting| is_wanted(setting.name))
            .map(|setting| found(setting.name, setting.kind, Some(setting.default)))
            .collect(),
        // Their names don't depend on the configuration.
        BROKER => broker_settings(&crate::frontend::kafka::KafkaConfig::default(), 0)
            .into_iter()
            .filter(|(name, ..)| is_wanted(name))
            .map(|(name, kind, _)| found(name, kind, None))
            .collect(),
        _ => Vec::new(),
    }
}

impl Call for DescribeConfigs {
    fn begin(&mut self, context: &mut Context<'_>) {
        for resource in &mut self.resources {
            match resource.kind {
                TOPIC => match context.view.catalog.topic(&resource.name) {
                    Some(topic) => {
                        for found in &mut resource.settings {
                            let Some(setting) = SETTINGS.iter().find(|setting| setting.name == found.name) else { continue };
                            let value = setting.value(&topic.config);
                            found.source = if value.is_some() { Source::Topic } else { Source::Default };
                            found.value = value.unwrap_or_else(|| setting.default.into());
                        }
                    }
                    None => {
                        resource.error = errors::UNKNOWN_TOPIC_OR_PARTITION;
                        resource.settings.clear();
                    }
                },
                // Without a name: what is set for all brokers at run time, which is nothing.
                BROKER if resource.name.is_empty() => resource.settings.clear(),
                BROKER => match node_of(&resource.name, context.config) {
                    Some(node) => {
                        let values = broker_settings(context.config, node);
                        for found in &mut resource.settings {
                            let value = values.iter().find(|(name, ..)| *name == found.name);
                            found.value = value.map_or_else(String::new, |(.., value)| value.clone());
                            found.source = Source::StaticBroker;
                        }
                    }
                    None => {
                        resource.error = errors::INVALID_REQUEST;
                        resource.message = format!("no broker {}", resource.name);
                        resource.settings.clear();
                    }
                },
                kind => {
                    resource.error = errors::INVALID_REQUEST;
                    resource.message = format!("resources of type {kind} have no settings here");
                }
            }
        }
    }

    fn respond(self: Box<Self>, version: i16, _context: &Context<'_>, out: &mut Answer) -> Result<bool, String> {
        let include_synonyms = self.include_synonyms;
        let results = self.resources.into_iter().map(|resource| {
            let configs = resource.settings.into_iter().map(|found| {
                let synonym = |value: &str, source: Source| {
                    DescribeConfigsSynonym::default().with_name(text(found.name)).with_value(Some(text(value))).with_source(source as i8)
                };
                let mut synonyms = Vec::new();
                if include_synonyms {
                    if found.source != Source::Default {
                        synonyms.push(synonym(&found.value, found.source));
                    }
                    synonyms.extend(found.default.map(|default| synonym(default, Source::Default)));
                }
                let result = DescribeConfigsResourceResult::default()
                    .with_name(text(found.name))
                    .with_read_only(found.default.is_none())
                    .with_config_source(found.source as i8)
                    .with_synonyms(synonyms)
                    .with_value(Some(text(found.value)));
                if version >= 3 { result.with_config_type(found.kind as i8) } else { result }
            });
            DescribeConfigsResult::default()
                .with_error_code(resource.error)
                .with_error_message((resource.error != errors::NONE).then(|| text(resource.message)))
                .with_resource_type(resource.kind)
                .with_resource_name(text(resource.name))
                .with_configs(configs.collect())
        });
        encode(&DescribeConfigsResponse::default().with_results(results.collect()), version, out)
    }
}
