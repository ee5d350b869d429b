//! What goes wrong on the way to a database in Kubernetes: each a sentence with a hint, none hangs, and nothing is half
//! made that the next start does not finish.

use std::time::{Duration, Instant};

use bibd_postgres::choose::{Survey, choose};
use bibd_postgres::kubernetes::{ClusterError, Trouble};
use bibd_postgres::{Choice, Error, Randomness, Started, Stop, Wanted};
use rand::SeedableRng as _;
use serde_json::{Value, json};

use crate::double::Fault;
use crate::place::{Place, pods_run_here, said, trouble};

const SET: &str = "/apis/apps/v1/namespaces/bib/statefulsets/bibd-postgres";
const POD: &str = "/api/v1/namespaces/bib/pods/bibd-postgres-0";
const CLAIM: &str = "/api/v1/namespaces/bib/persistentvolumeclaims/data-bibd-postgres-0";

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_at_any_object_is_finished_by_the_next_start() {
    if !pods_run_here().await {
        return;
    }
    let place = Place::new();
    // Before anything is known of the cluster nothing is made.
    place.double.fault("/", Fault::Answer(500, "etcd is away"));
    let error = place.postgres.provision().await.unwrap_err();
    assert!(matches!(trouble(&error), Trouble::Cluster(ClusterError::Failed { code: 500, .. })), "{error}");
    assert!(said(&place).is_empty() && place.double.all().is_empty());
    place.double.heal();

    type Is = fn(&ClusterError) -> bool;
    let each: [(&'static str, Fault, Is); 6] = [
        ("networkpolicies", Fault::Answer(403, "no"), |e| matches!(e, ClusterError::Forbidden { .. })),
        ("serviceaccounts", Fault::Answer(404, "namespaces \"bib\" not found"), |e| {
            matches!(e, ClusterError::Missing { .. })
        }),
        ("secrets", Fault::Answer(409, "conflict with \"Helm\""), |e| matches!(e, ClusterError::Conflict { .. })),
        ("configmaps", Fault::Answer(422, "too long"), |e| matches!(e, ClusterError::Invalid { .. })),
        ("services", Fault::HalfAnAnswer, |e| matches!(e, ClusterError::Unreachable { .. })),
        ("statefulsets", Fault::Answer(500, "etcd is away"), |e| matches!(e, ClusterError::Failed { .. })),
    ];
    for (word, fault, is) in each {
        place.double.fault_on("PATCH", word, fault);
        let error = place.postgres.provision().await.unwrap_err();
        assert!(matches!(trouble(&error), Trouble::Cluster(error) if is(error)), "{word}: {error}");
        assert!(said(&place).contains("initialising") && place.double.get(SET).is_none(), "{word}");
        place.double.heal();
    }
    let made = place.postgres.provision().await.unwrap();
    assert!(made.created && said(&place).contains(&made.system_identifier.to_string()));
    assert_eq!(place.postgres.start().await.unwrap(), Started::Spawned);

    // Cut off after the pod was up and before PROVISIONER said so: the same cluster is found.
    let early = "{\"choice\":\"kubernetes\",\"major\":15,\"state\":\"initialising\"}\n";
    std::fs::write(place.layout().provisioner, early).unwrap();
    let again = place.postgres.provision().await.unwrap();
    assert_eq!(again.system_identifier, made.system_identifier);
    // A cluster that is away for a moment stops no stop.
    place.double.fault_on("GET", "pods", Fault::Answer(503, "for a moment"));
    let error = place.postgres.stop(Stop::Clean).await.unwrap_err();
    assert!(matches!(trouble(&error), Trouble::Cluster(ClusterError::Failed { code: 503, .. })), "{error}");
    place.double.heal();
    place.postgres.stop(Stop::Clean).await.unwrap();
    assert_eq!(place.double.objects.strange.lock().unwrap().clone(), Vec::<String>::new());
}

/// A pod of the cluster as it is while it does not come up.
fn pod(status: Value) -> Value {
    json!({ "kind": "Pod", "apiVersion": "v1", "metadata": { "name": "bibd-postgres-0", "namespace": "bib" },
            "spec": { "containers": [] }, "status": status })
}

#[tokio::test(flavor = "multi_thread")]
async fn why_a_pod_does_not_come_up_is_in_the_error() {
    let waiting = |reason: &str, message: &str| {
        let state = json!({ "waiting": { "reason": reason, "message": message } });
        json!({ "phase": "Pending", "initContainerStatuses": [{ "name": "initdb", "image": "", "imageID": "",
                "ready": false, "restartCount": 0, "state": state }] })
    };
    let unplaced = json!({ "phase": "Pending", "conditions": [{ "type": "PodScheduled", "status": "False",
        "reason": "Unschedulable", "message": "0/1 nodes are available: 1 Insufficient memory." }] });
    let refused = json!({ "phase": "Pending", "initContainerStatuses": [{ "name": "initdb", "image": "", "imageID": "",
        "ready": false, "restartCount": 1, "state": { "terminated": { "exitCode": 1, "reason": "Error",
        "message": "the image has no PostgreSQL 15, and no other" } } }] });
    for (status, expected, hint, is_final) in [
        (
            waiting("ErrImagePull", "manifest unknown"),
            "ErrImagePull: manifest unknown",
            "database.kubernetes.image",
            false,
        ),
        (unplaced, "no node takes it: Unschedulable: 0/1 nodes", "kubectl describe pod", false),
        (refused, "the image has no PostgreSQL 15", "log", true),
        (
            Value::Null,
            "the cluster has made no pod (FailedCreate: forbidden by the quota)",
            "kubectl describe pod",
            false,
        ),
    ] {
        let mut place = Place::without_node();
        place.settings.start_deadline = Duration::from_secs(if is_final { 60 } else { 2 });
        place.another_daemon();
        place.double.note("bibd-postgres", "FailedCreate", "forbidden by the quota");
        place.double.log("initdb", "one\nthe image has no PostgreSQL 15, and no other\n");
        let double = place.double.clone();
        // As a controller does, once there is a set.
        let node = std::thread::spawn(move || {
            let begun = Instant::now();
            while double.get(SET).is_none() && begun.elapsed() < Duration::from_secs(60) {
                std::thread::sleep(Duration::from_millis(20));
            }
            if !status.is_null() {
                double.put(POD, pod(status));
            }
        });
        let begun = Instant::now();
        let error = place.postgres.provision().await.unwrap_err();
        node.join().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(30), "{expected}");
        assert!(matches!(trouble(&error), Trouble::NotUp { .. }) && error.to_string().contains(expected), "{error}");
        assert!(error.hint().unwrap().contains(hint), "{:?}", error.hint());
        assert!(said(&place).contains("initialising"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_cluster_holds_nobody_up() {
    let place = Place::without_node();
    place.double.fault("/", Fault::Silence);
    let begun = Instant::now();
    let error = place.postgres.provision().await.unwrap_err();
    assert!(matches!(trouble(&error), Trouble::Cluster(ClusterError::Silent { .. })), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(30) && said(&place).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_somebody_elses_is_not_touched() {
    let place = Place::without_node();
    place.double.put(CLAIM, json!({ "kind": "PersistentVolumeClaim", "apiVersion": "v1", "metadata": {}, "spec": {} }));
    let error = place.postgres.provision().await.unwrap_err();
    assert!(matches!(trouble(&error), Trouble::VolumeUnknown { .. }), "{error}");
    place.double.remove(CLAIM);
    let labels = json!({ "bib.node": "another" });
    place.double.put(SET, json!({ "kind": "StatefulSet", "apiVersion": "apps/v1", "metadata": { "labels": labels } }));
    let before = place.double.versions();
    for error in [
        place.postgres.provision().await.unwrap_err(),
        place.postgres.stop(Stop::Immediate).await.unwrap_err(),
        place.postgres.dismantle().await.unwrap_err(),
    ] {
        assert!(matches!(trouble(&error), Trouble::Foreign { found, .. } if found == "another"), "{error}");
    }
    assert!(said(&place).is_empty());
    assert_eq!(place.double.versions(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_choice_and_no_second_one() {
    let random = || Randomness::new(rand::rngs::StdRng::seed_from_u64(1));
    let mut place = Place::without_node();
    let chosen = async |place: &Place, wanted| {
        choose(wanted, place.settings.clone(), place.store.clone(), random()).await.map(|postgres| postgres.choice())
    };
    // A pod that may make one makes one; one that may not goes on to what is left.
    assert_eq!(chosen(&place, Wanted::Auto).await.unwrap(), Choice::Kubernetes);
    let survey = Survey::of(&place.settings, Wanted::Auto).await;
    assert_eq!(survey.choice(Wanted::Auto).0, Choice::Kubernetes);
    assert!(survey.kubernetes.unwrap().unwrap().ends_with("namespace `bib`"));
    place.double.forbid_creation();
    let survey = Survey::of(&place.settings, Wanted::Auto).await;
    assert_ne!(survey.choice(Wanted::Auto).0, Choice::Kubernetes);
    assert!(survey.kubernetes.unwrap().unwrap_err().to_string().contains("may not create a StatefulSet"));

    // Made as one, it is never the other: also while the API is away.
    std::fs::create_dir_all(place.layout().home).unwrap();
    let record = "{\"choice\":\"kubernetes\",\"major\":15,\"state\":\"ready\",\"system_identifier\":\"7\"}\n";
    std::fs::write(place.layout().provisioner, record).unwrap();
    place.double.fault("/", Fault::Silence);
    assert_eq!(chosen(&place, Wanted::Auto).await.unwrap(), Choice::Kubernetes);
    for other in [Choice::Process, Choice::Container] {
        let error = chosen(&place, Wanted::Exactly(other)).await.unwrap_err();
        assert!(matches!(&error, Error::OtherProvisioner { chosen, .. } if chosen == "kubernetes"), "{error}");
    }
    std::fs::write(place.layout().provisioner, record.replace("kubernetes", "process")).unwrap();
    let error = chosen(&place, Wanted::Exactly(Choice::Kubernetes)).await.unwrap_err();
    assert!(matches!(&error, Error::OtherProvisioner { chosen, .. } if chosen == "process"), "{error}");
    let error = place.postgres.provision().await.unwrap_err();
    assert!(matches!(&error, Error::OtherProvisioner { .. }), "{error}");
    assert!(place.double.all().is_empty());

    // What is not for Kubernetes is said before it is asked.
    std::fs::remove_file(place.layout().provisioner).unwrap();
    place.objects().outside_host = None;
    place.another_daemon();
    assert!(matches!(trouble(&place.postgres.provision().await.unwrap_err()), Trouble::NoOutsideHost));
    let error = place.postgres.begin_restore(15).await.unwrap_err();
    assert!(matches!(trouble(&error), Trouble::RestoreElsewhere), "{error}");
}
