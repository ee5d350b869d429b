//! The provisioner from nothing to a clean stop, over the double of an API and a node that runs the pod by Docker.

use std::collections::BTreeMap;
use std::time::Duration;

use bibd_postgres::checklist::{self, Expected, Finding, Status};
use bibd_postgres::rotation::Which;
use bibd_postgres::{Act, Choice, GroupRole, Health, SecretStore as _, Started, State, Stop};
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::Connection as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::double::Fault;
use crate::kubelet::docker;
use crate::place::{Place, pods_run_here};
use crate::support::{run, text, wait_for};

const PATIENCE: Duration = Duration::from_secs(90);
const SECRET: &str = "/api/v1/namespaces/bib/secrets/bibd-postgres";
const CLAIM: &str = "/api/v1/namespaces/bib/persistentvolumeclaims/data-bibd-postgres-0";
const SET: &str = "/apis/apps/v1/namespaces/bib/statefulsets/bibd-postgres";
const POD: &str = "/api/v1/namespaces/bib/pods/bibd-postgres-0";

/// Versions of what bibd applies: the pod and the claim are the cluster's own.
fn applied(place: &Place) -> BTreeMap<String, String> {
    let mut all = place.double.versions();
    all.retain(|path, _| path != POD && path != CLAIM);
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn from_nothing_to_a_clean_stop_and_again() {
    if !pods_run_here().await {
        return;
    }
    let mut place = Place::new();
    let made = place.postgres.provision().await.unwrap();
    assert!(made.created && made.version.major == 15 && made.version.minor > 0, "{made:?}");
    assert_eq!(place.postgres.start().await.unwrap(), Started::Spawned);
    place.database.ensure_roles().await.unwrap();
    assert_eq!(place.postgres.health().await, Health::Ready);
    let before = applied(&place);
    assert_eq!(before.len(), 8, "{before:?}");
    assert_eq!(place.postgres.start().await.unwrap(), Started::AlreadyRunning);
    assert_eq!(applied(&place), before, "a second apply changes nothing");
    // Passwords came as a verifier and are nowhere: not in an object, not in a question.
    let secret = place.double.get(SECRET).unwrap();
    let keys: Vec<&String> = secret["data"].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["ca.crt", "server.crt", "server.key"]);
    let objects: String = place.double.all().into_values().map(|object| object.to_string()).collect();
    assert!(place.store.passwords().iter().all(|password| !objects.contains(password)));
    for group in GroupRole::ALL {
        let mut connection = place.connect(group).await;
        assert_eq!(text(&mut connection, "SELECT current_user::text").await, format!("{group}_a"));
    }
    let superuser: Vec<Act> = place.recorder.seen.lock().unwrap().iter().map(|use_| use_.0).collect();
    assert_eq!(superuser, [Act::EnsureRoles; 2]);
    run(&mut place.attacker().await, "CREATE SCHEMA x; CREATE TABLE x.kept AS SELECT 7 AS n").await.unwrap();
    let shown = place.postgres.container().await.unwrap().unwrap();
    assert_eq!((shown.name.as_str(), shown.digest.as_str()), ("bib/bibd-postgres-0", "sha256:of-the-node"));

    // Another daemon adopts the pod, and a session does not notice.
    let mut session = place.connect(GroupRole::Service).await;
    let before = place.double.versions();
    place.another_daemon();
    assert!(!place.postgres.provision().await.unwrap().created);
    assert_eq!(place.postgres.start().await.unwrap(), Started::Adopted);
    assert_eq!(text(&mut session, "SELECT 'alive'").await, "alive");
    assert_eq!(place.double.get(SET).unwrap()["metadata"]["resourceVersion"], before[SET].as_str());

    place.postgres.stop(Stop::Clean).await.unwrap();
    assert_eq!(place.postgres.health().await, Health::Stopped);
    place.postgres.stop(Stop::Clean).await.unwrap();
    assert!(place.double.get(POD).is_none() && place.double.get(CLAIM).is_some());

    // Other settings make another pod, once, when a daemon starts.
    assert_eq!(place.postgres.start().await.unwrap(), Started::Spawned);
    place.settings.limits.slow_statement_ms = 1234;
    place.another_daemon();
    assert_eq!(place.postgres.start().await.unwrap(), Started::Spawned);
    place.database.ensure_roles().await.unwrap();
    let mut attacker = place.attacker().await;
    assert_eq!(text(&mut attacker, "SELECT n::text FROM x.kept").await, "7");
    assert_eq!(text(&mut attacker, "SHOW log_min_duration_statement").await, "1234ms");
    attacker.close().await.unwrap();

    // Everything goes but the volume, and comes again around it; without the volume nothing does.
    place.postgres.stop(Stop::Immediate).await.unwrap();
    place.postgres.dismantle().await.unwrap();
    assert_eq!(place.double.all().into_keys().collect::<Vec<_>>(), [CLAIM]);
    assert!(place.postgres.data_elsewhere().await.unwrap().unwrap().contains("data-bibd-postgres-0"));
    assert_eq!(place.postgres.start().await.unwrap(), Started::Spawned);
    assert_eq!(text(&mut place.attacker().await, "SELECT n::text FROM x.kept").await, "7");
    place.postgres.stop(Stop::Clean).await.unwrap();
    place.postgres.dismantle().await.unwrap();
    place.postgres.remove_data().await.unwrap();
    assert!(place.double.all().is_empty() && place.postgres.data_elsewhere().await.unwrap().is_none());
    wait_for("the volume is gone", PATIENCE, async || !place.node.as_ref().unwrap().volume.exists()).await;
    let lost = place.postgres.start().await.unwrap_err();
    let expected = format!("the volume is empty, expected cluster {}", made.system_identifier);
    assert!(lost.to_string().contains(&expected), "{lost}");
    assert!(lost.hint().unwrap().contains("restore a backup"), "{lost}");
    place.postgres.stop(Stop::Clean).await.unwrap();
    assert_eq!(place.double.objects.strange.lock().unwrap().clone(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_the_pod_is_seen_through_every_break_of_the_watch() {
    if !pods_run_here().await {
        return;
    }
    let place = Place::started().await;
    let mut state = place.postgres.state();
    let cancel = CancellationToken::new();
    let (watching, token) = (place.postgres.clone(), cancel.clone());
    #[allow(clippy::disallowed_methods, reason = "a test has no supervisor")]
    let watch = AbortOnDropHandle::new(tokio::spawn(async move { watching.supervise(token).await }));
    let watches = || place.double.count(|line| line.contains("watch=") && line.contains("metadata.name"));
    wait_for("the first watch", PATIENCE, async || watches() > 0).await;

    let mut seen = async |attempt: u32| {
        let container = place.node.as_ref().unwrap().container.clone();
        assert!(docker(&["kill", &container]).0);
        let ended = state.wait_for(|state| matches!(state, State::Crashed { attempt: is, .. } if *is == attempt));
        let ended = tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap().clone();
        assert!(matches!(&ended, State::Crashed { reason, .. } if reason.contains("exit code 137")), "{ended:?}");
        let up = tokio::time::timeout(PATIENCE, state.wait_for(|state| *state == State::Running)).await;
        up.unwrap().unwrap();
        place.connect(GroupRole::Service).await.close().await.unwrap();
    };
    seen(1).await;
    // The connection breaks: it goes on where it was.
    let (before, lists) =
        (watches(), || place.double.count(|line| line.contains("/pods?") && !line.contains("watch=")));
    let listed = lists();
    place.double.cut_watches();
    wait_for("another watch", PATIENCE, async || watches() > before).await;
    seen(2).await;
    assert_eq!(lists(), listed, "nothing was looked up again");
    // What it goes on from is forgotten: it looks again.
    place.double.forget();
    place.double.cut_watches();
    wait_for("another look", PATIENCE, async || lists() > listed).await;
    seen(3).await;
    // The API is away: the server is not, and what happens meanwhile is seen afterwards.
    place.double.fault("/pods?", Fault::Answer(500, "etcd is away"));
    let listed = lists();
    place.double.cut_watches();
    wait_for("two looks", PATIENCE, async || lists() > listed + 1).await;
    assert_eq!(*place.postgres.state().borrow(), State::Running);
    place.double.heal();
    seen(4).await;

    // Stopped on purpose, it stays so.
    place.postgres.stop(Stop::Clean).await.unwrap();
    assert_eq!(*place.postgres.state().borrow(), State::Stopped);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(*place.postgres.state().borrow(), State::Stopped);
    cancel.cancel();
    watch.await.unwrap();
}

async fn audit(place: &Place) -> Vec<Finding> {
    let mut monitor = place.connect(GroupRole::Monitor).await;
    let facts = place.postgres.facts().await.unwrap();
    checklist::audit(&mut monitor, &facts, &Expected::default()).await.unwrap()
}

fn status_of<'a>(findings: &'a [Finding], item: &str) -> &'a Finding {
    findings.iter().find(|finding| finding.item == item).unwrap_or_else(|| panic!("{item}"))
}

/// The sealed document of certificates.
fn certificates(place: &Place) -> serde_json::Value {
    let text = place.store.read("db-tls").unwrap().unwrap();
    serde_json::from_str(text.expose_secret()).unwrap()
}

fn keep(place: &Place, document: &serde_json::Value) {
    place.store.write("db-tls", &SecretString::from(document.to_string())).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn names_every_wall_that_is_missing_after_rotation_and_backup() {
    if !pods_run_here().await {
        return;
    }
    let mut place = Place::started().await;
    let before = place.store.passwords();
    let every = Which { groups: GroupRole::ALL.to_vec(), superuser: true };
    let now = crate::support::now_s();
    place.database.rotate(&every, now, |_| async {}).await.unwrap();
    assert!(place.store.passwords().iter().all(|password| !before.contains(password)));
    for group in GroupRole::ALL {
        let mut connection = place.connect(group).await;
        assert_eq!(text(&mut connection, "SELECT current_user::text").await, format!("{group}_b"));
    }
    // A certificate that is due: it comes through the Secret, and the server reads it without a restart.
    let secret = place.double.get(SECRET).unwrap()["data"]["server.crt"].clone();
    let pod = place.double.get(POD).unwrap()["metadata"]["uid"].clone();
    assert!(place.database.renew_certificates().await.unwrap(), "the first call has them read");
    let mut document = certificates(&place);
    document["server"]["until_s"] = (now + 10 * 86_400).into();
    keep(&place, &document);
    place.another_daemon();
    assert_eq!(place.postgres.start().await.unwrap(), Started::Adopted);
    let renewed = || place.double.get(SECRET).unwrap()["data"]["server.crt"].clone();
    assert_ne!(renewed(), secret);
    wait_for("the server reads it", PATIENCE, async || place.database.renew_certificates().await.is_ok()).await;
    assert_eq!(place.double.get(POD).unwrap()["metadata"]["uid"], pod);

    // All certificates lost: what runs takes none of the new ones, and is made anew.
    place.store.put_back(place.store.forget().into_iter().filter(|(name, _)| name == "db").collect());
    place.another_daemon();
    assert_eq!(place.postgres.start().await.unwrap(), Started::Spawned);

    let login = place.database.login(GroupRole::Backup).unwrap();
    let (backup, mut reader) = place.postgres.base_backup(&login, "test").await.unwrap();
    #[allow(clippy::disallowed_methods, reason = "a test has no supervisor")]
    let bytes = tokio::task::spawn_blocking(move || std::io::copy(&mut reader, &mut std::io::sink()).unwrap());
    assert!(bytes.await.unwrap() > 1 << 20);
    assert_eq!(backup.finish().await.unwrap().timeline, 1);
    assert_eq!(place.postgres.choice(), Choice::Kubernetes);

    let findings = audit(&place).await;
    // The audit log comes with the migrations, which are the daemon's.
    let bad = findings.iter().filter(|finding| finding.status == Status::Fail && finding.item != "C.3-30");
    let bad: Vec<&Finding> = bad.collect();
    assert!(bad.is_empty(), "{bad:#?}");
    let numbers: Vec<u32> = findings.iter().map(|one| one.item.rsplit('-').next().unwrap().parse().unwrap()).collect();
    assert_eq!(numbers, (1..=56).collect::<Vec<_>>(), "every item once, in order");
    let walls = status_of(&findings, "C.5-56");
    assert!(walls.status == Status::Warn && walls.observed.contains("not checked, bibd is outside"), "{walls:?}");
    assert!(status_of(&findings, "C.5-46").observed.contains("database.kubernetes.digest is not set"));

    // Each wall that somebody takes down is missed.
    let policy = "/apis/networking.k8s.io/v1/namespaces/bib/networkpolicies/bibd-postgres";
    type Break<'a> = (&'a str, &'a str, &'a dyn Fn(&mut serde_json::Value));
    let server = "/spec/containers/0/securityContext";
    let breaks: [Break<'_>; 14] = [
        ("C.5-56", policy, &|object| object["spec"]["ingress"][0]["from"] = serde_json::json!([])),
        ("C.5-56", POD, &|object| object["spec"]["automountServiceAccountToken"] = true.into()),
        ("C.5-56", POD, &|object| object["spec"]["securityContext"]["fsGroup"] = 0.into()),
        ("C.5-47", POD, &|object| object["spec"]["securityContext"]["runAsUser"] = 0.into()),
        ("C.5-48", POD, &|object| {
            object.pointer_mut(server).unwrap()["capabilities"]["add"] = serde_json::json!(["SYS_ADMIN"])
        }),
        ("C.5-49", POD, &|object| object.pointer_mut(server).unwrap()["allowPrivilegeEscalation"] = true.into()),
        ("C.5-50", POD, &|object| object.pointer_mut(server).unwrap()["readOnlyRootFilesystem"] = false.into()),
        ("C.5-51", POD, &|object| {
            object.pointer_mut(server).unwrap()["seccompProfile"] = serde_json::json!({ "type": "Unconfined" })
        }),
        ("C.5-52", POD, &|object| object["spec"]["containers"][0]["resources"] = serde_json::json!({})),
        ("C.5-53", POD, &|object| object["spec"]["hostNetwork"] = true.into()),
        ("C.5-55", POD, &|object| object["spec"]["containers"][0]["lifecycle"] = serde_json::Value::Null),
        ("C.2-16", POD, &|object| object["spec"]["volumes"][1]["secret"]["items"][0]["mode"] = 0o444.into()),
        ("C.1-6", POD, &|object| object["spec"]["containers"][0]["volumeMounts"][1]["readOnly"] = false.into()),
        ("C.1-9", SECRET, &|object| object["data"]["admin.verifier"] = "eA==".into()),
    ];
    for (item, path, take_down) in breaks {
        let good = place.double.get(path).unwrap();
        let mut object = good.clone();
        take_down(&mut object);
        place.double.put(path, object);
        let findings = audit(&place).await;
        place.double.put(path, good);
        assert_eq!(status_of(&findings, item).status, Status::Fail, "{item}: {:?}", status_of(&findings, item));
    }
    let password = place.store.admin_password();
    let mut object = place.double.get(POD).unwrap();
    object["spec"]["containers"][0]["env"][0]["value"] = password.into();
    place.double.put(POD, object);
    assert_eq!(status_of(&audit(&place).await, "C.5-54").status, Status::Fail);

    // From inside a port that the policy closes is tried. Nothing here keeps any policy, so the pod itself answers.
    let mut monitor = place.connect(GroupRole::Monitor).await;
    let outside = std::mem::take(&mut place.objects().outside);
    place.another_daemon();
    let facts = place.postgres.facts().await.unwrap();
    let findings = checklist::audit(&mut monitor, &facts, &Expected::default()).await.unwrap();
    let walls = status_of(&findings, "C.5-56");
    assert!(walls.observed.contains("is refused by the pod itself: the network may not enforce policies"), "{walls:?}");
    place.objects().outside = outside;
    place.another_daemon();
    place.postgres.stop(Stop::Clean).await.unwrap();
}
