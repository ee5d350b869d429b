//! What every command is given: configuration, output, who can be asked, and the way to the node.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bib_client::{Client, Options, Places, Progress, Target, TlsOptions};
use bib_identity::token_file::TokenFile;
use bib_identity::trust::{FirstUse, Pin, TrustStore};

use crate::clock::{Clock, random};
use crate::config::{Config, Directories};
use crate::confirm::Asker;
use crate::errors::{Exit, Failure, Result};
use crate::keys::Keys;
use crate::output::Output;
use crate::trusting::{self, FirstUseArgs};

/// The variables of the environment, read once.
pub(crate) type Variables = BTreeMap<String, String>;

/// What every command is given.
pub(crate) struct Context {
    /// The configuration.
    pub(crate) config: Config,
    /// Where things lie.
    pub(crate) directories: Directories,
    /// Where results go.
    pub(crate) output: Output,
    /// Who can be asked.
    pub(crate) asker: Asker,
    /// The clock.
    pub(crate) clock: Clock,
    /// `--node`.
    pub(crate) node: Option<String>,
    /// `--timeout`.
    pub(crate) timeout: Option<Duration>,
    /// `--key`.
    pub(crate) key: Option<PathBuf>,
    /// `--token-file`.
    pub(crate) token_file: Option<PathBuf>,
    /// The environment.
    pub(crate) variables: Variables,
}

impl Context {
    /// The node that is meant, ready for calls. An unknown node is shown to the person first.
    ///
    /// # Errors
    /// When no node is named and none runs here, or the trust store cannot be used.
    pub(crate) async fn client(&self) -> Result<Client> {
        let target = self.target()?;
        self.client_of(target, &FirstUseArgs::default()).await
    }

    /// A client of `target`, trusting it at first use as the flags or the person say.
    ///
    /// # Errors
    /// When the person does not trust it, or the trust store cannot be used.
    pub(crate) async fn client_of(&self, target: Target, first_use: &FirstUseArgs) -> Result<Client> {
        let first_use = trusting::decide(self, &target, first_use).await?;
        let options = Options { first_use, ..self.options(&target)? };
        if options.tls.skip_verify && matches!(target, Target::Tls { .. }) {
            self.output.say(
                "warning: connection.tls.skip_verify is on: whoever answers is believed and may change everything",
            );
        }
        Ok(Client::connect(target, options)?)
    }

    /// `--node`, then `connection.default_node`, then the node of this machine, then the first favourite.
    ///
    /// # Errors
    /// When none of these is there, or what is named is no address.
    pub(crate) fn target(&self) -> Result<Target> {
        let named = self.node.as_deref().or_else(|| self.config.given("connection.default_node"));
        if let Some(named) = named {
            return self.parse_target(named);
        }
        match (Target::local(&self.places()), self.config.favourites().first()) {
            (Ok(target), _) => Ok(target),
            (Err(_), Some(favourite)) => self.parse_target(favourite),
            (Err(error), None) => Err(error.into()),
        }
    }

    /// What a person wrote for a node, with the aliases of the configuration and the trust store.
    ///
    /// # Errors
    /// When it is no node.
    pub(crate) fn parse_target(&self, text: &str) -> Result<Target> {
        let mut known = BTreeMap::new();
        for pin in self.trust_store()?.list()? {
            let Some(address) = pin.addresses.first().cloned() else { continue };
            known.extend(pin.alias.clone().map(|alias| (alias, address.clone())));
            known.insert(pin.peer_id.to_string(), address);
        }
        known.extend(self.config.aliases().map(|(alias, address)| (alias.to_owned(), address.to_owned())));
        Ok(Target::parse(text, &known)?)
    }

    /// Where a node of this machine may be.
    pub(crate) fn places(&self) -> Places {
        Places::from_variables(|name| self.variables.get(name).cloned())
    }

    /// The trust store.
    ///
    /// # Errors
    /// When its directory cannot be made, or is open to others.
    pub(crate) fn trust_store(&self) -> Result<TrustStore> {
        Ok(TrustStore::open(&self.directories.config.join("trust"))?)
    }

    /// What is trusted of `target`.
    ///
    /// # Errors
    /// When the trust store cannot be read.
    pub(crate) fn pin_of(&self, target: &Target) -> Result<Option<Pin>> {
        let name = match target {
            Target::Tls { peer: Some(peer), .. } => peer.to_string(),
            other => other.address(),
        };
        Ok(self.trust_store()?.find(&name)?)
    }

    /// Options for `target`. Keys are offered where nobody logs in (the socket), and to renew a log-in that was made.
    ///
    /// # Errors
    /// When the trust store cannot be read.
    pub(crate) fn options(&self, target: &Target) -> Result<Options> {
        let mut options = Options::new(
            self.clock.source(),
            random(),
            self.directories.config.clone(),
            self.directories.cache.clone(),
        );
        options.timeout = self.timeout.unwrap_or_else(|| self.config.duration("connection.timeout"));
        options.connect_timeout = self.config.duration("connection.connect_timeout").min(options.timeout);
        options.attempts = self.config.retry_attempts();
        options.token_file = self.token_file.clone();
        options.tls = self.tls_options()?;
        options.user_agent = concat!("bib/", env!("CARGO_PKG_VERSION")).to_owned();
        let (may_use_keys, preferred) = match target {
            Target::Socket(_) => (true, None),
            Target::Tls { .. } if options.tls.client.is_some() => (false, None),
            Target::Tls { .. } => match self.pin_of(target)? {
                Some(pin) => {
                    let last = options.credentials_file(&pin.peer_id);
                    // Damaged credentials are the connection's to report.
                    (last.exists(), TokenFile::load(&last).ok().map(|file| file.identity().key))
                }
                None => (false, None),
            },
        };
        if may_use_keys || self.key.is_some() {
            options.keys = Some(self.keys().source(preferred));
        }
        options.first_use = FirstUse::Refuse;
        Ok(options)
    }

    /// `connection.tls`.
    ///
    /// # Errors
    /// Exit 2 when a certificate is named without its key, or a key without its certificate.
    pub(crate) fn tls_options(&self) -> Result<TlsOptions> {
        let home = || self.variables.get("HOME").map(PathBuf::from);
        let path = |key: &str| self.config.given(key).map(|text| expand_home(text, home()));
        let client = match (path("connection.tls.cert_file"), path("connection.tls.key_file")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                return Err(Failure::usage("connection.tls.cert_file and connection.tls.key_file go together")
                    .with_hint("set both, or neither: `bib config set KEY \"\"` takes one out"));
            }
        };
        let skip_verify = self.config.is_on("connection.tls.skip_verify");
        Ok(TlsOptions { skip_verify, ca_file: path("connection.tls.ca_file"), client })
    }

    /// Where keys are looked for.
    pub(crate) fn keys(&self) -> Keys {
        let path = |name: &str| self.variables.get(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let configured = || self.config.given("identity.key").map(|text| expand_home(text, path("HOME")));
        Keys {
            explicit: self.key.clone().or_else(configured),
            agent_socket: path("SSH_AUTH_SOCK"),
            home: path("HOME"),
            own: self.directories.config.join("id_ed25519"),
            asker: self.asker,
        }
    }

    /// Watches a long act as terminal and flags want it.
    pub(crate) fn progress(&self) -> Arc<dyn Progress> {
        crate::progress::watch(&self.output)
    }

    /// The file of a certificate and key that the last log-in at `target` left.
    ///
    /// # Errors
    /// Exit 3 when there is none.
    pub(crate) fn credentials_file(&self, target: &Target) -> Result<PathBuf> {
        let none = || {
            Failure::new(Exit::NotFound, format!("nobody is logged in at {target} from here"))
                .with_hint("log in with `bib login`; on the Unix socket no certificate is needed")
        };
        let pin = self.pin_of(target)?.ok_or_else(none)?;
        let path = self.options(target)?.credentials_file(&pin.peer_id);
        if path.exists() { Ok(path) } else { Err(none()) }
    }
}

fn expand_home(text: &str, home: Option<PathBuf>) -> PathBuf {
    match (text.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(text),
    }
}
