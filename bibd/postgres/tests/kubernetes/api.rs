//! A cluster that is asked, against a double of its API on a real socket: objects are kept, server-side apply of our
//! manager is done, and each way to fail is one of its faults. Not a cluster: `docs/not-here.md`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bibd_postgres::kubernetes::manifests::database;
use bibd_postgres::kubernetes::{Cluster, ClusterError, Content, Effect, KubernetesSettings, Manifest, Mode};
use bibd_postgres::{Limits, Wal};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What the double does instead of answering well, to a question whose path holds the word.
#[derive(Clone, Copy)]
enum Fault {
    Answer(u16, &'static str),
    Silence,
    HalfAnAnswer,
}

#[derive(Default)]
struct Objects {
    /// By path.
    kept: Mutex<BTreeMap<String, Value>>,
    faults: Mutex<BTreeMap<&'static str, Fault>>,
    /// Questions that were not of the form that they should have.
    strange: Mutex<Vec<String>>,
}

struct Double {
    objects: Arc<Objects>,
    port: u16,
}

impl Double {
    #[allow(clippy::disallowed_methods, reason = "a test has no supervisor")]
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, objects) = (listener.local_addr().unwrap().port(), Arc::new(Objects::default()));
        let shared = objects.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        Self { objects, port }
    }

    fn cluster(&self, deadline: Duration) -> Cluster {
        let config = kube::Config::new(format!("http://127.0.0.1:{}", self.port).parse().unwrap());
        Cluster::of(config, deadline).unwrap()
    }

    fn fault(&self, word: &'static str, fault: Fault) {
        self.objects.faults.lock().unwrap().insert(word, fault);
    }

    /// What a person applied, with what a cluster adds by itself.
    fn keep(&self, manifest: &Manifest) {
        let mut object = manifest.value().clone();
        object["metadata"]["uid"] = json!("u");
        object["metadata"]["resourceVersion"] = json!("7");
        object["metadata"]["creationTimestamp"] = json!("2026-11-21T00:00:00Z");
        if manifest.kind() == "StatefulSet" {
            object["spec"]["template"]["spec"]["schedulerName"] = json!("default-scheduler");
        }
        self.objects.kept.lock().unwrap().insert(path(manifest), object);
    }
}

/// Where the API has an object.
fn path(manifest: &Manifest) -> String {
    let version = manifest.api_version();
    let root = if version.contains('/') { "apis" } else { "api" };
    let plural = match manifest.kind() {
        "NetworkPolicy" => "networkpolicies".to_owned(),
        kind => format!("{}s", kind.to_ascii_lowercase()),
    };
    format!("/{root}/{version}/namespaces/{}/{plural}/{}", manifest.namespace().unwrap(), manifest.name())
}

async fn serve(stream: TcpStream, objects: Arc<Objects>) {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut head, mut length) = (Vec::new(), 0);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            let line = line.trim_end().to_owned();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            head.push(line);
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        let (method, target) = {
            let mut words = head[0].split(' ');
            (words.next().unwrap().to_owned(), words.next().unwrap().to_owned())
        };
        let fault = {
            let faults = objects.faults.lock().unwrap();
            faults.iter().find(|(word, _)| target.contains(**word)).map(|(_, fault)| *fault)
        };
        let (code, answer) = match fault {
            Some(Fault::Silence) => return std::future::pending().await,
            Some(Fault::HalfAnAnswer) => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{").await;
                return;
            }
            Some(Fault::Answer(code, message)) => (code, status(code, message)),
            None => answer(&objects, &method, &target, &head, &body),
        };
        let text = answer.to_string();
        let head =
            format!("HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", text.len());
        if stream.write_all((head + &text).as_bytes()).await.is_err() {
            return;
        }
    }
}

fn status(code: u16, message: &str) -> Value {
    let reason = if code == 404 { "NotFound" } else { "Whatever" };
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message, "reason": reason })
}

fn answer(objects: &Objects, method: &str, target: &str, head: &[String], body: &[u8]) -> (u16, Value) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut kept = objects.kept.lock().unwrap();
    match method {
        "GET" => kept.get(path).map_or_else(|| (404, status(404, "not found")), |object| (200, object.clone())),
        "PATCH" => {
            let apply = head.iter().any(|line| line.eq_ignore_ascii_case("content-type: application/apply-patch+yaml"));
            if !apply || !query.contains("fieldManager=bibd") || query.contains("force=true") {
                objects.strange.lock().unwrap().push(format!("{target} {head:?}"));
                return (400, status(400, "this is no apply of bibd's"));
            }
            let (given, is): (Value, _) = (serde_json::from_slice(body).unwrap(), kept.get(path).cloned());
            let owner = is.as_ref().and_then(|is| is["metadata"]["labels"]["app.kubernetes.io/managed-by"].as_str());
            if let Some(owner) = owner.filter(|owner| *owner != "bibd") {
                let field = ".metadata.labels.app.kubernetes.io/managed-by";
                return (
                    409,
                    status(409, &format!("Apply failed with 1 conflict: conflict with \"{owner}\": {field}")),
                );
            }
            let mut would = is.clone().unwrap_or_else(|| json!({}));
            merge(&mut would, &given);
            if is.as_ref() != Some(&would) {
                would["metadata"]["resourceVersion"] = json!("8");
            }
            if !query.contains("dryRun=All") {
                kept.insert(path.to_owned(), would.clone());
            }
            (200, would)
        }
        _ => {
            objects.strange.lock().unwrap().push(format!("{method} {target}"));
            (405, status(405, "only to be asked"))
        }
    }
}

fn merge(is: &mut Value, given: &Value) {
    match (is, given) {
        (Value::Object(is), Value::Object(given)) => {
            for (name, value) in given {
                merge(is.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (is, given) => *is = given.clone(),
    }
}

fn objects(mode: Mode) -> Vec<Manifest> {
    let settings = KubernetesSettings { mode, ..KubernetesSettings::default() };
    database(&settings, &Content::new(&settings.config(&Limits::default(), &Wal::Recycle)))
}

const PATIENT: Duration = Duration::from_secs(20);

#[tokio::test]
async fn what_an_apply_would_do_is_told_and_nothing_is_done() {
    let double = Double::new().await;
    let cluster = double.cluster(PATIENT);
    for mode in [Mode::StatefulSet, Mode::Operator] {
        for manifest in objects(mode) {
            assert_eq!(cluster.try_apply(&manifest).await.unwrap(), Effect::Created, "{}", manifest.kind());
        }
    }
    assert!(double.objects.kept.lock().unwrap().is_empty());

    let all = objects(Mode::StatefulSet);
    all.iter().for_each(|manifest| double.keep(manifest));
    let before = double.objects.kept.lock().unwrap().clone();
    for manifest in &all {
        assert_eq!(cluster.try_apply(manifest).await.unwrap(), Effect::Same, "{}", manifest.kind());
    }
    let settings = KubernetesSettings { image: "another".to_owned(), ..KubernetesSettings::default() };
    let other = database(&settings, &Content::new(&settings.config(&Limits::default(), &Wal::Recycle)));
    for manifest in &other {
        let expected = if manifest.kind() == "StatefulSet" { Effect::Changed } else { Effect::Same };
        assert_eq!(cluster.try_apply(manifest).await.unwrap(), expected, "{}", manifest.kind());
    }
    assert_eq!(*double.objects.kept.lock().unwrap(), before);
    assert!(double.objects.strange.lock().unwrap().is_empty());
}

#[tokio::test]
async fn each_way_to_fail_is_a_sentence_with_a_hint() {
    let double = Double::new().await;
    let cluster = double.cluster(PATIENT);
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
    double.objects.faults.lock().unwrap().clear();
    double.fault("dryRun", Fault::Answer(404, "namespaces \"bib\" not found"));
    let missing = cluster.try_apply(set).await.unwrap_err();
    assert!(matches!(missing, ClusterError::Missing { .. }), "{missing}");
    assert!(missing.to_string().ends_with("namespaces \"bib\" not found") && missing.hint().contains("namespace"));
}

#[tokio::test]
async fn somebody_elses_object_is_a_conflict_and_is_never_forced() {
    let double = Double::new().await;
    let all = objects(Mode::StatefulSet);
    double.keep(&all[0]);
    let key = path(&all[0]);
    double.objects.kept.lock().unwrap().get_mut(&key).unwrap()["metadata"]["labels"]["app.kubernetes.io/managed-by"] =
        json!("Helm");
    let error = double.cluster(PATIENT).try_apply(&all[0]).await.unwrap_err();
    assert!(matches!(error, ClusterError::Conflict { .. }) && error.to_string().contains("Helm"), "{error}");
    assert!(error.hint().contains("database.kubernetes.name"));
}

#[tokio::test]
async fn a_cluster_that_says_nothing_or_half_of_it_holds_nobody_up() {
    let double = Double::new().await;
    let manifest = &objects(Mode::StatefulSet)[0];
    double.fault("networkpolicies", Fault::Silence);
    let begun = Instant::now();
    let silent = double.cluster(Duration::from_millis(300)).try_apply(manifest).await.unwrap_err();
    assert!(matches!(silent, ClusterError::Silent { .. }), "{silent}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(silent.to_string().ends_with("does not answer within 0.3 s") && !silent.hint().is_empty());

    double.fault("networkpolicies", Fault::HalfAnAnswer);
    let half = double.cluster(PATIENT).try_apply(manifest).await.unwrap_err();
    assert!(matches!(half, ClusterError::Unreachable { .. }) && half.to_string().contains("127.0.0.1"), "{half}");

    double.fault("networkpolicies", Fault::Answer(200, "this is no such object"));
    let nonsense = double.cluster(PATIENT).try_apply(manifest).await;
    assert!(nonsense.is_ok() || matches!(nonsense, Err(ClusterError::Unreachable { .. })), "{nonsense:?}");

    // Nobody listens.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let config = kube::Config::new(format!("http://127.0.0.1:{port}").parse().unwrap());
    let gone = Cluster::of(config, PATIENT).unwrap().try_apply(manifest).await.unwrap_err();
    assert!(matches!(gone, ClusterError::Unreachable { .. }) && gone.to_string().contains("refused"), "{gone}");
}
