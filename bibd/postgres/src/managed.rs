//! A PostgreSQL of ours on any [`Host`]: what exists and how it is made. How it is started, watched and stopped is in
//! the private module `run`.
//!
//! Owns `postgres/` in the data directory and `pg/` in the runtime directory.

use std::io::{PipeReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::account::Account;
use crate::backup::{self, BaseBackup, Origin, PasswordFile};
use crate::checklist::Facts;
use crate::cluster::{self, Control};
use crate::config::Config;
use crate::dump::{self, Dump, LoadError};
use crate::error::Error;
use crate::file;
use crate::host::{Host, Place, Tool, Tools};
use crate::network_fs::network_kind;
use crate::probe::{self, Answer};
use crate::provisioner::{Contained, Health, ManagedPostgres, Program, Provisioned, Started, State, Stop};
use crate::random::Randomness;
use crate::receive::Programs;
use crate::record::{Choice, Decision, Record, Refusal, decide};
use crate::role::Login;
use crate::run::Server;
use crate::scram;
use crate::secrets::{DbSecrets, SecretStore};
use crate::settings::{Layout, MAX_SOCKET_PATH_BYTES, PORT, Settings};
use crate::tcp::{Authority, Endpoint};
use crate::version::Version;

/// How long [`ManagedPostgres::health`] waits for an answer.
const HEALTH_DEADLINE: Duration = Duration::from_secs(2);

/// A PostgreSQL of ours on the host `H`.
pub struct Managed<H> {
    pub(crate) place: Arc<Place>,
    pub(crate) host: H,
    pub(crate) secrets: Arc<dyn SecretStore>,
    pub(crate) random: Randomness,
    /// Where the server is reached over TCP.
    pub(crate) endpoint: Option<Endpoint>,
    /// One start, stop or provisioning at a time: the lock is meant to be held while they wait.
    pub(crate) server: Mutex<Server>,
    pub(crate) state: watch::Sender<State>,
}

impl<H: Host> Managed<H> {
    /// A server under `settings`; touches nothing yet.
    pub fn new(settings: Settings, secrets: Arc<dyn SecretStore>, random: Randomness) -> Self {
        let place = Arc::new(Place::new(settings));
        let endpoint = place.settings.tcp.as_ref().map(|tcp| {
            let authority = Authority::new(secrets.clone(), random.clone(), tcp.clock.clone());
            Endpoint::new(&tcp.host, tcp.listening.port, authority)
        });
        Self {
            endpoint,
            host: H::new(place.clone()),
            place,
            secrets,
            random,
            server: Mutex::new(Server::default()),
            state: watch::Sender::new(State::Stopped),
        }
    }

    /// The configuration files as they should be.
    ///
    /// # Errors
    /// When no usable binaries are found: the files depend on the version.
    pub async fn config(&self) -> Result<Config, Error> {
        Ok(self.config_of(self.host.tools().await?.version))
    }

    /// The same for this version.
    pub(crate) fn config_of(&self, version: Version) -> Config {
        let settings = &self.place.settings;
        match &settings.tcp {
            None => Config::new(version, self.layout(), &settings.limits, &settings.wal),
            Some(tcp) => Config::over_tcp(version, self.layout(), &settings.limits, &settings.wal, &tcp.listening),
        }
    }

    /// Renews the certificates that are due and makes the server's files say what they should. Says whether any said
    /// something else; nothing happens where there is no TLS.
    pub(crate) fn write_certificates(&self, account: Account) -> Result<bool, Error> {
        let (Some(tcp), Some(endpoint)) = (&self.place.settings.tcp, &self.endpoint) else { return Ok(false) };
        endpoint.authority().ensure(&tcp.names)?.write(&tcp.listening.files, account)
    }

    /// Asks the server, which is the process `pid`, whether it takes connections.
    pub(crate) async fn ask(&self, account: Account, pid: u32, deadline: Duration) -> Answer {
        match &self.endpoint {
            None => probe::ask(&self.layout().socket(), account.uid, pid, deadline).await,
            Some(endpoint) => endpoint.ask(deadline).await,
        }
    }

    /// Directories with their owners, the socket's length, and that the server's user can reach all of it. Before
    /// anything is made, so that what is wrong is said while it is easy to mend.
    pub(crate) async fn prepare_places(&self, tools: &Tools) -> Result<(), Error> {
        let (layout, account) = (self.layout(), tools.account);
        let socket = layout.socket();
        let bytes = socket.as_os_str().len();
        if bytes > MAX_SOCKET_PATH_BYTES {
            return Err(Error::SocketPathTooLong { path: socket, bytes, max: MAX_SOCKET_PATH_BYTES });
        }
        let own = rustix::process::geteuid().as_raw();
        let own_group = rustix::process::getegid().as_raw();
        // `postgres/` stays the daemon's: PROVISIONER lies there. The server's user may only pass through.
        file::ensure_dir(&layout.home, own, own_group, if account.switch { 0o711 } else { 0o700 })?;
        if !self.place.settings.allow_network_fs
            && let Some(kind) = network_kind(&layout.home)?
        {
            return Err(Error::NetworkFileSystem { path: layout.home.clone(), kind });
        }
        for directory in [&layout.log, &layout.spool, &layout.socket_dir] {
            file::ensure_dir(directory, account.uid, account.gid, 0o700)?;
        }
        for directory in [&layout.log, &layout.spool] {
            self.place.settings.on_new_directory.run(directory)?;
        }
        self.host.check_way(tools).await
    }

    async fn provision_locked(&self) -> Result<Provisioned, Error> {
        let layout = self.layout();
        // Before anything is looked for: where another provisioner was chosen, there is nothing to find here.
        let record = Record::read_of(H::CHOICE, &layout.provisioner)?;
        let tools = self.host.tools().await?;
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
                Record::initialising(H::CHOICE, version.major).write(&layout.provisioner)?;
                self.initialise(tools).await?;
                (true, None)
            }
        };
        let control = Control::read(&layout.data)?;
        let system_identifier = control.system_identifier;
        match expected {
            Some(expected) if expected != system_identifier => {
                return Err(Error::OtherCluster { data: layout.data.clone(), expected, found: system_identifier });
            }
            Some(_) => {}
            None => Record::ready(H::CHOICE, version.major, system_identifier).write(&layout.provisioner)?,
        }
        Ok(Provisioned { created, version, system_identifier })
    }

    /// Secrets, `initdb` beside its place, and the move into it.
    async fn initialise(&self, tools: &Tools) -> Result<(), Error> {
        let layout = self.layout();
        let secrets = DbSecrets::first(self.secrets.as_ref(), &self.random)?;
        let verifier = scram::verifier(secrets.admin(), &self.random);
        drop(secrets);
        let config = self.config_of(tools.version);
        let on_new_directory = &self.place.settings.on_new_directory;
        cluster::initialise(&self.host, tools, layout, &config, &verifier, on_new_directory).await?;
        std::fs::rename(&layout.data_new, &layout.data).map_err(Error::io("rename to", &layout.data))?;
        file::sync_dir(&layout.home)
    }

    /// A database whose passwords are gone cannot be entered; making new ones would only hide it.
    fn require_secrets(&self) -> Result<(), Error> {
        DbSecrets::read(self.secrets.as_ref())?.map(drop).ok_or(Error::SecretsMissing)
    }

    fn refused(&self, refusal: &Refusal) -> Error {
        let layout = self.layout();
        let provisioner = layout.provisioner.clone();
        match refusal {
            Refusal::DataMissing => Error::DataMissing { provisioner, data: layout.data.clone() },
            Refusal::DataUnknown => Error::DataUnknown { data: layout.data.clone(), provisioner },
            Refusal::NewDataUnknown => Error::DataUnknown { data: layout.data_new.clone(), provisioner },
        }
    }
}

#[async_trait]
impl<H: Host> ManagedPostgres for Managed<H> {
    fn choice(&self) -> Choice {
        H::CHOICE
    }

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
        let Some(pid) = self.host.running().await else { return Health::Stopped };
        let Ok(tools) = self.host.tools().await else { return Health::Stopped };
        match self.ask(tools.account, pid, HEALTH_DEADLINE).await {
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
        if let Some(endpoint) = &self.endpoint {
            return endpoint.options(login);
        }
        // TLS does not exist on a Unix socket; what protects it is its directory (0700) and SCRAM.
        PgConnectOptions::new_without_pgpass()
            .socket(&self.layout().socket_dir)
            .port(PORT)
            .ssl_mode(PgSslMode::Disable)
            .username(&login.user)
            .password(login.password.expose_secret())
            .database(&login.database)
            .application_name("bibd")
    }

    fn endpoint(&self) -> Option<&Endpoint> {
        self.endpoint.as_ref()
    }

    async fn log_programs(&self) -> Result<Option<Programs>, Error> {
        if self.endpoint.is_none() {
            return Ok(None);
        }
        let tools = self.host.tools().await?;
        Ok(Some(Programs { bin_dir: tools.bin_dir.clone(), account: tools.account }))
    }

    async fn renew_certificates(&self) -> Result<bool, Error> {
        let _one_at_a_time = self.server.lock().await;
        self.write_certificates(self.host.tools().await?.account)
    }

    async fn version(&self) -> Result<Version, Error> {
        Ok(self.host.tools().await?.version)
    }

    async fn facts(&self) -> Result<Facts, Error> {
        let (config, layout) = (self.config().await?, self.layout().clone());
        let (uid, pid) = (self.host.tools().await?.account.uid, self.host.running().await);
        let confinement = self.host.confinement().await?;
        tokio::task::spawn_blocking(move || Facts::gather(config, &layout, uid, pid, confinement))
            .await
            .map_err(|error| Error::io("look at", &self.layout().data)(std::io::Error::other(error)))?
    }

    fn layout(&self) -> &Layout {
        &self.place.layout
    }

    async fn origin(&self) -> Result<Origin, Error> {
        backup::origin(self).await
    }

    async fn base_backup(&self, login: &Login, label: &str) -> Result<(BaseBackup, PipeReader), Error> {
        backup::begin(self, &self.host, login, label).await
    }

    async fn dump(&self, login: &Login) -> Result<(Dump, PipeReader), Error> {
        dump::begin(self, &self.host, login).await
    }

    async fn load(&self, login: &Login, dump: Box<dyn Read + Send>) -> Result<(), LoadError> {
        dump::load(self, login, dump).await
    }

    async fn verify_files(&self, data: &Path) -> Result<(), Error> {
        backup::verify_files(&self.host, data).await
    }

    async fn begin_restore(&self, major: u32) -> Result<(PathBuf, Account), Error> {
        backup::begin_restore(self, major).await
    }

    async fn finish_restore(&self, expected: u64) -> Result<(), Error> {
        backup::finish_restore(self, expected).await
    }

    async fn settle_restore(&self, now_s: i64) -> Result<(), Error> {
        backup::settle_restore(self, now_s).await
    }

    async fn container(&self) -> Result<Option<Contained>, Error> {
        self.host.container().await
    }

    async fn dismantle(&self) -> Result<(), Error> {
        let _one_at_a_time = self.server.lock().await;
        self.host.dismantle().await
    }

    async fn run(&self, program: Program<'_>) -> Result<(), Error> {
        let tools = self.host.tools().await?;
        let Program { name, arguments, places, input, server, deadline } = program;
        let Some((socket_dir, login)) = server else {
            return self.host.run(tools, &Tool { name, arguments, places, input, deadline }).await;
        };
        let password = PasswordFile::make(&self.layout().socket_dir.join("client.pgpass"), login, tools.account)?;
        // The only way to name the file that is no variable of the environment, which not every host passes on.
        let value = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
        let address = format!(
            "host={} port={PORT} user={} dbname={} passfile={} application_name=bibd",
            value(&socket_dir.display().to_string()),
            value(&login.user),
            value(&login.database),
            value(&password.path().display().to_string())
        );
        let mut arguments = arguments.to_vec();
        arguments.extend(["--no-password".to_owned(), format!("--dbname={address}")]);
        let places: Vec<PathBuf> = places.iter().cloned().chain([self.layout().socket_dir.clone()]).collect();
        self.host.run(tools, &Tool { name, arguments: &arguments, places: &places, input, deadline }).await
    }

    fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    async fn supervise(&self, cancel: CancellationToken) {
        cancel.run_until_cancelled(self.watch()).await;
    }
}
