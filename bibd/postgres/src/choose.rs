//! Which provisioner runs the database. Chosen once: from then on PROVISIONER says so, and an engine that is stopped
//! or binaries that are gone never lead to a second, empty database beside the first.

use std::sync::Arc;

use crate::account::Account;
use crate::binaries;
use crate::container::{self, ContainerPostgres, Look};
use crate::error::Error;
use crate::host::{Host as _, Place};
use crate::kubernetes::{KubernetesPostgres, Trouble};
use crate::process::ProcessPostgres;
use crate::provisioner::ManagedPostgres;
use crate::random::Randomness;
use crate::record::{Choice, Record};
use crate::secrets::SecretStore;
use crate::settings::Settings;

/// What the configuration asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The remembered one; else a pod where this is a pod that may make one; else a container where an engine has the
    /// image, else a process where there are binaries, else a container whose image is pulled.
    Auto,
    /// This one.
    Exactly(Choice),
}

/// The server under the provisioner that is remembered, or else wanted, or else the first that works here. What is
/// passed over is logged with its reason. Creates nothing but what looking takes: where nothing else is left, an image
/// is pulled.
///
/// # Errors
/// [`Error::OtherProvisioner`] when another one is remembered than wanted; [`Error::ProvisionerDamaged`];
/// [`Error::NoBinaries`] when nothing is remembered and nothing works here.
pub async fn choose(
    wanted: Wanted,
    settings: Settings,
    secrets: Arc<dyn SecretStore>,
    random: Randomness,
) -> Result<Arc<dyn ManagedPostgres>, Error> {
    let choice = match (remembered(&settings)?, wanted) {
        (Some(choice), Wanted::Auto) => Some(choice),
        (Some(choice), Wanted::Exactly(wanted)) if choice == wanted => Some(choice),
        (Some(choice), Wanted::Exactly(wanted)) => {
            return Err(Error::OtherProvisioner { chosen: choice.name().to_owned(), wanted: wanted.name() });
        }
        (None, Wanted::Exactly(choice)) => Some(choice),
        (None, Wanted::Auto) => None,
    };
    match choice {
        Some(choice) => under(choice, &settings, &secrets, &random),
        None => {
            if let Some(own) = &settings.kubernetes {
                match Box::pin(KubernetesPostgres::at_hand(own)).await {
                    Ok(_) => return under(Choice::Kubernetes, &settings, &secrets, &random),
                    Err(error) => tracing::info!(reason = %error, "the provisioner `kubernetes` is passed over"),
                }
            }
            let container = ContainerPostgres::new(settings.clone(), secrets.clone(), random.clone());
            first(Arc::new(container), Arc::new(ProcessPostgres::new(settings, secrets, random))).await
        }
    }
}

/// The server under this one, whatever is remembered.
///
/// # Errors
/// [`Trouble::NotHere`] for one in Kubernetes that is nobody's own.
pub(crate) fn under(
    choice: Choice,
    settings: &Settings,
    secrets: &Arc<dyn SecretStore>,
    random: &Randomness,
) -> Result<Arc<dyn ManagedPostgres>, Error> {
    let (settings, secrets, random) = (settings.clone(), secrets.clone(), random.clone());
    Ok(match choice {
        Choice::Process => Arc::new(ProcessPostgres::new(settings, secrets, random)),
        Choice::Container => Arc::new(ContainerPostgres::new(settings, secrets, random)),
        Choice::Kubernetes => {
            let own = settings.kubernetes.clone().ok_or_else(|| Error::Kubernetes(Box::new(Trouble::NotHere)))?;
            Arc::new(KubernetesPostgres::new(settings, own, secrets, random))
        }
    })
}

/// The first that works here, the quickest to know first: nobody waits for an image who has binaries.
async fn first(
    container: Arc<ContainerPostgres>,
    process: Arc<ProcessPostgres>,
) -> Result<Arc<dyn ManagedPostgres>, Error> {
    let passed = match container.host.at_hand().await {
        Ok(()) => return Ok(container),
        Err(error) => error,
    };
    let missing = match process.host.tools().await {
        Ok(_) => {
            tracing::info!(reason = %passed, "the provisioner `container` is passed over; it is `process`");
            return Ok(process);
        }
        Err(error) => error,
    };
    let passed = match passed {
        Error::ImageAbsent { .. } => match container.host.tools().await {
            Ok(_) => return Ok(container),
            Err(error) => error,
        },
        other => other,
    };
    Err(match missing {
        Error::NoBinaries { mut looked } => {
            looked.push(format!("in a container: {passed}"));
            Error::NoBinaries { looked }
        }
        other => other,
    })
}

/// The choice in PROVISIONER.
fn remembered(settings: &Settings) -> Result<Option<Choice>, Error> {
    let path = Place::new(settings.clone()).layout.provisioner;
    let Some(record) = Record::read(&path)? else { return Ok(None) };
    match Choice::find(&record.choice) {
        Some(choice) => Ok(Some(choice)),
        None => Err(Error::OtherProvisioner { chosen: record.choice, wanted: "one that this release knows" }),
    }
}

/// What `bibd doctor` shows: nothing is pulled, run or made for it.
pub struct Survey {
    /// What PROVISIONER says.
    pub remembered: Result<Option<Choice>, Error>,
    /// The cluster that would run it, or why not: the one that this process is a pod of, unless Kubernetes is chosen.
    /// Nothing for a server that is never to run there.
    pub kubernetes: Option<Result<String, Trouble>>,
    /// The container engine with its image, or why not.
    pub container: Result<Look, Error>,
    /// The binaries, or why not.
    pub process: Result<String, Error>,
}

impl Survey {
    /// Looks at every provisioner, for a start under `wanted`.
    pub async fn of(settings: &Settings, wanted: Wanted) -> Self {
        let remembered = remembered(settings);
        // From outside only where somebody said so: nobody's kubeconfig makes a database by itself.
        let is_chosen = wanted == Wanted::Exactly(Choice::Kubernetes)
            || matches!(&remembered, Ok(Some(choice)) if *choice == Choice::Kubernetes);
        let kubernetes = match &settings.kubernetes {
            Some(own) if is_chosen => Some(Box::pin(KubernetesPostgres::reached(own)).await),
            Some(own) => Some(Box::pin(KubernetesPostgres::at_hand(own)).await),
            None => None,
        };
        Self {
            remembered,
            kubernetes,
            container: container::look(settings).await,
            process: binaries_of(settings).await,
        }
    }

    /// The choice of a start under `wanted`, and why. A start may still find that an image cannot be pulled.
    pub fn choice(&self, wanted: Wanted) -> (Choice, &'static str) {
        if let (Ok(None), Wanted::Auto, Some(Ok(_))) = (&self.remembered, wanted, &self.kubernetes) {
            return (Choice::Kubernetes, "is the first that works here");
        }
        match (&self.remembered, wanted, &self.container, &self.process) {
            (Ok(Some(choice)), ..) => (*choice, "made this node's database"),
            (_, Wanted::Exactly(choice), ..) => (choice, "is configured"),
            (_, _, Ok(Look { has_image: true, .. }), _) => (Choice::Container, "is the first that works here"),
            (_, _, _, Ok(_)) => (Choice::Process, "is the first that works here"),
            (_, _, Ok(_), _) => (Choice::Container, "is what is left, and its image is pulled first"),
            _ => (Choice::Process, "is what is left"),
        }
    }
}

async fn binaries_of(settings: &Settings) -> Result<String, Error> {
    let layout = Place::new(settings.clone()).layout;
    let account = Account::choose(settings.run_as.as_ref(), &layout.data).await?;
    let found = binaries::choose(settings.bin_dir.as_deref(), None, account).await?;
    let version = found.version.map_or_else(|| "unknown version".to_owned(), |version| version.to_string());
    Ok(format!("{version} in `{}`", found.bin_dir.display()))
}
