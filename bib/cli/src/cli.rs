//! The tree of commands: global flags, the nouns, and which command knows which formats.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::clock::Clock;
use crate::commands::{
    admin, cert, completions, config as config_command, connect, dataset, login, setup, status, token, topic, trust,
    user, version,
};
use crate::config::{Config, Directories};
use crate::confirm::Asker;
use crate::context::{Context, Variables};
use crate::errors::{Failure, Result};
use crate::output::{Colours, Format, Manner, Output};
use crate::units::parse_duration;

/// Publish research data, get it back, prove it.
#[derive(Debug, Parser)]
#[command(
    name = "bib",
    version,
    about,
    max_term_width = 100,
    disable_help_subcommand = false,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The node: HOST:PORT, unix:/path/to/bibd.sock, an alias or a peer id
    #[arg(long, global = true, env = "BIB_NODE", value_name = "NODE")]
    pub(crate) node: Option<String>,
    /// How results are printed
    #[arg(
        short = 'o',
        long,
        global = true,
        value_enum,
        default_value = "table",
        hide_possible_values = true,
        value_name = "table|json|yaml|csv"
    )]
    pub(crate) output: Format,
    /// No progress and no remarks
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Answer questions with yes
    #[arg(short, long, global = true)]
    pub(crate) yes: bool,
    /// How long a call may take, such as 30s or 5m
    #[arg(long, global = true, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// Say more on standard error; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// The SSH key to log in and sign with, private or public half
    #[arg(long, global = true, env = "BIB_KEY", value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// A file of `bib token create`, in place of a log-in
    #[arg(long, global = true, env = "BIB_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Where configuration, trust and credentials lie
    #[arg(long, global = true, env = "BIB_CONFIG_DIR", value_name = "DIR")]
    pub(crate) config_dir: Option<PathBuf>,
    /// CSV exactly as the data is, not made safe for spreadsheets
    #[arg(long, global = true)]
    pub(crate) exact_csv: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Setup(setup::Setup),
    Connect(connect::Connect),
    Login(login::Login),
    Logout(login::Logout),
    Whoami(login::Whoami),
    Status(status::Status),
    Version(version::Version),
    Completions(completions::Completions),
    /// Your configuration
    #[command(subcommand)]
    Config(config_command::Command),
    /// Which nodes are trusted
    #[command(subcommand)]
    Trust(trust::Command),
    /// Certificates
    #[command(subcommand)]
    Cert(cert::Command),
    /// Tokens for scripts
    #[command(subcommand)]
    Token(token::Command),
    /// People and programs of the node
    #[command(subcommand)]
    User(user::Command),
    /// Topics and who may see and write them
    #[command(subcommand)]
    Topic(topic::Command),
    /// Datasets and their versions
    #[command(subcommand)]
    Dataset(dataset::Command),
    /// Running the node
    #[command(subcommand)]
    Admin(admin::Command),
}

impl Global {
    /// Starts the log on standard error: warnings, more with `-v`.
    pub(crate) fn start_log(&self) {
        let level = match self.verbose {
            0 => "bib=warn,bib_client=warn,bib_identity=warn",
            1 => "bib=info,bib_client=info,bib_identity=info",
            _ => "debug,h2=info,hyper_util=info",
        };
        let filter = tracing_subscriber::EnvFilter::new(level);
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_target(self.verbose > 0);
        log.without_time().with_ansi(false).init();
    }
}

impl Cli {
    /// Builds what the command needs and runs it.
    ///
    /// # Errors
    /// What the command fails with.
    pub(crate) async fn run(self, variables: Variables, colours: Colours) -> Result<()> {
        let Self { global, command } = self;
        if !global.output.is_common() && !command.knows(global.output) {
            return Err(Failure::usage("this command has no such output format")
                .with_hint("every command knows table, json, yaml and csv; see `--help`"));
        }
        let directories = Directories::find(global.config_dir.as_deref())?;
        let manner = Manner { format: global.output, colours, quiet: global.quiet, exact_csv: global.exact_csv };
        let context = Context {
            config: Config::load(&directories.config, variables.clone())?,
            directories,
            output: Output::stdout(manner),
            asker: Asker::new(global.yes, colours.stderr),
            clock: Clock,
            node: global.node.filter(|node| !node.is_empty()),
            timeout: global.timeout,
            key: global.key,
            token_file: global.token_file,
            variables,
        };
        command.run(context).await
    }
}

impl Command {
    fn knows(&self, format: Format) -> bool {
        match self {
            Self::Dataset(command) => command.knows(format),
            Self::Admin(command) => command.knows(format),
            _ => false,
        }
    }

    async fn run(self, context: Context) -> Result<()> {
        match self {
            Self::Setup(command) => command.run(context).await,
            Self::Connect(command) => command.run(context).await,
            Self::Login(command) => command.run(&context).await,
            Self::Logout(command) => command.run(&context).await,
            Self::Whoami(command) => command.run(&context).await,
            Self::Status(command) => command.run(&context).await,
            Self::Version(command) => command.run(&context).await,
            Self::Completions(command) => command.run(&context),
            Self::Config(command) => command.run(context),
            Self::Trust(command) => command.run(&context).await,
            Self::Cert(command) => command.run(&context).await,
            Self::Token(command) => command.run(&context).await,
            Self::User(command) => command.run(&context).await,
            Self::Topic(command) => command.run(&context).await,
            Self::Dataset(command) => command.run(&context).await,
            Self::Admin(command) => command.run(&context).await,
        }
    }
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
