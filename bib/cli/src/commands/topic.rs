//! `bib topic`: topics, and who may see and write them.

use std::time::Duration;

use bib_client::pb;
use bib_core::name::TopicName;
use clap::{Args, Subcommand, ValueEnum};

use super::dataset::license;
use super::done::Done;
use crate::context::Context;
use crate::errors::{Failure, Result};
use crate::output::record;
use crate::units::parse_duration;

/// Topics and who may see and write them.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The topics that you may see
    List {
        /// Only topics below this one
        #[arg(long, value_name = "TOPIC", default_value = "", hide_default_value = true)]
        under: String,
    },
    /// Makes a topic; private unless told otherwise
    Create(Create),
    /// One topic
    Show {
        /// Name or id
        topic: String,
    },
    /// Changes what is named
    Update(Update),
    /// Hides a topic that holds nothing and frees its name
    Delete {
        /// Name or id
        topic: String,
    },
    /// Lets a user, key or node read, write or administer a topic
    Grant(Grant),
    /// Takes a grant back; what was copied stays where it is
    Revoke {
        /// Name or id
        topic: String,
        /// A user's name, a key fingerprint or a peer id
        subject: String,
    },
    /// The grants of a topic
    Grants {
        /// Name or id
        topic: String,
    },
}

/// Makes a topic.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Segments between `/`, such as climate/stations
    name: String,
    /// One line
    #[arg(long, default_value = "", hide_default_value = true)]
    title: String,
    /// One or more paragraphs
    #[arg(long, default_value = "", hide_default_value = true)]
    description: String,
    /// Who may see it
    #[arg(long, value_enum, default_value = "private")]
    visibility: Visibility,
    /// The SPDX licence that a publish takes when it names none
    #[arg(long, value_name = "SPDX", default_value = "", hide_default_value = true)]
    license: String,
    /// Also make the missing topics above
    #[arg(long)]
    parents: bool,
}

/// Changes a topic.
#[derive(Debug, Args)]
pub(crate) struct Update {
    /// Name or id
    topic: String,
    /// One line
    #[arg(long)]
    title: Option<String>,
    /// One or more paragraphs
    #[arg(long)]
    description: Option<String>,
    /// Who may see it; opening it asks first
    #[arg(long, value_enum)]
    visibility: Option<Visibility>,
    /// The SPDX licence that a publish takes when it names none
    #[arg(long, value_name = "SPDX")]
    license: Option<String>,
}

/// Grants something.
#[derive(Debug, Args)]
pub(crate) struct Grant {
    /// Name or id
    topic: String,
    /// A user's name, a key fingerprint or a peer id
    subject: String,
    /// What the subject may do
    #[arg(value_enum)]
    level: Level,
    /// How long it counts, at most 90d; the daemon renews it while it stands
    #[arg(long, default_value = "90d", value_name = "DURATION", value_parser = parse_duration)]
    expires: Duration,
}

/// Who may see a topic, from the few to all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Visibility {
    Private,
    Network,
    Public,
}

/// What a grant allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Level {
    Read,
    Write,
    Admin,
}

record! {
    /// A topic.
    TopicRow {
        name: String = Text listed, title: String = Text listed, visibility: String = Text listed, datasets: u64 = Text listed,
        my_grant: String = Text listed, default_license: String = Text, description: String = Lines, topic_id: String = Text,
        owner: String = Text, created_at: String = Time, updated_at: String = Time,
    }
}

record! {
    /// A grant.
    GrantRow {
        topic: String = Text listed, subject: String = Text listed, user: String = Text listed, level: String = Text listed,
        expires_at: String = Time listed, granted_by: String = Text, created_at: String = Time, topic_id: String = Text,
    }
}

impl Command {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        let topics = context.client().await?.topics();
        match self {
            Self::List { under } => {
                let rows = topics.list(&under);
                context.output.list().drain(rows, TopicRow::from, "no topics that you may see").await.map(|_| ())
            }
            Self::Create(create) => {
                let answer = topics.create(create.request(context)?).await?;
                context.output.one(&TopicRow::from(answer.topic.unwrap_or_default()))
            }
            Self::Show { topic } => context.output.one(&TopicRow::from(topics.get(&topic).await?)),
            Self::Update(update) => {
                let request = update.request(context, &topics).await?;
                context.output.one(&TopicRow::from(topics.update(request).await?))
            }
            Self::Delete { topic } => {
                context.asker.confirm(&format!("delete the topic `{topic}`?"))?;
                topics.delete(&topic).await?;
                context.output.one(&Done::new("deleted", topic))
            }
            Self::Grant(grant) => context.output.one(&GrantRow::from(topics.grant(grant.request()).await?)),
            Self::Revoke { topic, subject } => {
                context.asker.confirm(&format!("take the grant on `{topic}` from `{subject}`?"))?;
                topics.revoke(&topic, &subject).await?;
                context.output.note("no new bytes go there; copies that were made stay");
                context.output.one(&Done::new("revoked", format!("{topic} {subject}")))
            }
            Self::Grants { topic } => {
                let rows = topics.grants(&topic);
                context.output.list().drain(rows, GrantRow::from, "no grants").await.map(|_| ())
            }
        }
    }
}

impl Create {
    fn request(self, context: &Context) -> Result<pb::CreateTopicRequest> {
        TopicName::new(&self.name).map_err(|error| Failure::usage(error.to_string()))?;
        if !self.license.is_empty() {
            license::check(&self.license)?;
        }
        if self.visibility > Visibility::Private {
            confirm_opening(context, &self.name, self.visibility)?;
        }
        Ok(pb::CreateTopicRequest {
            name: self.name,
            title: self.title,
            description: self.description,
            visibility: self.visibility.to_wire().into(),
            default_license: self.license,
            parents: self.parents,
            // Each run of the command is a request of its own; the client does not repeat it.
            idempotency_key: String::new(),
        })
    }
}

impl Update {
    async fn request(self, context: &Context, topics: &bib_client::api::Topics) -> Result<pb::UpdateTopicRequest> {
        if let Some(text) = self.license.as_deref().filter(|text| !text.is_empty()) {
            license::check(text)?;
        }
        if self.title.is_none() && self.description.is_none() && self.visibility.is_none() && self.license.is_none() {
            return Err(Failure::usage("there is nothing to change")
                .with_hint("name one of `--title`, `--description`, `--visibility`, `--license`"));
        }
        if let Some(wanted) = self.visibility {
            let now = topics.get(&self.topic).await?;
            match Visibility::from_wire(now.visibility()) {
                now if wanted > now => confirm_opening(context, &self.topic, wanted)?,
                now if wanted < now => context.output.note("copies that others have made stay with them"),
                _ => {}
            }
        }
        Ok(pb::UpdateTopicRequest {
            topic: self.topic,
            title: self.title,
            description: self.description,
            visibility: self.visibility.map(|visibility| visibility.to_wire().into()),
            default_license: self.license,
        })
    }
}

impl Grant {
    fn request(self) -> pb::GrantRequest {
        let level = match self.level {
            Level::Read => pb::GrantLevel::Read,
            Level::Write => pb::GrantLevel::Write,
            Level::Admin => pb::GrantLevel::Admin,
        };
        pb::GrantRequest {
            topic: self.topic,
            subject: self.subject,
            level: level.into(),
            expires_in_seconds: self.expires.as_secs(),
        }
    }
}

fn confirm_opening(context: &Context, topic: &str, to: Visibility) -> Result<()> {
    let whom = if to == Visibility::Public { "everybody" } else { "the peers on the node's allow list" };
    context.asker.confirm(&format!("let {whom} see the topic `{topic}`? what was seen cannot be taken back"))
}

impl Visibility {
    const fn to_wire(self) -> pb::Visibility {
        match self {
            Self::Private => pb::Visibility::Private,
            Self::Network => pb::Visibility::Network,
            Self::Public => pb::Visibility::Public,
        }
    }

    const fn from_wire(visibility: pb::Visibility) -> Self {
        match visibility {
            pb::Visibility::Private | pb::Visibility::Unspecified => Self::Private,
            pb::Visibility::Network => Self::Network,
            pb::Visibility::Public => Self::Public,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Network => "network",
            Self::Public => "public",
        }
    }
}

const fn level_name(level: pb::GrantLevel) -> &'static str {
    match level {
        pb::GrantLevel::Read => "read",
        pb::GrantLevel::Write => "write",
        pb::GrantLevel::Admin => "admin",
        pb::GrantLevel::Unspecified => "none",
    }
}

impl From<pb::Topic> for TopicRow {
    fn from(topic: pb::Topic) -> Self {
        Self {
            visibility: Visibility::from_wire(topic.visibility()).name().to_owned(),
            my_grant: level_name(topic.my_grant()).to_owned(),
            name: topic.name,
            title: topic.title,
            datasets: topic.datasets,
            default_license: topic.default_license,
            description: topic.description,
            topic_id: topic.topic_id,
            owner: topic.owner,
            created_at: topic.created_at,
            updated_at: topic.updated_at,
        }
    }
}

impl From<pb::TopicGrant> for GrantRow {
    fn from(grant: pb::TopicGrant) -> Self {
        Self {
            level: level_name(grant.level()).to_owned(),
            topic: grant.topic,
            subject: grant.subject,
            user: grant.user,
            expires_at: grant.expires_at,
            granted_by: grant.granted_by,
            created_at: grant.created_at,
            topic_id: grant.topic_id,
        }
    }
}
