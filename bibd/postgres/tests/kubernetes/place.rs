//! A place for a database in Kubernetes: the double of an API, and what the daemon has of its own.
#![allow(dead_code, unreachable_pub, reason = "each test uses its own part")]

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bibd_postgres::kubernetes::{Access, KubernetesSettings, Mode, Trouble};
use bibd_postgres::tcp::Clock;
use bibd_postgres::{
    Database, Error, GroupRole, InKubernetes, KubernetesPostgres, Layout, Login, ManagedPostgres, Randomness, Settings,
};
use rand::SeedableRng as _;
use secrecy::SecretString;
use sqlx::{Connection as _, PgConnection};

use crate::double::Double;
use crate::node::Node;
use crate::operator::Operator;
use crate::support::{Ground, MemoryStore, Recorder, machine_has, now_s, test_image};

pub struct Place {
    /// Gone before the directories are.
    pub node: Option<Node>,
    pub operator: Option<Operator>,
    pub double: Double,
    pub settings: Settings,
    pub store: Arc<MemoryStore>,
    pub recorder: Arc<Recorder>,
    pub postgres: Arc<dyn ManagedPostgres>,
    pub database: Database,
    here: tempfile::TempDir,
}

/// Whether pods can be run here; says so loudly where they cannot, and fails where CI=true.
pub async fn pods_run_here() -> bool {
    if !machine_has(Ground::Docker).await {
        return false;
    }
    let is_root = rustix::process::geteuid().is_root();
    assert!(is_root || std::env::var("CI").as_deref() != Ok("true"), "CI must run as root");
    if !is_root {
        eprintln!("\n==== SKIPPED, NOTHING TESTED: only root can give files to the pod's group\n");
    }
    is_root
}

/// What is wrong, which has a hint.
pub fn trouble(error: &Error) -> &Trouble {
    assert!(error.hint().is_some_and(|hint| !hint.is_empty()), "{error}");
    match error {
        Error::Kubernetes(trouble) => trouble,
        other => panic!("{other}"),
    }
}

/// What PROVISIONER says.
pub fn said(place: &Place) -> String {
    std::fs::read_to_string(place.layout().provisioner).unwrap_or_default()
}

impl Place {
    /// Nobody runs a pod: the cluster is its API alone.
    pub fn without_node() -> Self {
        let here = tempfile::tempdir().unwrap();
        // When root, the programs' user must pass through.
        std::fs::set_permissions(here.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        for name in ["d", "r"] {
            std::fs::create_dir(here.path().join(name)).unwrap();
            std::fs::set_permissions(here.path().join(name), std::fs::Permissions::from_mode(0o711)).unwrap();
        }
        let double = Double::start();
        let mut settings = Settings::new(here.path().join("d"), here.path().join("r"));
        settings.start_deadline = Duration::from_secs(90);
        let objects = KubernetesSettings {
            image: test_image(),
            major: 15,
            outside: vec!["127.0.0.1/32".to_owned()],
            outside_host: Some("127.0.0.1".to_owned()),
            ..KubernetesSettings::default()
        };
        let config = kube::Config::new(double.address().parse().unwrap());
        let access = Access::Given(Box::new(config));
        settings.kubernetes = Some(InKubernetes { objects, clock: Clock::new(now_s), access });
        let settings = settings.of_node("test");
        let (store, recorder) = (Arc::default(), Arc::default());
        let (postgres, database) = daemon(&settings, &store, &recorder);
        Self { node: None, operator: None, double, settings, store, recorder, postgres, database, here }
    }

    /// With a node that runs the pod.
    pub fn new() -> Self {
        let mut this = Self::without_node();
        this.node = Some(Node::behind(&this.double, "bib", "bibd-postgres"));
        this
    }

    /// In operator mode, where nobody does what it says.
    pub fn without_operator() -> Self {
        let mut this = Self::without_node();
        this.objects().mode = Mode::Operator;
        this.another_daemon();
        this
    }

    /// In operator mode, with an operator.
    pub fn operated() -> Self {
        let mut this = Self::without_operator();
        this.operator = Some(Operator::behind(&this.double, "bibd-postgres"));
        this
    }

    /// Provisioned, started, with roles.
    pub async fn started() -> Self {
        Self::new().up().await
    }

    /// The same of whoever runs the pod.
    pub async fn up(self) -> Self {
        self.postgres.provision().await.unwrap();
        self.postgres.start().await.unwrap();
        self.database.ensure_roles().await.unwrap();
        self
    }

    pub fn objects(&mut self) -> &mut KubernetesSettings {
        &mut self.settings.kubernetes.as_mut().unwrap().objects
    }

    pub fn layout(&self) -> Layout {
        Layout::new(&self.settings.data_root, &self.settings.runtime_dir)
    }

    /// The daemon dies and another one comes: all its memory is gone, the pod stays as it is.
    pub fn another_daemon(&mut self) {
        (self.postgres, self.database) = daemon(&self.settings, &self.store, &self.recorder);
    }

    pub async fn connect(&self, group: GroupRole) -> PgConnection {
        PgConnection::connect_with(&self.database.connect_options(group).unwrap()).await.unwrap()
    }

    /// As the superuser, as an attacker with the password and a certificate would.
    pub async fn attacker(&self) -> PgConnection {
        let password = SecretString::from(self.store.admin_password());
        let login = Login { user: "bibd_admin".to_owned(), database: "bib".to_owned(), password };
        PgConnection::connect_with(&self.postgres.connect_options(&login)).await.unwrap()
    }
}

fn daemon(
    settings: &Settings,
    store: &Arc<MemoryStore>,
    recorder: &Arc<Recorder>,
) -> (Arc<dyn ManagedPostgres>, Database) {
    // Another daemon draws other passwords.
    static SEED: AtomicU64 = AtomicU64::new(2);
    let random = Randomness::new(rand::rngs::StdRng::seed_from_u64(SEED.fetch_add(1, Ordering::SeqCst)));
    let own = settings.kubernetes.clone().unwrap();
    let postgres: Arc<dyn ManagedPostgres> =
        Arc::new(KubernetesPostgres::new(settings.clone(), own, store.clone(), random.clone()));
    let database = Database::new(postgres.clone(), store.clone(), recorder.clone(), random);
    (postgres, database)
}
