//! A node whose database is a pod: a double of the API with a node behind it that runs the pod by Docker, or a double of
//! the operator. The daemon is real, and so is PostgreSQL.
#![allow(clippy::unwrap_used)]
#![allow(clippy::print_stderr, reason = "a test that cannot run says so loudly")]

#[path = "../../postgres/tests/kubernetes/double.rs"]
mod double;
#[path = "../../postgres/tests/kubernetes/instance.rs"]
mod instance;
#[path = "../../postgres/tests/kubernetes/kubelet.rs"]
mod kubelet;
#[allow(dead_code, reason = "each test uses its own part")]
#[path = "backup/node.rs"]
mod node;
#[path = "../../postgres/tests/kubernetes/operator.rs"]
mod operator;
#[path = "../../postgres/tests/kubernetes/node.rs"]
mod pods;

use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use bib_proto::v1 as pb;
use double::{Double, Fault};
use node::{Node, Place, wait_for};

const PATIENCE: Duration = Duration::from_secs(90);
const POD: &str = "/api/v1/namespaces/bib/pods/bibd-postgres-0";
const CLUSTER: &str = "/apis/postgresql.cnpg.io/v1/namespaces/bib/clusters/bibd-postgres";

/// Whether pods can be run here; says so loudly where they cannot, and fails where CI=true.
async fn pods_run_here() -> Option<Place> {
    let place = Place::in_a_container("/run/docker.sock").await?;
    let is_root = rustix::process::geteuid().is_root();
    assert!(is_root || std::env::var("CI").as_deref() != Ok("true"), "CI must run as root");
    if !is_root {
        eprintln!("\n==== SKIPPED, NOTHING TESTED: only root can give files to the pod's group\n");
        return None;
    }
    // Of the engine only the node behind the API knows.
    drop(place);
    Place::new().await
}

/// What the daemon is told of the cluster.
fn configure(place: &mut Place, double: &Double) {
    let path = place.path("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: double\nclusters: [{{name: double, cluster: {{server: \"{}\"}}}}]\n\
         users: [{{name: double, user: {{}}}}]\ncontexts: [{{name: double, context: {{cluster: double, user: double}}}}]\n",
        double.address()
    );
    std::fs::write(&path, text).unwrap();
    place.wants("kubernetes");
    place.sets("database.kubernetes.kubeconfig", path.display());
    place.sets("database.kubernetes.image", std::env::var("BIB_TEST_IMAGE").unwrap_or("bibd-postgres:15".to_owned()));
    place.sets("database.kubernetes.major", 15);
    place.sets("database.kubernetes.outside", "127.0.0.1/32");
    place.sets("database.kubernetes.outside_host", "127.0.0.1");
}

async fn status(node: &Node) -> pb::GetDatabaseStatusResponse {
    node.admin().await.get_database_status(pb::GetDatabaseStatusRequest {}).await.unwrap().into_inner()
}

/// Runs `bibd` on the node's directory.
fn bibd(place: &Place, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bibd"));
    command.args(["--config-dir"]).arg(place.path("config")).arg("--data-dir").arg(place.path("data"));
    for (key, value) in place.database() {
        command.env(format!("BIBD__{}", key.replace('.', "__").to_uppercase()), value);
    }
    let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
}

/// The checklist as `bib` prints it, into the file that `cargo xtask hardening` asks for: only a test has a cluster.
fn write_checklist(node: &Node, version: &str) {
    let (Some(bib), Some(path)) = (std::env::var_os("BIB_TEST_BIB"), std::env::var_os("BIB_TEST_CHECKLIST")) else {
        return;
    };
    let address = format!("unix:{}", node.daemon.ready().socket.display());
    let mut command = Command::new(bib);
    command.env("BIB_NODE", address).args(["admin", "db", "audit", "-o", "markdown"]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let title = format!("PostgreSQL {version}, a pod of Kubernetes\n");
    std::fs::write(path, [title.as_bytes(), &output.stdout].concat()).unwrap();
}

/// A backup of the pod, verified in a server of this machine, and its log received over the slot.
async fn back_up(place: &Place, node: &Node) {
    let made = node.make_backup().await;
    node.make_topic("after").await;
    let checked = node.verify(&made.id).await;
    assert_eq!(checked.verdict, "OK", "{}", checked.explanation);
    wait_for("the log is in the store", PATIENCE, async || {
        node.rename_topic("after").await;
        !place.segments(&node.peer()).is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_lives_on_a_pod() {
    let Some(mut place) = pods_run_here().await else { return };
    let double = Double::start();
    let pods = pods::Node::behind(&double, "bib", "bibd-postgres");
    configure(&mut place, &double);

    let node = Node::start(&place, "data").await;
    node.export_recovery(&place.sheet()).await;
    node.make_topic("kept").await;
    let shown = status(&node).await;
    let pod = shown.container.unwrap();
    assert_eq!((shown.provisioner.as_str(), pod.name.as_str()), ("kubernetes", "bib/bibd-postgres-0"));
    assert!(pod.engine.starts_with("Kubernetes at http://127.0.0.1:") && shown.version.starts_with("15."), "{pod:?}");
    node.rotate().await;

    back_up(&place, &node).await;
    let failing = node.failing_items().await;
    assert!(failing.is_empty(), "{failing:#?}");
    write_checklist(&node, &shown.version);

    // What cannot be done there is refused with the way.
    let request = pb::MoveDatabaseRequest { to: "process".to_owned(), dry_run: true };
    let refused = node.admin().await.move_database(request).await.unwrap_err();
    assert!(refused.message().contains("cannot be handed over to or from another provisioner"), "{refused:?}");
    let request = pb::UpgradeDatabaseRequest { act: pb::DatabaseUpgrade::Examine.into(), to_major: 0 };
    let refused = node.admin().await.upgrade_database(request).await.unwrap_err();
    assert!(refused.message().contains("cannot be upgraded to another major version there"), "{refused:?}");

    // The daemon goes and comes; while it is away the pod stands still, and comes with the same data.
    node.stop().await;
    assert!(double.get(POD).is_none());
    let node = Node::start(&place, "data").await;
    assert_eq!((node.topics().await, node.audit_verdict().await), (2, "OK".to_owned()));
    let uid = double.get(POD).unwrap()["metadata"]["uid"].clone();
    // Its server dies: Kubernetes begins it again, and the node goes on.
    assert!(kubelet::docker(&["kill", &pods.container]).0);
    wait_for("the node answers again", PATIENCE, async || {
        let mut admin = node.admin().await;
        let answers = admin.get_database_status(pb::GetDatabaseStatusRequest {}).await.is_ok();
        answers && double.get(POD).unwrap()["status"]["containerStatuses"][0]["restartCount"] == 1
    })
    .await;
    node.make_topic("still").await;
    assert_eq!(double.get(POD).unwrap()["metadata"]["uid"], uid);
    node.stop().await;

    // Where the API is away nothing else is begun: a sentence, a hint, exit 5.
    double.fault("/", Fault::Answer(503, "etcd is away"));
    let (code, said) = bibd(&place, &["run"]);
    assert_eq!(code, 5, "{said}");
    assert!(said.contains("etcd is away") && said.contains("hint: "), "{said}");
    assert!(!place.path("data/postgres/data").exists());
    place.wants("process");
    let (code, said) = bibd(&place, &["run"]);
    assert!(code == 5 && said.contains("run by the provisioner `kubernetes`, not `process`"), "{code} {said}");
    place.wants("kubernetes");
    let (code, said) = bibd(&place, &["cleanup", "--yes"]);
    assert!(code == 5 && place.path("data/identity").exists(), "{code} {said}");
    double.heal();

    let (_, said) = bibd(&place, &["cleanup", "--dry-run"]);
    assert!(said.contains("PersistentVolumeClaim `data-bibd-postgres-0` in the namespace `bib`"), "{said}");
    assert!(!double.all().is_empty());
    let (code, said) = bibd(&place, &["cleanup", "--yes"]);
    assert_eq!(code, 0, "{said}");
    assert!(double.all().is_empty() && !place.path("data/identity").exists(), "{:?}", double.all().keys());
    assert_eq!(double.objects.strange.lock().unwrap().clone(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_lives_under_an_operator() {
    let Some(mut place) = pods_run_here().await else { return };
    let double = Double::start();
    let operator = operator::Operator::behind(&double, "bibd-postgres");
    configure(&mut place, &double);
    place.sets("database.kubernetes.mode", "operator");

    let node = Node::start(&place, "data").await;
    node.export_recovery(&place.sheet()).await;
    node.make_topic("kept").await;
    let pod = status(&node).await.container.unwrap();
    assert_eq!(pod.name, "bib/bibd-postgres-1");
    back_up(&place, &node).await;
    // Not before: the login of a backup that runs is left out.
    node.rotate().await;
    // Who receives the log comes back by itself.
    wait_for("every item holds", PATIENCE, async || node.failing_items().await.is_empty()).await;

    // The daemon goes and comes; while it is away there is no pod, and it comes with the same data.
    node.stop().await;
    let instances = || double.all().keys().filter(|path| path.contains("/pods/") && !path.contains("initdb")).count();
    assert_eq!(instances(), 0);
    let node = Node::start(&place, "data").await;
    assert_eq!((node.topics().await, node.audit_verdict().await), (2, "OK".to_owned()));
    // Another pod writes: the node goes on with it.
    operator.orders.fails_over.store(true, Ordering::SeqCst);
    wait_for("the node answers over the other pod", PATIENCE, async || {
        let mut admin = node.admin().await;
        let status = &double.get(CLUSTER).unwrap()["status"];
        let is_there = status["currentPrimary"] == "bibd-postgres-2" && status["phase"] == "Cluster in healthy state";
        is_there && admin.get_database_status(pb::GetDatabaseStatusRequest {}).await.is_ok()
    })
    .await;
    node.make_topic("still").await;
    assert_eq!(status(&node).await.container.unwrap().name, "bib/bibd-postgres-2");
    node.stop().await;

    let (_, said) = bibd(&place, &["cleanup", "--dry-run"]);
    assert!(said.contains("of Cluster `bibd-postgres` in the namespace `bib`") && !double.all().is_empty(), "{said}");
    let (code, said) = bibd(&place, &["cleanup", "--yes"]);
    assert_eq!(code, 0, "{said}");
    wait_for("nothing is left", PATIENCE, async || double.all().is_empty()).await;
    assert!(!place.path("data/identity").exists());
    assert_eq!(double.objects.strange.lock().unwrap().clone(), Vec::<String>::new());
}
