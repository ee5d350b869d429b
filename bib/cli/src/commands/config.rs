//! `bib config`: the person's configuration. Needs no node.

use clap::Subcommand;

use crate::config::Setting;
use crate::context::Context;
use crate::errors::Result;
use crate::output::record;

/// Your configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Every key with its value and where it comes from
    List,
    /// One key
    Get {
        /// Dotted, such as connection.timeout
        #[arg(value_name = "KEY")]
        name: String,
    },
    /// Writes a key into `config.yaml` (comments there are not kept); an empty value takes it out
    Set {
        /// Dotted, such as connection.timeout or connection.aliases.lab
        #[arg(value_name = "KEY")]
        name: String,
        /// The value; lists are joined by commas
        value: String,
    },
}

record! {
    /// A setting.
    SettingRow { key: String = Text listed, value: String = Text listed, origin: String = Text listed, about: String = Text listed }
}

impl Command {
    /// Runs the command.
    pub(crate) fn run(self, mut context: Context) -> Result<()> {
        match self {
            Self::List => {
                let mut list = context.output.list();
                for setting in context.config.list() {
                    list.push(&SettingRow::from(setting))?;
                }
                list.finish("no settings").map(|_| ())
            }
            Self::Get { name: key } => context.output.one(&SettingRow::from(context.config.get(&key)?)),
            Self::Set { name: key, value } => {
                context.config.store(&key, &value)?;
                match context.config.get(&key) {
                    Ok(setting) => context.output.one(&SettingRow::from(setting)),
                    // An alias that was taken out is gone.
                    Err(_) => context.output.one(&super::done::Done::new("removed", key)),
                }
            }
        }
    }
}

impl From<Setting> for SettingRow {
    fn from(setting: Setting) -> Self {
        let origin = match setting.origin {
            crate::config::Origin::Default => "default",
            crate::config::Origin::File => "file",
            crate::config::Origin::Environment => "environment",
        };
        Self { key: setting.key, value: setting.value, origin: origin.to_owned(), about: setting.about.to_owned() }
    }
}
