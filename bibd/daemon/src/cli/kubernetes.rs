//! `bibd kubernetes`: the objects of a database in Kubernetes, printed, and tried on a cluster. Nothing is applied.

use bibd_postgres::kubernetes::{Cluster, ClusterError, Content, Effect, Example, Manifest, manifests};
use clap::ValueEnum;

use super::{Failure, print};
use crate::config::{Config, kubernetes_access, kubernetes_settings};
use crate::foundation;

/// What `bibd kubernetes` does.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Prints what runs bibd and its database in Kubernetes, under this configuration.
    ///
    /// `around` is what an administrator applies: the namespace, bibd's account and role, and bibd as an example to
    /// start from. `database` is what the database is made of, without its keys, for a review.
    Manifests(Args),
    /// Tries on a cluster what the database is made of: whether this account may make it, and what would change.
    ///
    /// The cluster is the one of KUBECONFIG, else the one that this process is a pod of. Nothing is changed there. Ends
    /// with 7 when an object would be refused.
    Check(CheckArgs),
}

/// What `bibd kubernetes check` is told.
#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    place: Place,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t = super::Output::Text)]
    output: super::Output,
}

/// Which database, where the configuration's is not meant.
#[derive(Debug, clap::Args)]
struct Place {
    /// The namespace, instead of `database.kubernetes.namespace`.
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// What makes the pod, instead of `database.kubernetes.mode`.
    #[arg(long, value_enum)]
    mode: Option<ModeName>,
}

/// What `bibd kubernetes manifests` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Which objects.
    #[arg(long, value_enum, default_value_t = Part::All)]
    part: Part,
    #[command(flatten)]
    place: Place,
    /// The image of bibd itself.
    #[arg(long, value_name = "IMAGE", default_value = "bibd:0.1.0")]
    bibd_image: String,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t = Notation::Yaml)]
    output: Notation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    All,
    Around,
    Database,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ModeName {
    #[value(name = "statefulset")]
    StatefulSet,
    Operator,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Notation {
    Yaml,
    Json,
}

impl Command {
    /// What the command line says of the configuration.
    pub(super) fn flags(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Manifests(args) => args.place.flags(),
            Self::Check(args) => args.place.flags(),
        }
    }
}

impl Place {
    fn flags(&self) -> Vec<(&'static str, String)> {
        let mode = self.mode.map(|mode| match mode {
            ModeName::StatefulSet => "statefulset",
            ModeName::Operator => "operator",
        });
        let namespace = self.namespace.clone().map(|name| ("database.kubernetes.namespace", name));
        namespace.into_iter().chain(mode.map(|mode| ("database.kubernetes.mode", mode.to_owned()))).collect()
    }
}

/// The database's objects under this configuration, without their keys.
fn database(config: &Config) -> Vec<Manifest> {
    let settings = kubernetes_settings(&config.database);
    let limits = foundation::postgres_limits(&config.database);
    manifests::database(&settings, &Content::new(&settings.config(&limits, &foundation::postgres_wal(config))))
}

impl Args {
    /// Prints them. `file` is the text of the configuration file that bibd gets there.
    pub(super) fn run(&self, config: &Config, file: Option<&str>) -> Result<(), Failure> {
        let all = self.objects(config, file);
        print(&if self.output == Notation::Json { manifests::json(&all) } else { manifests::yaml(&all) })
    }

    fn objects(&self, config: &Config, file: Option<&str>) -> Vec<Manifest> {
        let mut all = Vec::new();
        if self.part != Part::Database {
            let settings = kubernetes_settings(&config.database);
            let example = Example { image: self.bibd_image.clone(), ..Example::default() };
            all.extend(manifests::around(&settings, &example, file.unwrap_or(NO_CONFIG)));
        }
        if self.part != Part::Around {
            all.extend(database(config));
        }
        all
    }
}

/// bibd's configuration where nothing was configured.
const NO_CONFIG: &str = "# `bibd config schema` describes every key. What is not set here has its default.\n";

impl CheckArgs {
    /// Tries each object and prints what came of it.
    pub(super) async fn run(&self, config: &Config) -> Result<(), Failure> {
        let cluster = Cluster::by(&kubernetes_access(&config.database)).await?;
        let mut outcomes = Vec::new();
        for manifest in database(config) {
            let outcome = match cluster.try_apply(&manifest).await {
                // What is said of one would be said of all, each after its deadline.
                Err(error @ (ClusterError::Silent { .. } | ClusterError::Unreachable { .. })) => {
                    return Err(error.into());
                }
                outcome => outcome,
            };
            outcomes.push((manifest, outcome));
        }
        print(&if self.output == super::Output::Json { json(&cluster, &outcomes) } else { text(&outcomes) })?;
        if outcomes.iter().all(|(_, outcome)| outcome.is_ok()) { Ok(()) } else { Err(Failure::Doctor) }
    }
}

type Outcome = (Manifest, Result<Effect, ClusterError>);

const fn word(effect: Effect) -> &'static str {
    match effect {
        Effect::Created => "would be made",
        Effect::Changed => "would be changed",
        Effect::Same => "is so already",
    }
}

fn text(outcomes: &[Outcome]) -> String {
    let line = |(manifest, outcome): &Outcome| {
        let object = format!("{} {}", manifest.kind(), manifest.name());
        match outcome {
            Ok(effect) => format!("ok    {object:<42} {}\n", word(*effect)),
            Err(error) => format!("FAIL  {object:<42} {error}\n      hint: {}\n", error.hint()),
        }
    };
    outcomes.iter().map(line).collect()
}

fn json(cluster: &Cluster, outcomes: &[Outcome]) -> String {
    let object = |(manifest, outcome): &Outcome| {
        let (status, said, hint) = match outcome {
            Ok(effect) => ("ok", word(*effect).to_owned(), None),
            Err(error) => ("fail", error.to_string(), Some(error.hint())),
        };
        serde_json::json!({
            "kind": manifest.kind(), "name": manifest.name(), "status": status, "message": said, "hint": hint,
        })
    };
    let objects: Vec<_> = outcomes.iter().map(object).collect();
    format!("{:#}\n", serde_json::json!({ "server": cluster.server(), "objects": objects }))
}
