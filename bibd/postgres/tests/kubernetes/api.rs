//! A cluster that is asked, against a double of its API.

use std::time::{Duration, Instant};

use bibd_postgres::kubernetes::manifests::database;
use bibd_postgres::kubernetes::{Cluster, ClusterError, Content, Effect, KubernetesSettings, Manifest, Mode};
use bibd_postgres::{Limits, Wal};
use serde_json::json;
use tokio::net::TcpListener;

use crate::double::{Double, Fault, path};

fn cluster(double: &Double, deadline: Duration) -> Cluster {
    Cluster::of(kube::Config::new(double.address().parse().unwrap()), deadline).unwrap()
}

fn objects(mode: Mode) -> Vec<Manifest> {
    let settings = KubernetesSettings { mode, ..KubernetesSettings::default() };
    database(&settings, &Content::new(&settings.config(&Limits::default(), &Wal::Recycle)))
}

const PATIENT: Duration = Duration::from_secs(20);

#[tokio::test]
async fn what_an_apply_would_do_is_told_and_nothing_is_done() {
    let double = Double::start();
    let cluster = cluster(&double, PATIENT);
    for mode in [Mode::StatefulSet, Mode::Operator] {
        for manifest in objects(mode) {
            assert_eq!(cluster.try_apply(&manifest).await.unwrap(), Effect::Created, "{}", manifest.kind());
        }
    }
    assert!(double.all().is_empty());

    let all = objects(Mode::StatefulSet);
    all.iter().for_each(|manifest| double.keep(manifest));
    let before = double.all();
    for manifest in &all {
        assert_eq!(cluster.try_apply(manifest).await.unwrap(), Effect::Same, "{}", manifest.kind());
    }
    let settings = KubernetesSettings { image: "another".to_owned(), ..KubernetesSettings::default() };
    let other = database(&settings, &Content::new(&settings.config(&Limits::default(), &Wal::Recycle)));
    for manifest in &other {
        let expected = if manifest.kind() == "StatefulSet" { Effect::Changed } else { Effect::Same };
        assert_eq!(cluster.try_apply(manifest).await.unwrap(), expected, "{}", manifest.kind());
    }
    assert_eq!(double.all(), before);
    assert!(double.objects.strange.lock().unwrap().is_empty());
}

#[tokio::test]
async fn each_way_to_fail_is_a_sentence_with_a_hint() {
    let double = Double::start();
    let cluster = cluster(&double, PATIENT);
    let all = objects(Mode::StatefulSet);
    let set = all.iter().find(|one| one.kind() == "StatefulSet").unwrap();
    for (code, expected) in [
        (401, "StatefulSet `bibd-postgres` is not allowed: words"),
        (403, "StatefulSet `bibd-postgres` is not allowed: words"),
        (409, "StatefulSet `bibd-postgres` is also somebody else's: words"),
        (422, "StatefulSet `bibd-postgres` is refused: words"),
        (400, "StatefulSet `bibd-postgres` is refused: words"),
        (500, "StatefulSet `bibd-postgres`: Kubernetes fails with 500: words"),
        (503, "StatefulSet `bibd-postgres`: Kubernetes fails with 503: words"),
    ] {
        double.fault("statefulsets", Fault::Answer(code, "words"));
        let error = cluster.try_apply(set).await.unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert!(!error.hint().is_empty());
    }
    // The others are not touched by it.
    assert_eq!(cluster.try_apply(&all[0]).await.unwrap(), Effect::Created);

    // A namespace or a kind that is not there answers to the apply alone.
    double.heal();
    double.fault("dryRun", Fault::Answer(404, "namespaces \"bib\" not found"));
    let missing = cluster.try_apply(set).await.unwrap_err();
    assert!(matches!(missing, ClusterError::Missing { .. }), "{missing}");
    assert!(missing.to_string().ends_with("namespaces \"bib\" not found") && missing.hint().contains("namespace"));
}

#[tokio::test]
async fn somebody_elses_object_is_a_conflict_and_is_never_forced() {
    let double = Double::start();
    let all = objects(Mode::StatefulSet);
    double.keep(&all[0]);
    let key = path(&all[0]);
    let mut object = double.get(&key).unwrap();
    object["metadata"]["labels"]["app.kubernetes.io/managed-by"] = json!("Helm");
    double.put(&key, object);
    let error = cluster(&double, PATIENT).try_apply(&all[0]).await.unwrap_err();
    assert!(matches!(error, ClusterError::Conflict { .. }) && error.to_string().contains("Helm"), "{error}");
    assert!(error.hint().contains("database.kubernetes.name"));
}

#[tokio::test]
async fn a_cluster_that_says_nothing_or_half_of_it_holds_nobody_up() {
    let double = Double::start();
    let manifest = &objects(Mode::StatefulSet)[0];
    double.fault("networkpolicies", Fault::Silence);
    let begun = Instant::now();
    let silent = cluster(&double, Duration::from_millis(300)).try_apply(manifest).await.unwrap_err();
    assert!(matches!(silent, ClusterError::Silent { .. }), "{silent}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(silent.to_string().ends_with("does not answer within 0.3 s") && !silent.hint().is_empty());

    double.fault("networkpolicies", Fault::HalfAnAnswer);
    let half = cluster(&double, PATIENT).try_apply(manifest).await.unwrap_err();
    assert!(matches!(half, ClusterError::Unreachable { .. }) && half.to_string().contains("127.0.0.1"), "{half}");

    double.fault("networkpolicies", Fault::Answer(200, "this is no such object"));
    let nonsense = cluster(&double, PATIENT).try_apply(manifest).await;
    assert!(nonsense.is_ok() || matches!(nonsense, Err(ClusterError::Unreachable { .. })), "{nonsense:?}");

    // Nobody listens.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let config = kube::Config::new(format!("http://127.0.0.1:{port}").parse().unwrap());
    let gone = Cluster::of(config, PATIENT).unwrap().try_apply(manifest).await.unwrap_err();
    assert!(matches!(gone, ClusterError::Unreachable { .. }) && gone.to_string().contains("refused"), "{gone}");
}
