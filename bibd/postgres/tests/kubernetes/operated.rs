//! Operator mode over the double of an API and of the operator: from nothing to a clean stop, what is lost is never made
//! anew, and what goes wrong is said.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bibd_postgres::checklist::{self, Expected, Finding, Status};
use bibd_postgres::choose::Survey;
use bibd_postgres::kubernetes::{ClusterError, Mode, Trouble};
use bibd_postgres::rotation::Which;
use bibd_postgres::{Choice, GroupRole, Health, SecretStore as _, Started, State, Stop, Wanted};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{Connection as _, PgConnection};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::double::Fault;
use crate::kubelet::docker;
use crate::place::{Place, pods_run_here, said, trouble};
use crate::support::{now_s, run, text, wait_for};

const PATIENCE: Duration = Duration::from_secs(90);
const CLUSTER: &str = "/apis/postgresql.cnpg.io/v1/namespaces/bib/clusters/bibd-postgres";
const POLICY: &str = "/apis/networking.k8s.io/v1/namespaces/bib/networkpolicies/bibd-postgres";
const CLAIM: &str = "/api/v1/namespaces/bib/persistentvolumeclaims/bibd-postgres-1";
const POD: &str = "/api/v1/namespaces/bib/pods/bibd-postgres-1";
const ADMIN: &str = "/api/v1/namespaces/bib/secrets/bibd-postgres-admin";
const SERVER: &str = "/api/v1/namespaces/bib/secrets/bibd-postgres-server-tls";

/// What bibd applied, but for what the operator writes into it.
fn applied(place: &Place) -> BTreeMap<String, Value> {
    let mut all = place.double.all();
    all.retain(|_, object| object["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "bibd");
    for object in all.values_mut() {
        object["status"] = Value::Null;
        object["metadata"]["resourceVersion"] = Value::Null;
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn from_nothing_to_a_clean_stop_and_again() {
    if !pods_run_here().await {
        return;
    }
    let mut place = Place::operated();
    let made = place.postgres.provision().await.unwrap();
    assert!(made.created && made.version.major == 15 && made.version.minor > 0, "{made:?}");
    assert!(said(&place).contains("\"operator\":true") && said(&place).contains(&made.system_identifier.to_string()));
    assert_eq!(place.postgres.start().await.unwrap(), Started::Spawned);
    place.database.ensure_roles().await.unwrap();
    assert_eq!(place.postgres.health().await, Health::Ready);
    let before = applied(&place);
    // The policy, five Secrets, the Cluster, the port of the nodes.
    assert_eq!(before.len(), 8, "{:?}", before.keys());
    let secret = place.double.get(ADMIN).unwrap();
    assert_eq!(place.postgres.start().await.unwrap(), Started::AlreadyRunning);
    assert_eq!(applied(&place), before, "a second apply changes nothing");
    assert_eq!(place.double.get(ADMIN).unwrap(), secret, "the verifier stays");
    let objects: String = place.double.all().into_values().map(|object| object.to_string()).collect();
    assert!(place.store.passwords().iter().all(|password| !objects.contains(password)));
    for group in GroupRole::ALL {
        let mut connection = place.connect(group).await;
        assert_eq!(text(&mut connection, "SELECT current_user::text").await, format!("{group}_a"));
    }
    // The operator makes the owner with a login and a password, and one Secret with it.
    let mut attacker = place.attacker().await;
    let owner =
        "SELECT rolcanlogin::text || ' ' || coalesce(rolpassword, 'none') FROM pg_authid WHERE rolname = 'bibd_owner'";
    wait_for("the owner is closed", PATIENCE, async || text(&mut attacker, owner).await == "false none").await;
    assert!(place.double.get("/api/v1/namespaces/bib/secrets/bibd-postgres-app").is_some());
    run(&mut attacker, "CREATE SCHEMA x; CREATE TABLE x.kept AS SELECT 7 AS n").await.unwrap();
    attacker.close().await.unwrap();
    let shown = place.postgres.container().await.unwrap().unwrap();
    assert_eq!((shown.name.as_str(), shown.digest.as_str()), ("bib/bibd-postgres-1", "sha256:of-the-operator"));

    // Another daemon adopts it, and a session does not notice.
    let mut session = place.connect(GroupRole::Service).await;
    place.another_daemon();
    assert!(!place.postgres.provision().await.unwrap().created);
    assert_eq!(place.postgres.start().await.unwrap(), Started::Adopted);
    assert_eq!(text(&mut session, "SELECT 'alive'").await, "alive");
    assert_eq!(place.postgres.version().await.unwrap(), made.version);
    drop(session);

    place.postgres.stop(Stop::Clean).await.unwrap();
    assert_eq!(place.postgres.health().await, Health::Stopped);
    place.postgres.stop(Stop::Clean).await.unwrap();
    assert!(place.double.get(POD).is_none() && place.double.get(CLAIM).is_some());
    wait_for("the operator says so", PATIENCE, async || {
        place.double.get(CLUSTER).unwrap()["status"]["conditions"].to_string().contains("\"Hibernated\"")
    })
    .await;
    // Other settings come with the next start.
    place.settings.limits.slow_statement_ms = 1234;
    place.another_daemon();
    assert_eq!(place.postgres.start().await.unwrap(), Started::Spawned);
    place.database.ensure_roles().await.unwrap();
    let mut attacker = place.attacker().await;
    assert_eq!(text(&mut attacker, "SELECT n::text FROM x.kept").await, "7");
    assert_eq!(text(&mut attacker, "SHOW log_min_duration_statement").await, "1234ms");
    attacker.close().await.unwrap();

    // Everything goes, with the volume, and Kubernetes itself removes what belongs to the Cluster.
    let data = place.postgres.data_elsewhere().await.unwrap().unwrap();
    assert!(data.contains("PersistentVolumeClaim `bibd-postgres-1` of Cluster `bibd-postgres`"), "{data}");
    place.postgres.stop(Stop::Immediate).await.unwrap();
    place.postgres.dismantle().await.unwrap();
    assert!(place.double.get(CLUSTER).is_some() && place.double.get(CLAIM).is_some(), "the data is still there");
    place.postgres.remove_data().await.unwrap();
    wait_for("all of it is gone", PATIENCE, async || place.double.all().is_empty()).await;
    assert!(place.postgres.data_elsewhere().await.unwrap().is_none());
    place.postgres.remove_data().await.unwrap();

    // What was is never made anew: nothing is applied.
    let lost = place.postgres.start().await.unwrap_err();
    assert!(matches!(trouble(&lost), Trouble::Lost { expected, .. } if *expected == made.system_identifier), "{lost}");
    assert!(lost.to_string().starts_with("Cluster `bibd-postgres` is gone, expected cluster"), "{lost}");
    assert!(lost.hint().unwrap().contains("restore a backup"), "{lost}");
    assert!(place.double.all().is_empty());
    assert_eq!(place.double.objects.strange.lock().unwrap().clone(), Vec::<String>::new());
    assert_eq!(place.double.count(|line| line.starts_with("DELETE") && line.contains("/pods/")), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_is_never_made_anew_and_no_other_is_taken_for_it() {
    if !pods_run_here().await {
        return;
    }
    let mut place = Place::operated().up().await;
    let identifier = place.postgres.origin().await.unwrap().system_identifier;
    // Cut off before PROVISIONER said so: the same database is found.
    let early = "{\"choice\":\"kubernetes\",\"major\":15,\"state\":\"initialising\",\"operator\":true}\n";
    std::fs::write(place.layout().provisioner, early).unwrap();
    place.another_daemon();
    assert_eq!(place.postgres.provision().await.unwrap().system_identifier, identifier);
    place.postgres.stop(Stop::Clean).await.unwrap();

    // Its volumes are gone, the Cluster is there.
    let claim = place.double.get(CLAIM).unwrap();
    place.double.remove(CLAIM);
    let before = place.double.versions();
    let lost = place.postgres.start().await.unwrap_err();
    assert!(lost.to_string().starts_with("the volumes of Cluster `bibd-postgres` are gone, expected"), "{lost}");
    assert_eq!(place.double.versions(), before);
    place.double.put(CLAIM, claim);

    // It goes while it is being looked at and before it is applied: no other one comes in its place.
    let cluster = place.double.get(CLUSTER).unwrap();
    let is_silent = |is: bool| place.operator.as_ref().unwrap().orders.is_silent.store(is, Ordering::SeqCst);
    is_silent(true);
    place.double.vanishes("PATCH", "/networkpolicies/", CLUSTER);
    let lost = place.postgres.start().await.unwrap_err();
    assert!(matches!(trouble(&lost), Trouble::Lost { .. }) && place.double.get(CLUSTER).is_none(), "{lost}");
    place.double.put(CLUSTER, cluster);
    is_silent(false);

    // A Cluster of the same name that holds another database: said before anything is applied.
    let cluster = place.double.get(CLUSTER).unwrap();
    let mut other = cluster.clone();
    other["status"]["systemID"] = json!("7");
    place.double.put(CLUSTER, other);
    let error = place.postgres.start().await.unwrap_err();
    assert!(matches!(trouble(&error), Trouble::OtherCluster { found: 7, .. }), "{error}");
    assert_eq!(place.double.get(CLUSTER).unwrap()["metadata"]["annotations"]["cnpg.io/hibernation"], "on");
    // One whose operator does not say which it is, is asked itself.
    let mut silent = cluster.clone();
    silent["status"].as_object_mut().unwrap().remove("systemID");
    place.double.put(CLUSTER, silent);
    let record = said(&place);
    std::fs::write(place.layout().provisioner, record.replace(&identifier.to_string(), "7")).unwrap();
    let error = place.postgres.start().await.unwrap_err();
    assert!(matches!(trouble(&error), Trouble::OtherCluster { expected: 7, .. }), "{error}");
    std::fs::write(place.layout().provisioner, record).unwrap();
    assert_eq!(place.postgres.start().await.unwrap(), Started::Adopted);

    // Made in one mode, never taken up in the other.
    place.objects().mode = Mode::StatefulSet;
    place.another_daemon();
    for error in [place.postgres.provision().await.unwrap_err(), place.postgres.start().await.unwrap_err()] {
        let made = |made: &str, configured: &str| (made, configured) == ("operator", "statefulset");
        assert!(matches!(trouble(&error), Trouble::OtherMode { made: m, configured: c } if made(m, c)), "{error}");
    }
    std::fs::write(place.layout().provisioner, said(&place).replace(",\"operator\":true", "")).unwrap();
    place.objects().mode = Mode::Operator;
    place.another_daemon();
    let error = place.postgres.provision().await.unwrap_err();
    assert!(matches!(trouble(&error), Trouble::OtherMode { made: "statefulset", .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_somebody_elses_is_not_touched() {
    let place = Place::without_operator();
    let claim = json!({ "kind": "PersistentVolumeClaim", "apiVersion": "v1",
        "metadata": { "name": "bibd-postgres-3", "labels": { "cnpg.io/cluster": "bibd-postgres" } }, "spec": {} });
    let path = CLAIM.replace("-1", "-3");
    place.double.put(&path, claim);
    let error = place.postgres.provision().await.unwrap_err();
    assert!(matches!(trouble(&error), Trouble::VolumeUnknown { claim, .. } if claim == "bibd-postgres-3"), "{error}");
    place.double.remove(&path);
    for (node, is_foreign) in [("another", true), ("test", false)] {
        let metadata = json!({ "name": "bibd-postgres", "labels": { "bib.node": node } });
        place.double.put(CLUSTER, json!({ "kind": "Cluster", "metadata": metadata }));
        let before = place.double.versions();
        let error = place.postgres.provision().await.unwrap_err();
        match trouble(&error) {
            Trouble::Foreign { kind, found, .. } => assert!(is_foreign && kind == "Cluster" && found == "another"),
            Trouble::ClusterUnknown { .. } => assert!(!is_foreign),
            other => panic!("{other}"),
        }
        if is_foreign {
            for error in [
                place.postgres.stop(Stop::Immediate).await.unwrap_err(),
                place.postgres.dismantle().await.unwrap_err(),
                place.postgres.remove_data().await.unwrap_err(),
            ] {
                assert!(matches!(trouble(&error), Trouble::Foreign { .. }), "{error}");
            }
        }
        assert_eq!(place.double.versions(), before);
    }
    assert!(said(&place).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_is_not_there_or_does_nothing_is_said() {
    // Its kind is not known: before anything is made.
    let mut place = Place::without_operator();
    place.double.without_operator();
    let survey = Survey::of(&place.settings, Wanted::Auto).await;
    assert_ne!(survey.choice(Wanted::Auto).0, Choice::Kubernetes);
    assert!(matches!(survey.kubernetes, Some(Err(Trouble::NoOperator { .. }))));
    let error = place.postgres.provision().await.unwrap_err();
    assert!(matches!(trouble(&error), Trouble::NoOperator { .. }), "{error}");
    assert!(error.hint().unwrap().contains("install CloudNativePG"));
    assert!(place.double.all().is_empty() && said(&place).is_empty());
    // There is nothing to end either.
    place.postgres.stop(Stop::Clean).await.unwrap();

    // It is installed and does not run.
    place = Place::without_operator();
    let survey = Survey::of(&place.settings, Wanted::Auto).await;
    assert_eq!(survey.choice(Wanted::Auto).0, Choice::Kubernetes);
    place.double.forbid_creation();
    let survey = Survey::of(&place.settings, Wanted::Auto).await;
    assert!(survey.kubernetes.unwrap().unwrap_err().to_string().contains("may not create a Cluster"));
    place.settings.start_deadline = Duration::from_secs(2);
    place.another_daemon();
    let begun = Instant::now();
    let error = place.postgres.provision().await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(30) && said(&place).contains("initialising"));
    let expected = "does not come up: after 2 s its operator has said nothing about it";
    assert!(matches!(trouble(&error), Trouble::ClusterNotUp { .. }) && error.to_string().contains(expected), "{error}");
    assert!(error.hint().unwrap().contains("operator_namespace"));

    // It says why it cannot go on: what it says, its pod's state, and what was noted.
    let phase = |phase: &str, reason: &str| json!({ "phase": phase, "phaseReason": reason });
    let job = json!({ "kind": "Pod", "apiVersion": "v1",
        "metadata": { "name": "bibd-postgres-1-initdb-x", "labels": { "cnpg.io/cluster": "bibd-postgres" } },
        "spec": { "containers": [] }, "status": { "phase": "Pending", "conditions": [{ "type": "PodScheduled",
        "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available." }] } });
    place
        .double
        .update(CLUSTER, |cluster| cluster["status"] = phase("Setting up primary", "Creating primary instance"));
    place.double.put("/api/v1/namespaces/bib/pods/bibd-postgres-1-initdb-x", job);
    let error = place.postgres.provision().await.unwrap_err();
    let expected = "its operator says \"Setting up primary\": Creating primary instance; the pod \
                    `bibd-postgres-1-initdb-x`: no node takes it: Unschedulable: 0/1 nodes";
    assert!(error.to_string().contains(expected), "{error}");
    place.double.remove("/api/v1/namespaces/bib/pods/bibd-postgres-1-initdb-x");
    place.double.note("bibd-postgres", "FailedCreate", "forbidden by the quota");
    let error = place.postgres.provision().await.unwrap_err();
    assert!(error.to_string().contains("(FailedCreate: forbidden by the quota)"), "{error}");
    // Where waiting does not help nobody waits.
    place.settings.start_deadline = Duration::from_secs(60);
    place.another_daemon();
    let lost = "Cluster is in an unrecoverable state, needs manual intervention";
    place.double.update(CLUSTER, |cluster| cluster["status"] = phase(lost, "No PVCs exist."));
    let begun = Instant::now();
    let error = place.postgres.provision().await.unwrap_err();
    assert!(error.to_string().contains("unrecoverable") && begun.elapsed() < Duration::from_secs(30), "{error}");
    assert_eq!(place.double.objects.strange.lock().unwrap().clone(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_at_any_object_is_finished_by_the_next_start() {
    if !pods_run_here().await {
        return;
    }
    let place = Place::operated();
    place.double.fault("/", Fault::Answer(500, "etcd is away"));
    let error = place.postgres.provision().await.unwrap_err();
    assert!(matches!(trouble(&error), Trouble::Cluster(ClusterError::Failed { code: 500, .. })), "{error}");
    assert!(said(&place).is_empty() && place.double.all().is_empty());
    place.double.heal();
    for (word, fault) in [
        ("networkpolicies", Fault::Answer(403, "no")),
        ("secrets", Fault::Answer(409, "conflict with \"Helm\"")),
        ("clusters", Fault::Answer(422, "admission webhook \"vcluster.cnpg.io\" denied the request")),
    ] {
        place.double.fault_on("PATCH", word, fault);
        let error = place.postgres.provision().await.unwrap_err();
        assert!(matches!(trouble(&error), Trouble::Cluster(_)), "{word}: {error}");
        assert!(said(&place).contains("initialising") && place.double.get(CLUSTER).is_none(), "{word}");
        place.double.heal();
    }
    // The server is up, and the operator has not made the superuser.
    let operator = place.operator.as_ref().unwrap();
    operator.orders.makes_no_roles.store(true, Ordering::SeqCst);
    let provision = place.postgres.provision();
    let let_go = async {
        wait_for("the pod is there", PATIENCE, async || place.double.get(POD).is_some()).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(said(&place).contains("initialising"), "it waits for the superuser");
        operator.orders.makes_no_roles.store(false, Ordering::SeqCst);
    };
    let (made, ()) = tokio::join!(provision, let_go);
    assert!(made.unwrap().created);
    assert_eq!(place.postgres.start().await.unwrap(), Started::Spawned);
    // A cluster that is away for a moment stops no stop.
    place.double.fault_on("GET", "pods", Fault::Answer(503, "for a moment"));
    let error = place.postgres.stop(Stop::Clean).await.unwrap_err();
    assert!(matches!(trouble(&error), Trouble::Cluster(ClusterError::Failed { code: 503, .. })), "{error}");
    place.double.heal();
    place.postgres.stop(Stop::Clean).await.unwrap();
    assert_eq!(place.double.objects.strange.lock().unwrap().clone(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_falls_silent_holds_nobody_up_for_long() {
    if !pods_run_here().await {
        return;
    }
    let mut place = Place::operated().up().await;
    let is_silent =
        |place: &Place, is: bool| place.operator.as_ref().unwrap().orders.is_silent.store(is, Ordering::SeqCst);
    place.settings.start_deadline = Duration::from_secs(2);
    place.another_daemon();
    place.postgres.start().await.unwrap();
    is_silent(&place, true);
    // The next password is in the Secret, the former one works, and the next rotation goes on from there.
    let which = Which { groups: Vec::new(), superuser: true };
    let former = place.store.admin_password();
    let error = place.database.rotate(&which, now_s(), |_| async {}).await.unwrap_err();
    assert!(matches!(trouble(&error), Trouble::PasswordNotGiven { seconds: 2, .. }), "{error}");
    assert_eq!(place.store.admin_password(), former);
    place.attacker().await.close().await.unwrap();
    is_silent(&place, false);
    wait_for("it goes on", PATIENCE, async || place.database.rotate(&which, now_s(), |_| async {}).await.is_ok()).await;
    assert_ne!(place.store.admin_password(), former);

    is_silent(&place, true);
    let error = place.postgres.stop(Stop::Clean).await.unwrap_err();
    assert!(matches!(trouble(&error), Trouble::NotHibernated { seconds: 2, .. }), "{error}");
    assert!(error.to_string().contains("bibd-postgres-1; its operator says \"Cluster in healthy state\""), "{error}");
    is_silent(&place, false);
    place.postgres.stop(Stop::Clean).await.unwrap();

    // Nobody removes the volumes with their Cluster: the walls stay, and the same act goes on from there.
    is_silent(&place, true);
    let error = place.postgres.remove_data().await.unwrap_err();
    assert!(matches!(trouble(&error), Trouble::ClaimsStay { claims, .. } if *claims == ["bibd-postgres-1"]), "{error}");
    assert!(place.double.get(CLUSTER).is_none() && place.double.get(POLICY).is_some());
    is_silent(&place, false);
    wait_for("they go", PATIENCE, async || place.postgres.remove_data().await.is_ok()).await;
    wait_for("all of it is gone", PATIENCE, async || place.double.all().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_and_a_failover_are_seen_and_followed() {
    if !pods_run_here().await {
        return;
    }
    let place = Place::operated().up().await;
    let operator = place.operator.as_ref().unwrap();
    let mut state = place.postgres.state();
    let cancel = CancellationToken::new();
    let (watching, token) = (place.postgres.clone(), cancel.clone());
    #[allow(clippy::disallowed_methods, reason = "a test has no supervisor")]
    let watch = AbortOnDropHandle::new(tokio::spawn(async move { watching.supervise(token).await }));
    let watches = || place.double.count(|line| line.contains("/clusters?") && line.contains("watch="));
    wait_for("the first watch", PATIENCE, async || watches() > 0).await;
    let mut seen = async |attempt: u32, how: &str| {
        let ended = state.wait_for(|state| matches!(state, State::Crashed { attempt: is, .. } if *is == attempt));
        let ended = tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap().clone();
        assert!(matches!(&ended, State::Crashed { reason, .. } if reason.contains(how)), "{ended:?}");
        let up = tokio::time::timeout(PATIENCE, state.wait_for(|state| *state == State::Running)).await;
        up.unwrap().unwrap();
        place.connect(GroupRole::Service).await.close().await.unwrap();
    };
    assert!(docker(&["kill", &operator.container]).0);
    seen(1, "exit code 137").await;
    // What it goes on from is forgotten: it looks again.
    let before = watches();
    place.double.forget();
    place.double.cut_watches();
    wait_for("another watch", PATIENCE, async || watches() > before).await;
    run(&mut place.attacker().await, "CREATE SCHEMA x; CREATE TABLE x.kept AS SELECT 7 AS n").await.unwrap();
    operator.orders.fails_over.store(true, Ordering::SeqCst);
    seen(2, "its pod").await;
    wait_for("the other pod writes", PATIENCE, async || {
        place.postgres.container().await.unwrap().unwrap().name == "bib/bibd-postgres-2"
    })
    .await;
    assert_eq!(text(&mut place.attacker().await, "SELECT n::text FROM x.kept").await, "7");
    let data = place.postgres.data_elsewhere().await.unwrap().unwrap();
    assert!(data.contains("`bibd-postgres-1`, `bibd-postgres-2`"), "{data}");

    place.postgres.stop(Stop::Clean).await.unwrap();
    assert_eq!(*place.postgres.state().borrow(), State::Stopped);
    cancel.cancel();
    watch.await.unwrap();
    assert_eq!(place.double.objects.strange.lock().unwrap().clone(), Vec::<String>::new());
}

async fn audit(place: &Place) -> Vec<Finding> {
    let mut monitor = place.connect(GroupRole::Monitor).await;
    let facts = place.postgres.facts().await.unwrap();
    checklist::audit(&mut monitor, &facts, &Expected::default()).await.unwrap()
}

fn status_of<'a>(findings: &'a [Finding], item: &str) -> &'a Finding {
    findings.iter().find(|finding| finding.item == item).unwrap_or_else(|| panic!("{item}"))
}

/// As the operator's other servers come in: by the certificate of their Secret.
fn as_replica(place: &Place) -> PgConnectOptions {
    use base64::Engine as _;
    let secret = |part: &str, key: &str| {
        let found = place.double.get(&ADMIN.replace("admin", part)).unwrap();
        base64::engine::general_purpose::STANDARD.decode(found["data"][key].as_str().unwrap()).unwrap()
    };
    PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(place.postgres.endpoint().unwrap().port())
        .ssl_mode(PgSslMode::VerifyFull)
        .ssl_root_cert_from_pem(secret("server-ca", "ca.crt"))
        .ssl_client_cert_from_pem(secret("replication-tls", "tls.crt"))
        .ssl_client_key_from_pem(secret("replication-tls", "tls.key"))
        .username("streaming_replica")
        .database("postgres")
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_certificates_backup_and_the_checklist() {
    if !pods_run_here().await {
        return;
    }
    let mut place = Place::operated().up().await;
    let before = place.store.passwords();
    let secret = place.double.get(ADMIN).unwrap();
    let every = Which { groups: GroupRole::ALL.to_vec(), superuser: true };
    place.database.rotate(&every, now_s(), |_| async {}).await.unwrap();
    assert!(place.store.passwords().iter().all(|password| !before.contains(password)));
    assert_ne!(place.double.get(ADMIN).unwrap()["data"]["password"], secret["data"]["password"]);
    for group in GroupRole::ALL {
        let mut connection = place.connect(group).await;
        assert_eq!(text(&mut connection, "SELECT current_user::text").await, format!("{group}_b"));
    }
    // What somebody sets over SQL does not last, and what we set does: the operator has it from the Secret.
    let mut attacker = place.attacker().await;
    // Not into the log, where the checklist would find it.
    run(&mut attacker, "SET log_statement = 'none'").await.unwrap();
    run(&mut attacker, "ALTER ROLE bibd_admin PASSWORD 'another'").await.unwrap();
    wait_for("the operator sets it back", PATIENCE, async || {
        let login = bibd_postgres::Login {
            user: "bibd_admin".to_owned(),
            database: "bib".to_owned(),
            password: SecretString::from(place.store.admin_password()),
        };
        PgConnection::connect_with(&place.postgres.connect_options(&login)).await.is_ok()
    })
    .await;
    // Cut off before the operator was told: both are tried, and the next start finishes it.
    let document = place.store.read("db").unwrap().unwrap();
    let mut document: Value = serde_json::from_str(document.expose_secret()).unwrap();
    document["admin_next"] = json!({ "password": "n".repeat(64), "since_s": now_s() });
    place.store.write("db", &SecretString::from(document.to_string())).unwrap();
    place.another_daemon();
    assert_eq!(place.postgres.start().await.unwrap(), Started::Adopted);
    place.database.ensure_roles().await.unwrap();
    assert_eq!(place.store.admin_password(), "n".repeat(64));
    place.attacker().await.close().await.unwrap();

    // A certificate that is due: it comes through the Secret.
    assert!(place.database.renew_certificates().await.unwrap(), "the first call has them read");
    let mut replica = PgConnection::connect_with(&as_replica(&place)).await.unwrap();
    assert_eq!(text(&mut replica, "SELECT current_user::text").await, "streaming_replica");
    replica.close().await.unwrap();
    let shown = |path: &str| place.double.get(path).unwrap()["data"]["tls.crt"].clone();
    let replication = ADMIN.replace("admin", "replication-tls");
    let former = [shown(SERVER), shown(&replication)];
    let document = place.store.read("db-tls").unwrap().unwrap();
    let mut document: Value = serde_json::from_str(document.expose_secret()).unwrap();
    for leaf in ["server", "replica"] {
        document[leaf]["until_s"] = (now_s() + 10 * 86_400).into();
    }
    place.store.write("db-tls", &SecretString::from(document.to_string())).unwrap();
    place.another_daemon();
    assert_eq!(place.postgres.start().await.unwrap(), Started::Adopted);
    wait_for("the server reads it", PATIENCE, async || place.database.renew_certificates().await.is_ok()).await;
    let shown = |path: &str| place.double.get(path).unwrap()["data"]["tls.crt"].clone();
    assert!(shown(SERVER) != former[0] && shown(&replication) != former[1]);
    PgConnection::connect_with(&as_replica(&place)).await.unwrap().close().await.unwrap();

    // All certificates lost: the operator brings the server others, and it does not restart.
    place.store.put_back(place.store.forget().into_iter().filter(|(name, _)| name == "db").collect());
    place.another_daemon();
    assert_eq!(place.postgres.start().await.unwrap(), Started::Adopted);

    let login = place.database.login(GroupRole::Backup).unwrap();
    let (backup, mut reader) = place.postgres.base_backup(&login, "test").await.unwrap();
    #[allow(clippy::disallowed_methods, reason = "a test has no supervisor")]
    let bytes = tokio::task::spawn_blocking(move || std::io::copy(&mut reader, &mut std::io::sink()).unwrap());
    assert!(bytes.await.unwrap() > 1 << 20);
    assert_eq!(backup.finish().await.unwrap().timeline, 1);

    let findings = audit(&place).await;
    // The audit log comes with the migrations, which are the daemon's.
    let bad = findings.iter().filter(|finding| finding.status == Status::Fail && finding.item != "C.3-30");
    let bad: Vec<&Finding> = bad.collect();
    assert!(bad.is_empty(), "{bad:#?}");
    let numbers: Vec<u32> = findings.iter().map(|one| one.item.rsplit('-').next().unwrap().parse().unwrap()).collect();
    assert_eq!(numbers, (1..=56).collect::<Vec<_>>(), "every item once, in order");
    // What the operator keeps is said to be its own.
    for item in ["C.1-4", "C.1-6", "C.1-7", "C.1-8", "C.1-9", "C.2-10", "C.2-11"] {
        assert!(matches!(status_of(&findings, item).status, Status::NotApplicable { .. }), "{item}");
    }

    // Each wall that somebody takes down is missed.
    type Break<'a> = (&'a str, &'a str, &'a dyn Fn(&mut Value));
    let server = "/spec/containers/0/securityContext";
    let breaks: [Break<'_>; 8] = [
        ("C.5-56", POLICY, &|object| object["spec"]["ingress"][0]["from"] = json!([])),
        ("C.5-56", CLUSTER, &|object| object["spec"]["enableSuperuserAccess"] = true.into()),
        ("C.5-56", CLUSTER, &|object| object["spec"]["managed"]["roles"][1]["login"] = true.into()),
        ("C.5-48", POD, &|object| object.pointer_mut(server).unwrap()["capabilities"]["add"] = json!(["SYS_ADMIN"])),
        ("C.5-50", POD, &|object| object.pointer_mut(server).unwrap()["readOnlyRootFilesystem"] = false.into()),
        ("C.5-53", POD, &|object| object["spec"]["hostNetwork"] = true.into()),
        ("C.5-54", POD, &|object| {
            object["spec"]["containers"][0]["env"][0]["value"] = place.store.admin_password().into();
        }),
        ("C.5-55", POD, &|object| object["spec"]["terminationGracePeriodSeconds"] = 5.into()),
    ];
    place.operator.as_ref().unwrap().orders.is_silent.store(true, Ordering::SeqCst);
    for (item, path, take_down) in breaks {
        let good = place.double.get(path).unwrap();
        place.double.update(path, |object| take_down(object));
        let findings = audit(&place).await;
        place.double.put(path, good);
        assert_eq!(status_of(&findings, item).status, Status::Fail, "{item}: {:?}", status_of(&findings, item));
    }
    place.operator.as_ref().unwrap().orders.is_silent.store(false, Ordering::SeqCst);
    // Rules and settings that somebody gives the operator reach the server, and are missed.
    place.double.update(CLUSTER, |object| {
        object["spec"]["postgresql"]["pg_hba"].as_array_mut().unwrap().insert(0, "host all all all trust".into());
        object["spec"]["postgresql"]["parameters"]["log_statement"] = "none".into();
    });
    wait_for("they reach the server", PATIENCE, async || {
        let findings = audit(&place).await;
        ["C.1-5", "C.2-12", "C.2-16", "C.4-34", "C.4-42", "C.5-56"]
            .iter()
            .all(|item| status_of(&findings, item).status == Status::Fail)
    })
    .await;
    place.postgres.stop(Stop::Clean).await.unwrap();
}
