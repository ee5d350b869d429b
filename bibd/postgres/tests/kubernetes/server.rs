//! The same questions to a real API server, wherever `KUBEBUILDER_ASSETS` names a directory with `etcd` and
//! `kube-apiserver`: what it says of our objects, that applying twice changes nothing, and that bibd's role is enough.
//! There are no nodes behind it, so no pod runs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bibd_postgres::kubernetes::manifests::{around, database};
use bibd_postgres::kubernetes::{
    Access, Cluster, ClusterError, Content, Effect, Example, InKubernetes, KubernetesPostgres, KubernetesSettings,
    Manifest,
};
use bibd_postgres::tcp::Clock;
use bibd_postgres::{Limits, ManagedPostgres as _, Randomness, Stop, Wal};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::{Client, Config};
use rand::SeedableRng as _;
use tempfile::TempDir;

use crate::support::MemoryStore;

const TOKEN: &str = "for-this-test-alone";
const PATIENT: Duration = Duration::from_secs(30);

/// An API server with its store. Ended when dropped.
struct Server {
    home: TempDir,
    programs: Vec<Child>,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        for program in self.programs.iter_mut().rev() {
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Server {
    async fn start(assets: &Path) -> Self {
        let home = tempfile::tempdir().unwrap();
        let (client, peer, port) = (free_port(), free_port(), free_port());
        let mut this = Self { home, programs: Vec::new(), port };
        let place = |name: &str| this.home.path().join(name).display().to_string();
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(place("accounts.pub"), key.public_key_pem()).unwrap();
        std::fs::write(place("accounts.key"), key.serialize_pem()).unwrap();
        std::fs::write(place("tokens"), format!("{TOKEN},admin,admin,system:masters\n")).unwrap();
        let etcd = [
            format!("--data-dir={}", place("etcd")),
            format!("--listen-client-urls=http://127.0.0.1:{client}"),
            format!("--advertise-client-urls=http://127.0.0.1:{client}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
        ];
        let api = [
            format!("--etcd-servers=http://127.0.0.1:{client}"),
            format!("--cert-dir={}", place("certificates")),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--token-auth-file={}", place("tokens")),
            format!("--service-account-key-file={}", place("accounts.pub")),
            format!("--service-account-signing-key-file={}", place("accounts.key")),
            "--service-account-issuer=https://127.0.0.1".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
            "--disable-admission-plugins=ServiceAccount".to_owned(),
        ];
        for (name, arguments) in [("etcd", &etcd[..]), ("kube-apiserver", &api[..])] {
            let log = std::fs::File::create(this.home.path().join(format!("{name}.log"))).unwrap();
            let mut command = Command::new(assets.join(name));
            command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
            this.programs.push(command.spawn().unwrap());
        }
        let begun = Instant::now();
        while this.client(None).apiserver_version().await.is_err() {
            let log = std::fs::read_to_string(this.home.path().join("kube-apiserver.log")).unwrap();
            assert!(begun.elapsed() < Duration::from_secs(90), "{log}");
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        this
    }

    /// As the administrator, or as somebody else in their name.
    fn config(&self, user: Option<&str>) -> Config {
        let mut config = Config::new(format!("https://127.0.0.1:{}", self.port).parse().unwrap());
        config.accept_invalid_certs = true;
        config.auth_info.token = Some(TOKEN.to_owned().into());
        config.auth_info.impersonate = user.map(str::to_owned);
        config
    }

    fn client(&self, user: Option<&str>) -> Client {
        Client::try_from(self.config(user)).unwrap()
    }

    fn cluster(&self, user: Option<&str>) -> Cluster {
        Cluster::of(self.config(user), PATIENT).unwrap()
    }

    /// Applies it in earnest; the object's version.
    async fn apply(&self, manifest: &Manifest) -> String {
        let (group, version) = manifest.api_version().split_once('/').unwrap_or(("", manifest.api_version()));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, manifest.kind()));
        let client = self.client(None);
        let api: Api<DynamicObject> = match manifest.namespace() {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        };
        let applied = api.patch(manifest.name(), &PatchParams::apply("bibd"), &Patch::Apply(manifest.value())).await;
        applied.unwrap().metadata.resource_version.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_takes_the_objects_and_a_second_apply_changes_nothing() {
    let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) else {
        eprintln!("\n==== SKIPPED, NOTHING TESTED: KUBEBUILDER_ASSETS names no API server (docs/not-here.md)\n");
        return;
    };
    let server = Server::start(&assets).await;
    let settings = KubernetesSettings::default();
    let all = database(&settings, &Content::new(&settings.config(&Limits::default(), &Wal::Recycle)));
    let before = around(&settings, &Example::default(), "");
    let bibd = format!("system:serviceaccount:{}:{}", settings.namespace, settings.service_account);

    // Neither namespace nor role.
    let (admin, own) = (server.cluster(None), server.cluster(Some(&bibd)));
    let missing = admin.try_apply(&all[0]).await.unwrap_err();
    assert!(matches!(missing, ClusterError::Missing { .. }), "{missing}");
    let forbidden = own.try_apply(&all[0]).await.unwrap_err();
    assert!(matches!(forbidden, ClusterError::Forbidden { .. }), "{forbidden}");

    for manifest in &before {
        server.apply(manifest).await;
    }
    // bibd's own account may make each, and so far there is none.
    for manifest in &all {
        let effect = own.try_apply(manifest).await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(effect, Effect::Created, "{}", manifest.kind());
    }
    for manifest in &all {
        let first = server.apply(manifest).await;
        assert_eq!(own.try_apply(manifest).await.unwrap(), Effect::Same, "{}", manifest.kind());
        assert_eq!(server.apply(manifest).await, first, "a second apply changes {}", manifest.kind());
    }
    // In earnest as bibd's own account: what is so already keeps its version, and everything goes again.
    for manifest in &all {
        assert_eq!(own.apply(manifest).await.unwrap(), Effect::Same, "{}", manifest.kind());
    }
    let here = tempfile::tempdir().unwrap();
    let place = bibd_postgres::Settings::new(here.path().join("d"), here.path().join("r"));
    let access = Access::Given(Box::new(server.config(Some(&bibd))));
    let in_it = InKubernetes { objects: settings.clone(), clock: Clock::new(crate::support::now_s), access };
    let random = Randomness::new(rand::rngs::StdRng::seed_from_u64(3));
    let postgres = KubernetesPostgres::new(place, in_it, Arc::new(MemoryStore::default()), random);
    // There are no controllers: the set makes no pod, and there is nothing to wait for.
    postgres.stop(Stop::Clean).await.unwrap();
    postgres.dismantle().await.unwrap();
    postgres.dismantle().await.unwrap();
    for manifest in &all {
        assert_eq!(own.try_apply(manifest).await.unwrap(), Effect::Created, "{}", manifest.kind());
        assert_eq!(own.apply(manifest).await.unwrap(), Effect::Created, "{}", manifest.kind());
    }
    postgres.dismantle().await.unwrap();
    // An operator that is not installed.
    let operator = KubernetesSettings { mode: bibd_postgres::kubernetes::Mode::Operator, ..settings };
    let others = database(&operator, &Content::new(&operator.config(&Limits::default(), &Wal::Recycle)));
    let cluster = others.iter().find(|one| one.kind() == "Cluster").unwrap();
    let absent = admin.try_apply(cluster).await.unwrap_err();
    assert!(matches!(absent, ClusterError::Missing { .. }) && absent.hint().contains("CloudNativePG"), "{absent}");
}
