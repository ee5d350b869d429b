//! The command line of `bibd`.
//!
//! Exit codes: 0 it ended as asked, 1 it failed, 2 the command line or the configuration is wrong, 3 another daemon
//! uses the data directory, 4 an address or socket is in use, 5 PostgreSQL cannot be started, 6 the node's key or a
//! secret cannot be used, 7 `bibd doctor` found something that must be repaired, or a backup is not what it should be.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bibd_postgres::Failpoints;
use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

mod cleanup;
mod kubernetes;
mod restore;

use crate::app::{Daemon, Options, StartError};
use crate::at_rest::AtRest;
use crate::backup::BackupError;
use crate::cache_node::CacheNode;
use crate::cleanup::CleanupError;
use crate::clock::{Entropy, SystemClock};
use crate::config::load::Problems;
use crate::config::places::{Home, find_config_file};
use crate::config::{self, Config, Loaded, Places, Sources};
use crate::errors::ErrorCode;
use crate::grpc::connections::ConnectionRegistry;
use crate::grpc::error::chain;
use crate::own_secret::OwnSecretError;
use crate::ready::Ready;
use crate::{data_dir, doctor, failpoint, logging, own_secret};

/// The daemon of a BIB node.
#[derive(Debug, Parser)]
#[command(name = "bibd", version, about = "The daemon of a BIB node: it stores, serves and proves research data.")]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct Common {
    /// The directory of config.yaml [default: /etc/bibd for root, else bibd in the XDG configuration directory].
    #[arg(long, global = true, value_name = "DIR", env = "BIBD_CONFIG_DIR")]
    config_dir: Option<PathBuf>,
    /// The configuration file itself (YAML, or TOML by extension).
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "config_dir")]
    config: Option<PathBuf>,
    /// Where data lies [default: /var/lib/bibd for root, else bibd in the XDG data directory].
    #[arg(long, global = true, value_name = "DIR", env = "BIBD_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Where TLS is served, such as 0.0.0.0:4000; port 0 takes a free one. May be repeated.
    #[arg(long, global = true, value_name = "ADDRESS")]
    listen: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes configuration, identity, certificates and database. Doing it twice changes nothing.
    Init(RunArgs),
    /// Runs the daemon until it is told to stop. This is the default.
    Run(RunArgs),
    /// Looks for what would keep the daemon from working, and says how to repair it.
    Doctor {
        /// How to print.
        #[arg(long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Makes a node again out of a store of backups, on a machine that has nothing of it but a key.
    Restore(restore::Args),
    /// Removes a node: its database, the container of it, chunks, keys and secrets, after a question.
    Cleanup(cleanup::Args),
    /// What runs bibd and its database in Kubernetes.
    #[command(subcommand)]
    Kubernetes(kubernetes::Command),
    /// The configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Secrets that the configuration names, sealed to this node.
    #[command(subcommand)]
    Secret(SecretCommand),
    /// The version.
    Version,
}

#[derive(Debug, Args, Default)]
struct RunArgs {
    /// A public SSH key (a file or the line itself) that becomes an admin at the first start.
    #[arg(long, value_name = "FILE|KEY")]
    admin_key: Option<String>,
    /// Where to say that the daemon is ready [default: ready.json in the data directory].
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Prints every effective value with its origin.
    Show {
        /// How to print.
        #[arg(long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Prints the JSON schema of the file.
    Schema,
    /// Checks the file, the environment and the flags.
    Check,
}

#[derive(Debug, Subcommand)]
enum SecretCommand {
    /// Seals what standard input holds under a name: `bibd secret set splunk-token < FILE`.
    Set {
        /// Lower-case letters, digits and `-`.
        name: String,
    },
    /// Prints the names of the secrets.
    List,
    /// Removes a secret.
    Remove {
        /// Its name.
        name: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Config(#[from] Problems),
    #[error("{message}")]
    Usage { message: String, hint: String },
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("the daemon stopped: {0}")]
    Stopped(String),
    #[error("{act}")]
    Io {
        act: String,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Restore(#[from] BackupError),
    #[error(transparent)]
    Cleanup(#[from] CleanupError),
    #[error("something must be repaired")]
    Doctor,
    #[error(transparent)]
    Secret(#[from] OwnSecretError),
    #[error(transparent)]
    Cluster(#[from] bibd_postgres::kubernetes::ClusterError),
}

fn by_code(code: ErrorCode) -> u8 {
    match code {
        ErrorCode::DATA_DIR_LOCKED => 3,
        ErrorCode::ADDRESS_IN_USE => 4,
        ErrorCode::POSTGRES_UNAVAILABLE => 5,
        ErrorCode::IDENTITY_UNUSABLE => 6,
        _ => 1,
    }
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Usage { .. } => 2,
            Self::Start(error) => by_code(error.code()),
            Self::Cleanup(error) => by_code(error.code()),
            Self::Restore(error) => match error.code() {
                ErrorCode::IDENTITY_UNUSABLE => 6,
                ErrorCode::INTEGRITY => 7,
                _ => 1,
            },
            Self::Doctor => 7,
            Self::Secret(OwnSecretError::Name(_) | OwnSecretError::Terminal | OwnSecretError::Length) => 2,
            Self::Secret(_) => 6,
            Self::Stopped(_) | Self::Io { .. } | Self::Cluster(_) => 1,
        }
    }

    fn code(&self) -> ErrorCode {
        match self {
            Self::Config(_) | Self::Usage { .. } => ErrorCode::CONFIG_INVALID,
            Self::Start(error) => error.code(),
            Self::Restore(error) => error.code(),
            Self::Cleanup(error) => error.code(),
            Self::Secret(OwnSecretError::Name(_) | OwnSecretError::Terminal | OwnSecretError::Length) => {
                ErrorCode::CONFIG_INVALID
            }
            Self::Secret(_) => ErrorCode::IDENTITY_UNUSABLE,
            Self::Cluster(_) => ErrorCode::POSTGRES_UNAVAILABLE,
            Self::Stopped(_) | Self::Io { .. } | Self::Doctor => ErrorCode::INTERNAL,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Usage { hint, .. } => Some(hint.clone()),
            Self::Start(error) => Some(error.hint()),
            Self::Restore(error) => Some(error.hint()),
            Self::Cleanup(error) => Some(error.hint()),
            Self::Secret(error) => Some(error.hint().to_owned()),
            Self::Cluster(error) => Some(error.hint().to_owned()),
            Self::Stopped(_) | Self::Io { .. } => Some("`bibd doctor` looks for the cause".to_owned()),
            Self::Config(_) | Self::Doctor => None,
        }
    }
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !matches!(failure, Failure::Doctor) {
                let mut text = format!("error[{}]: {}\n", failure.code(), chain(&failure));
                if let Some(hint) = failure.hint() {
                    text.push_str(&format!("hint: {hint}\n"));
                }
                // Nowhere left to complain to.
                let _ = std::io::stderr().lock().write_all(text.as_bytes());
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

fn print(text: &str) -> Result<(), Failure> {
    let act = || "print".to_owned();
    std::io::stdout().lock().write_all(text.as_bytes()).map_err(|source| Failure::Io { act: act(), source })
}

fn run(cli: Cli) -> Result<(), Failure> {
    let home = Home::of_this_user().map_err(|error| Failure::Usage {
        message: error.to_string(),
        hint: "set HOME, or run as a user that has one".to_owned(),
    })?;
    match cli.command.unwrap_or(Command::Run(RunArgs::default())) {
        Command::Version => print(&format!("bibd {}\n", env!("CARGO_PKG_VERSION"))),
        Command::Config(ConfigCommand::Schema) => print(&format!("{:#}\n", Config::schema())),
        Command::Config(ConfigCommand::Check) => {
            load(&cli.common, &home)?;
            print("the configuration is valid\n")
        }
        Command::Config(ConfigCommand::Show { output }) => show(&load(&cli.common, &home)?, output),
        Command::Secret(command) => {
            let places = Places::of(&load(&cli.common, &home)?.config, &home, None);
            match command {
                SecretCommand::Set { name } => Ok(own_secret::set(&places, &name)?),
                SecretCommand::List => {
                    let lines: Vec<String> = own_secret::list(&places)?.iter().map(|n| format!("{n}\n")).collect();
                    print(&lines.concat())
                }
                SecretCommand::Remove { name } => Ok(own_secret::remove(&places, &name)?),
            }
        }
        Command::Doctor { output } => {
            let loaded = load(&cli.common, &home)?;
            let report = in_runtime(doctor::examine(&loaded.config, &home))?;
            print(&if output == Output::Json { report.to_json() } else { report.to_text() })?;
            if report.is_healthy() { Ok(()) } else { Err(Failure::Doctor) }
        }
        Command::Restore(args) => {
            let config = load_with(&cli.common, &home, args.flags())?.config;
            let text = in_runtime(args.run(config, &home, failpoints()?))??;
            print(&text)
        }
        Command::Kubernetes(command) => {
            let loaded = load_with(&cli.common, &home, command.flags())?;
            match command {
                kubernetes::Command::Check(args) => in_runtime(args.run(&loaded.config))?,
                kubernetes::Command::Manifests(args) => {
                    let text = loaded.file.as_ref().map(|path| {
                        std::fs::read_to_string(path)
                            .map_err(|source| Failure::Io { act: format!("read `{}`", path.display()), source })
                    });
                    args.run(&loaded.config, text.transpose()?.as_deref())
                }
            }
        }
        Command::Cleanup(args) => {
            let loaded = load(&cli.common, &home)?;
            let file = loaded.file.clone();
            in_runtime(args.run(loaded.config, &home, file.as_deref()))?
        }
        Command::Init(args) => {
            write_config(&cli.common, &home)?;
            let loaded = load(&cli.common, &home)?;
            let mut at_rest = None;
            let outcome = in_runtime(init(loaded, home, args, &mut at_rest));
            lock(at_rest);
            outcome?
        }
        Command::Run(args) => {
            let loaded = load(&cli.common, &home)?;
            let mut at_rest = None;
            let outcome = in_runtime(serve(loaded, home, args, &mut at_rest));
            lock(at_rest);
            outcome?
        }
    }
}

fn in_runtime<F: Future>(future: F) -> Result<F::Output, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("bibd")
        .build()
        .map_err(|source| Failure::Io { act: "start the runtime".to_owned(), source })?;
    Ok(runtime.block_on(future))
}

/// The last thing: the runtime is gone, and with it every file that was open.
fn lock(at_rest: Option<AtRest>) {
    if let Some(at_rest) = at_rest {
        at_rest.lock();
    }
}

fn config_dir(common: &Common, home: &Home) -> PathBuf {
    common.config_dir.clone().unwrap_or_else(|| home.config.join("bibd"))
}

fn load(common: &Common, home: &Home) -> Result<Loaded, Failure> {
    load_with(common, home, Vec::new())
}

/// With what else the command line says.
fn load_with(common: &Common, home: &Home, mut flags: Vec<(&'static str, String)>) -> Result<Loaded, Failure> {
    let path = match &common.config {
        Some(path) => Some(path.clone()),
        None => find_config_file(&config_dir(common, home)).map_err(|error| Failure::Usage {
            message: error.to_string(),
            hint: "two files could say two things".to_owned(),
        })?,
    };
    let file = match path {
        Some(path) => {
            let text = std::fs::read_to_string(&path)
                .map_err(|source| Failure::Io { act: format!("read `{}`", path.display()), source })?;
            Some((path, text))
        }
        None => None,
    };
    if let Some(data_dir) = &common.data_dir {
        let absolute = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.clone());
        flags.push(("data_dir", absolute.display().to_string()));
    }
    if !common.listen.is_empty() {
        flags.push(("grpc.listen", common.listen.join(",")));
    }
    // Variables that are not text cannot be ours.
    let environment = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    Ok(config::load(&Sources { file, environment: environment.collect(), flags })?)
}

fn show(loaded: &Loaded, output: Output) -> Result<(), Failure> {
    let entries = loaded.entries();
    if output == Output::Json {
        let values: Vec<_> = entries
            .iter()
            .map(|e| serde_json::json!({ "key": e.key, "value": e.value, "origin": e.origin.word(), "where": e.origin.to_string() }))
            .collect();
        return print(&format!("{:#}\n", serde_json::Value::Array(values)));
    }
    let width = entries.iter().map(|entry| entry.key.len() + entry.value.len()).max().unwrap_or(0) + 3;
    let lines: Vec<String> = entries
        .iter()
        .map(|entry| format!("{:width$}  # {}\n", format!("{} = {}", entry.key, entry.value), entry.origin))
        .collect();
    print(&lines.concat())
}

/// The first configuration file: what a person is most likely to change, commented out.
const FIRST_CONFIG: &str = "\
# The configuration of this BIB node. `bibd config show` prints every value and where it is from;
# `bibd config schema` describes every key. What is not set here has its default.

# Serve TLS to the network instead of this machine alone:
# grpc:
#   listen: [\"0.0.0.0:4000\", \"[::]:4000\"]

# Keep signed heads of the audit log on another disk:
# audit:
#   checkpoint_path: /mnt/other/bib-checkpoints
";

fn write_config(common: &Common, home: &Home) -> Result<(), Failure> {
    let directory = config_dir(common, home);
    let has_one = common.config.is_some() || find_config_file(&directory).map_or(true, |found| found.is_some());
    if has_one {
        return Ok(());
    }
    let path = directory.join("config.yaml");
    let made = std::fs::create_dir_all(&directory).and_then(|()| std::fs::write(&path, FIRST_CONFIG));
    made.map_err(|source| Failure::Io { act: format!("write `{}`", path.display()), source })
}

/// A key line, or the content of the file of that name.
fn admin_key(argument: Option<String>) -> Result<Option<String>, Failure> {
    let Some(argument) = argument else { return Ok(None) };
    let is_line = ["ssh-", "ecdsa-", "sk-"].iter().any(|prefix| argument.starts_with(prefix));
    let text = if is_line {
        argument
    } else {
        std::fs::read_to_string(Path::new(&argument))
            .map_err(|source| Failure::Io { act: format!("read the admin key `{argument}`"), source })?
    };
    text.trim().parse::<bib_identity::ssh::PublicKey>().map_err(|error| Failure::Usage {
        message: format!("--admin-key is not a public SSH key: {error}"),
        hint: "give the content or the path of a file such as ~/.ssh/id_ed25519.pub".to_owned(),
    })?;
    Ok(Some(text.trim().to_owned()))
}

/// The step at which a test wants this process dead.
fn failpoints() -> Result<Failpoints, Failure> {
    failpoint::from_environment().map_err(|name| Failure::Usage {
        message: format!("{} names `{name}`, and there is no such step", failpoint::VARIABLE),
        hint: "remove it: it is for tests".to_owned(),
    })
}

/// What runs: a full node, or a cache.
enum Node {
    Full(Box<Daemon>),
    Cache(Box<CacheNode>),
}

impl Node {
    fn ready(&self) -> &Ready {
        match self {
            Self::Full(daemon) => daemon.ready(),
            Self::Cache(node) => node.ready(),
        }
    }

    fn connections(&self) -> ConnectionRegistry {
        match self {
            Self::Full(daemon) => daemon.foundation().connections.clone(),
            Self::Cache(node) => node.connections(),
        }
    }

    /// Waits until somebody asks for a stop through the API, or a task without which nothing works has ended.
    async fn ended(&self) -> Result<Duration, String> {
        match self {
            Self::Full(daemon) => daemon.ended().await,
            Self::Cache(node) => Err(node.ended().await),
        }
    }

    /// What comes back is locked when all else of the daemon is dropped.
    async fn stop(self, drain: Duration) -> Option<AtRest> {
        match self {
            Self::Full(daemon) => Some(daemon.stop(drain).await),
            Self::Cache(node) => {
                node.stop(drain).await;
                None
            }
        }
    }
}

async fn start(loaded: Loaded, home: Home, args: RunArgs) -> Result<Node, Failure> {
    data_dir::harden_process().map_err(|source| Failure::Io { act: "forbid core dumps".to_owned(), source })?;
    let clock = Arc::new(SystemClock);
    let logs = logging::init(&loaded.config.log, clock.clone())
        .map_err(|error| Failure::Usage { message: chain(&error), hint: "choose another `log.file`".to_owned() })?;
    let options = Options {
        admin_key: admin_key(args.admin_key)?,
        ready_file: args.ready_file,
        entropy: Entropy::from_system(),
        loaded,
        home,
        clock,
        logs,
        failpoints: failpoints()?,
        database_tcp: None,
    };
    // Boxed: a start holds many things across its waits.
    if options.loaded.config.is_cache() {
        if options.admin_key.is_some() {
            return Err(Failure::Usage {
                message: "--admin-key names a user, and a cache has none".to_owned(),
                hint: "leave it out: who runs bibd, and root, need no log-in on this machine".to_owned(),
            });
        }
        return Ok(Node::Cache(Box::new(Box::pin(CacheNode::start(options)).await?)));
    }
    Ok(Node::Full(Box::new(Box::pin(Daemon::start(options)).await?)))
}

async fn init(loaded: Loaded, home: Home, args: RunArgs, at_rest: &mut Option<AtRest>) -> Result<(), Failure> {
    // A whole start and stop: what works here works later, and a second time changes nothing.
    let mut loaded = loaded;
    loaded.config.grpc.listen.clear();
    loaded.config.metrics.listen = None;
    let places = Places::of(&loaded.config, &home, None);
    let daemon = start(loaded, home, args).await?;
    let ready = daemon.ready().clone();
    *at_rest = daemon.stop(Duration::ZERO).await;
    print(&format!(
        "node         {}\nfingerprint  {}\ndata         {}\n\nStart it with `bibd run`.\n",
        ready.peer_id,
        ready.fingerprint,
        places.data.display()
    ))
}

async fn serve(loaded: Loaded, home: Home, args: RunArgs, at_rest: &mut Option<AtRest>) -> Result<(), Failure> {
    let failed = |source| Failure::Io { act: "listen for signals".to_owned(), source };
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let drain = loaded.config.limits.drain_timeout.0;
    let daemon = tokio::select! {
        started = start(loaded, home, args) => started?,
        // Dropping a start half way leaves nothing that the next one does not repair.
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let ready = daemon.ready();
    let addresses: Vec<String> = ready.addresses.iter().map(ToString::to_string).collect();
    print(&format!(
        "bibd {} serves\n  socket       {}\n  addresses    {}\n  node         {}\n  fingerprint  {}\n",
        env!("CARGO_PKG_VERSION"),
        ready.socket.display(),
        if addresses.is_empty() { "none".to_owned() } else { addresses.join(" ") },
        ready.peer_id,
        ready.fingerprint
    ))?;
    let (drain, failure) = tokio::select! {
        ended = daemon.ended() => match ended {
            Ok(asked) => (asked, None),
            Err(reason) => (Duration::from_secs(1), Some(Failure::Stopped(reason))),
        },
        _ = terminate.recv() => (drain, None),
        _ = interrupt.recv() => (drain, None),
    };
    let connections = daemon.connections();
    let mut stop = std::pin::pin!(daemon.stop(drain));
    loop {
        tokio::select! {
            stopped = &mut stop => {
                *at_rest = stopped;
                break;
            }
            // Again: calls are cut and not waited for; the database still stops in order.
            _ = terminate.recv() => { connections.drop_all(); }
            _ = interrupt.recv() => { connections.drop_all(); }
        }
    }
    failure.map_or(Ok(()), Err)
}
