//! `bib admin config`: the node's configuration.

use bib_client::pb;
use clap::Subcommand;

use crate::config::nearest;
use crate::context::Context;
use crate::errors::{Exit, Failure, Result};
use crate::output::record;

/// The node's configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The effective values with their origin; secrets are redacted
    List,
    /// One value
    Get {
        /// Dotted, such as grpc.listen
        #[arg(value_name = "KEY")]
        name: String,
    },
    /// Changes a setting that takes effect without a restart
    Set {
        /// Dotted
        #[arg(value_name = "KEY")]
        name: String,
        /// The value
        value: String,
    },
}

record! {
    /// A value of the node's configuration.
    ConfigRow { key: String = Text listed, value: String = Text listed, origin: String = Text listed, mutable: bool = Text listed }
}

impl Command {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        let admin = context.client().await?.admin();
        match self {
            Self::List => {
                let mut list = context.output.list();
                for value in admin.config().await?.values {
                    list.push(&ConfigRow::from(value))?;
                }
                list.finish("no values").map(|_| ())
            }
            Self::Get { name: key } => context.output.one(&find(admin.config().await?, &key)?),
            Self::Set { name: key, value } => {
                context.output.one(&find(admin.update_config(&key, &value).await?, &key)?)
            }
        }
    }
}

fn find(answer: pb::GetConfigResponse, key: &str) -> Result<ConfigRow> {
    let near = nearest(key, answer.values.iter().map(|value| value.key.as_str())).map(str::to_owned);
    answer.values.into_iter().find(|value| value.key == key).map(ConfigRow::from).ok_or_else(|| {
        let hint = near.map_or_else(
            || "`bib admin config list` shows the keys".to_owned(),
            |near| format!("did you mean `{near}`?"),
        );
        Failure::new(Exit::NotFound, format!("the node has no key `{key}`")).with_hint(hint)
    })
}

impl From<pb::ConfigValue> for ConfigRow {
    fn from(value: pb::ConfigValue) -> Self {
        Self { key: value.key, value: value.value, origin: value.origin, mutable: value.mutable }
    }
}
