//! The process provisioner: PostgreSQL's binaries of this machine, run beside the daemon as an unprivileged user.
//!
//! Owns `postgres/` in the data directory and `pg/` in the runtime directory. Here: what exists and how it is made.
//! How it is started, watched and stopped is in the private module `run`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::sync::{Mutex, OnceCell, watch};
use tokio_util::sync::CancellationToken;

use crate::account::Account;
use crate::binaries;
use crate::cluster::{self, Control};
use crate::config::Config;
use crate::error::Error;
use crate::file;
use crate::network_fs::network_kind;
use crate::probe::{self, Answer};
use crate::provisioner::{Health, ManagedPostgres, Provisioned, Started, State, Stop};
use crate::random::Randomness;
use crate::record::{Decision, Record, Refusal, decide};
use crate::role::Login;
use crate::run::Server;
use crate::scram;
use crate::secrets::{DbSecrets, SecretStore};
use crate::settings::{Layout, MAX_SOCKET_PATH_BYTES, PORT, Settings};
use crate::tool;
use crate::version::Version;

/// How long [`ManagedPostgres::health`] waits for an answer.
const HEALTH_DEADLINE: Duration = Duration::from_secs(2);

/// A PostgreSQL that runs as a process beside the daemon.
pub struct ProcessPostgres {
    pub(crate) settings: Settings,
    pub(crate) layout: Layout,
    pub(crate) secrets: Arc<dyn SecretStore>,
    pub(crate) random: Randomness,
    tools: OnceCell<Tools>,
    /// One start, stop or provisioning at a time: the lock is meant to be held while they wait.
    pub(crate) server: Mutex<Server>,
    pub(crate) state: watch::Sender<State>,
}

/// Who runs which binaries; found once.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    pub(crate) account: Account,
    pub(crate) bin_dir: PathBuf,
    pub(crate) version: Version,
}

impl ProcessPostgres {
    /// A server under `settings`; touches nothing yet.
    pub fn new(settings: Settings, secrets: Arc<dyn SecretStore>, random: Randomness) -> Self {
        // The server runs in another working directory: relative paths would mean something else there.
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let layout = Layout::new(&absolute(&settings.data_root), &absolute(&settings.runtime_dir));
        Self {
            settings,
            layout,
            secrets,
            random,
            tools: OnceCell::new(),
            server: Mutex::new(Server::default()),
            state: watch::Sender::new(State::Stopped),
        }
    }

    /// Where everything of this server lies.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The configuration files as they should be.
    ///
    /// # Errors
    /// When no usable binaries are found: the files depend on the version.
    pub async fn config(&self) -> Result<Config, Error> {
        Ok(Config::new(self.tools().await?.version, &self.layout, &self.settings.limits, &self.settings.wal))
    }

    /// The user that the server runs as.
    ///
    /// # Errors
    /// [`Error::NoAccount`], [`Error::BadAccount`].
    pub async fn account(&self) -> Result<Account, Error> {
        Account::choose(self.settings.run_as.as_ref(), &self.layout.data).await
    }

    pub(crate) async fn tools(&self) -> Result<&Tools, Error> {
        self.tools
            .get_or_try_init(|| async {
                let account = self.account().await?;
                // Data that exists decides the major version. A damaged file is reported by who must read it.
                let major = Record::read(&self.layout.provisioner).ok().flatten().map(|record| record.major);
                let found = binaries::choose(self.settings.bin_dir.as_deref(), major, account).await?;
                let version = found.version.ok_or(Error::NoBinaries { looked: Vec::new() })?;
                Ok(Tools { account, bin_dir: found.bin_dir, version })
            })
            .await
    }

    /// Directories with their owners, the socket's length, and that the server's user can reach all of it. Before
    /// anything is made, so that what is wrong is said while it is easy to mend.
    pub(crate) async fn prepare_places(&self, tools: &Tools) -> Result<(), Error> {
        let (layout, account) = (&self.layout, tools.account);
        let socket = layout.socket();
        let bytes = socket.as_os_str().len();
        if bytes > MAX_SOCKET_PATH_BYTES {
            return Err(Error::SocketPathTooLong { path: socket, bytes, max: MAX_SOCKET_PATH_BYTES });
        }
        let own = rustix::process::geteuid().as_raw();
        let own_group = rustix::process::getegid().as_raw();
        // `postgres/` stays the daemon's: PROVISIONER lies there. The server's user may only pass through.
        file::ensure_dir(&layout.home, own, own_group, if account.switch { 0o711 } else { 0o700 })?;
        if !self.settings.allow_network_fs
            && let Some(kind) = network_kind(&layout.home)?
        {
            return Err(Error::NetworkFileSystem { path: layout.home.clone(), kind });
        }
        for directory in [&layout.log, &layout.spool, &layout.socket_dir] {
            file::ensure_dir(directory, account.uid, account.gid, 0o700)?;
        }
        for directory in [&layout.log, &layout.spool] {
            self.settings.on_new_directory.run(directory)?;
        }
        let needed = [layout.log.clone(), layout.socket_dir.clone(), tools.bin_dir.clone()];
        if account.switch
            && let Some(directory) = tool::first_closed(&needed, account).await?
        {
            return Err(Error::NotTraversable { directory, uid: account.uid });
        }
        Ok(())
    }

    async fn provision_locked(&self) -> Result<Provisioned, Error> {
        let layout = &self.layout;
        let tools = self.tools().await?;
        let record = Record::read(&layout.provisioner)?;
        let (data, data_new) = (file::exists(&layout.data)?, file::exists(&layout.data_new)?);
        let decision = decide(record.as_ref(), data, data_new).map_err(|refusal| self.refused(&refusal))?;
        self.prepare_places(tools).await?;
        let version = tools.version;
        let (created, expected) = match decision {
            Decision::Use { system_identifier } => {
                self.require_secrets()?;
                (false, Some(system_identifier))
            }
            Decision::Finish => {
                self.require_secrets()?;
                (false, None)
            }
            Decision::Begin | Decision::BeginAgain => {
                Record::initialising(version.major).write(&layout.provisioner)?;
                self.initialise(tools).await?;
                (true, None)
            }
        };
        let control = Control::read(&tools.bin_dir, &layout.data, tools.account).await?;
        let system_identifier = control.system_identifier;
        match expected {
            Some(expected) if expected != system_identifier => {
                return Err(Error::OtherCluster { data: layout.data.clone(), expected, found: system_identifier });
            }
            Some(_) => {}
            None => Record::ready(version.major, system_identifier).write(&layout.provisioner)?,
        }
        Ok(Provisioned { created, version, system_identifier })
    }

    /// Secrets, `initdb` beside its place, and the move into it.
    async fn initialise(&self, tools: &Tools) -> Result<(), Error> {
        let layout = &self.layout;
        let secrets = match DbSecrets::read(self.secrets.as_ref())? {
            // An interrupted attempt sealed them already.
            Some(secrets) => secrets,
            None => {
                let secrets = DbSecrets::generate(&self.random);
                secrets.write(self.secrets.as_ref())?;
                secrets
            }
        };
        let verifier = scram::verifier(secrets.admin(), &self.random);
        drop(secrets);
        let config = Config::new(tools.version, layout, &self.settings.limits, &self.settings.wal);
        cluster::initialise(
            &tools.bin_dir,
            tools.version,
            layout,
            tools.account,
            &config,
            &verifier,
            &self.settings.on_new_directory,
        )
        .await?;
        std::fs::rename(&layout.data_new, &layout.data).map_err(Error::io("rename to", &layout.data))?;
        file::sync_dir(&layout.home)
    }

    /// A database whose passwords are gone cannot be entered; making new ones would only hide it.
    fn require_secrets(&self) -> Result<(), Error> {
        DbSecrets::read(self.secrets.as_ref())?.map(drop).ok_or(Error::SecretsMissing)
    }

    fn refused(&self, refusal: &Refusal) -> Error {
        let layout = &self.layout;
        let provisioner = layout.provisioner.clone();
        match refusal {
            Refusal::DataMissing => Error::DataMissing { provisioner, data: layout.data.clone() },
            Refusal::DataUnknown => Error::DataUnknown { data: layout.data.clone(), provisioner },
            Refusal::NewDataUnknown => Error::DataUnknown { data: layout.data_new.clone(), provisioner },
        }
    }
}

#[async_trait]
impl ManagedPostgres for ProcessPostgres {
    async fn provision(&self) -> Result<Provisioned, Error> {
        let _one_at_a_time = self.server.lock().await;
        self.provision_locked().await
    }

    async fn start(&self) -> Result<Started, Error> {
        let mut server = self.server.lock().await;
        self.start_locked(&mut server).await
    }

    async fn stop(&self, mode: Stop) -> Result<(), Error> {
        let mut server = self.server.lock().await;
        self.stop_locked(&mut server, mode).await
    }

    async fn health(&self) -> Health {
        // Without the lock: a start that takes its time must not make this wait.
        let Some(pid) = self.running_pid() else { return Health::Stopped };
        let Ok(tools) = self.tools().await else { return Health::Stopped };
        match probe::ask(&self.layout.socket(), tools.account.uid, pid, HEALTH_DEADLINE).await {
            Answer::Accepting => Health::Ready,
            Answer::NotYet | Answer::Absent => Health::Starting,
            Answer::Refusing(reason) => Health::Degraded { reason },
            Answer::Silent => {
                Health::Degraded { reason: format!("it does not answer within {} s", HEALTH_DEADLINE.as_secs()) }
            }
            Answer::Foreign(who) => Health::Degraded { reason: format!("{who} listens on its socket") },
        }
    }

    fn connect_options(&self, login: &Login) -> PgConnectOptions {
        use secrecy::ExposeSecret as _;
        // TLS does not exist on a Unix socket; what protects it is its directory (0700) and SCRAM.
        PgConnectOptions::new_without_pgpass()
            .socket(&self.layout.socket_dir)
            .port(PORT)
            .ssl_mode(PgSslMode::Disable)
            .username(&login.user)
            .password(login.password.expose_secret())
            .database(&login.database)
            .application_name("bibd")
    }

    async fn version(&self) -> Result<Version, Error> {
        Ok(self.tools().await?.version)
    }

    fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    async fn supervise(&self, cancel: CancellationToken) {
        cancel.run_until_cancelled(self.watch()).await;
    }
}
