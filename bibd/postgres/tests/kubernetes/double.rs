//! A double of the API server on a real socket: objects are kept with their versions, server-side apply of our manager
//! is done, the pod is listed and watched, and each way to fail is one of its faults. Not a cluster: `docs/not-here.md`.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bibd_postgres::kubernetes::Manifest;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the double does instead of answering well.
#[derive(Clone, Copy)]
pub enum Fault {
    Answer(u16, &'static str),
    Silence,
    HalfAnAnswer,
}

/// One change of an object, for watches.
#[derive(Clone)]
struct Change {
    version: u64,
    kind: &'static str,
    path: String,
    object: Value,
}

#[derive(Default)]
struct Kept {
    /// By path.
    objects: BTreeMap<String, Value>,
    /// What our manager applied last, by path: what it leaves out the next time goes.
    applied: BTreeMap<String, Value>,
    changes: Vec<Change>,
    version: u64,
    /// Watches that begin before it are told that it is too long ago.
    oldest: u64,
    events: Vec<Value>,
    logs: BTreeMap<String, String>,
    may_not: bool,
    /// Whether nobody installed the operator CloudNativePG: its kind of object is not known.
    has_no_operator: bool,
    /// Whether somebody ends pods that are deleted; else they are gone at once.
    has_node: bool,
}

pub struct Objects {
    kept: Mutex<Kept>,
    /// By method (or nothing) and a word of the target.
    faults: Mutex<Vec<(&'static str, &'static str, Fault)>>,
    /// By method and a word of the target: the object that somebody removes just then, once.
    vanishing: Mutex<Option<(&'static str, &'static str, &'static str)>>,
    /// Questions that were not of the form that they should have.
    pub strange: Mutex<Vec<String>>,
    /// Every question, `METHOD TARGET`.
    pub asked: Mutex<Vec<String>>,
    version: watch::Sender<u64>,
    cuts: watch::Sender<u64>,
}

/// Cheap to clone: the same server.
#[derive(Clone)]
pub struct Double {
    pub objects: Arc<Objects>,
    pub port: u16,
}

impl Double {
    /// It serves in a runtime of its own, so that it outlives whoever waits for it without one.
    pub fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let objects = Arc::new(Objects {
            kept: Mutex::default(),
            faults: Mutex::default(),
            vanishing: Mutex::default(),
            strange: Mutex::default(),
            asked: Mutex::default(),
            version: watch::Sender::new(0),
            cuts: watch::Sender::new(0),
        });
        let shared = objects.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                let mut connections = tokio::task::JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    connections.spawn(serve(stream, shared.clone()));
                }
            });
        });
        Self { objects, port }
    }

    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// To every question whose target has the word.
    pub fn fault(&self, word: &'static str, fault: Fault) {
        self.fault_on("", word, fault);
    }

    /// To those of one method.
    pub fn fault_on(&self, method: &'static str, word: &'static str, fault: Fault) {
        let mut faults = self.objects.faults.lock().unwrap();
        faults.retain(|(known, at, _)| (*known, *at) != (method, word));
        faults.push((method, word, fault));
    }

    /// Somebody removes `path` when the question of this method and word comes.
    pub fn vanishes(&self, method: &'static str, word: &'static str, path: &'static str) {
        *self.objects.vanishing.lock().unwrap() = Some((method, word, path));
    }

    pub fn heal(&self) {
        self.objects.faults.lock().unwrap().clear();
    }

    /// What a person applied, with what a cluster adds by itself.
    pub fn keep(&self, manifest: &Manifest) {
        let mut object = manifest.value().clone();
        object["metadata"]["creationTimestamp"] = json!("2026-11-21T00:00:00Z");
        if manifest.kind() == "StatefulSet" {
            object["spec"]["template"]["spec"]["schedulerName"] = json!("default-scheduler");
        }
        self.put(&path(manifest), object);
    }

    /// Puts an object, as a controller would.
    pub fn put(&self, path: &str, object: Value) {
        self.objects.put(path, object);
    }

    /// Changes what is there, as a controller would; nothing happens where it is so already, or is not there.
    pub fn update(&self, path: &str, change: impl FnOnce(&mut Value)) {
        self.objects.update(path, change);
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.objects.kept.lock().unwrap().objects.get(path).cloned()
    }

    pub fn remove(&self, path: &str) {
        self.objects.remove(path);
    }

    /// Every object by its path.
    pub fn all(&self) -> BTreeMap<String, Value> {
        self.objects.kept.lock().unwrap().objects.clone()
    }

    /// The versions of all objects.
    pub fn versions(&self) -> BTreeMap<String, String> {
        let version = |object: &Value| object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        self.all().into_iter().map(|(path, object)| (path, version(&object))).collect()
    }

    pub fn with_node(&self) {
        self.objects.kept.lock().unwrap().has_node = true;
    }

    pub fn without_operator(&self) {
        self.objects.kept.lock().unwrap().has_no_operator = true;
    }

    pub fn forbid_creation(&self) {
        self.objects.kept.lock().unwrap().may_not = true;
    }

    pub fn note(&self, about: &str, reason: &str, message: &str) {
        let event = json!({ "metadata": { "name": format!("{about}.{reason}"), "namespace": "bib" }, "type": "Warning",
            "reason": reason, "message": message, "involvedObject": { "name": about },
            "lastTimestamp": "2026-11-21T00:00:00Z" });
        self.objects.kept.lock().unwrap().events.push(event);
    }

    /// What a container's log says.
    pub fn log(&self, container: &str, text: &str) {
        self.objects.kept.lock().unwrap().logs.insert(container.to_owned(), text.to_owned());
    }

    /// Every watch that is open breaks off.
    pub fn cut_watches(&self) {
        self.objects.cuts.send_modify(|count| *count += 1);
    }

    /// What happened so far is forgotten: who goes on from there is told so.
    pub fn forget(&self) {
        let mut kept = self.objects.kept.lock().unwrap();
        kept.version += 1;
        kept.oldest = kept.version;
    }

    pub fn count(&self, wanted: impl Fn(&str) -> bool) -> usize {
        self.objects.asked.lock().unwrap().iter().filter(|line| wanted(line)).count()
    }
}

impl Objects {
    fn put(&self, path: &str, object: Value) {
        let version = self.kept.lock().unwrap().put(path, object);
        self.version.send_replace(version);
    }

    fn update(&self, path: &str, change: impl FnOnce(&mut Value)) {
        let mut kept = self.kept.lock().unwrap();
        let Some(is) = kept.objects.get(path).cloned() else { return };
        let mut would = is.clone();
        change(&mut would);
        if would != is {
            let version = kept.put(path, would);
            drop(kept);
            self.version.send_replace(version);
        }
    }

    fn remove(&self, path: &str) {
        let mut kept = self.kept.lock().unwrap();
        let Some(mut object) = kept.objects.remove(path) else { return };
        kept.applied.remove(path);
        kept.version += 1;
        let version = kept.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        kept.changes.push(Change { version, kind: "DELETED", path: path.to_owned(), object });
        self.version.send_replace(version);
    }
}

impl Kept {
    /// The new version.
    fn put(&mut self, path: &str, mut object: Value) -> u64 {
        let kind = if self.objects.contains_key(path) { "MODIFIED" } else { "ADDED" };
        self.version += 1;
        let version = self.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("uid-{version}"));
        }
        self.objects.insert(path.to_owned(), object.clone());
        self.changes.push(Change { version, kind, path: path.to_owned(), object });
        version
    }

    /// What a list of these objects has.
    fn listed(&self, path: &str, query: &str) -> Vec<Value> {
        let asked = |name: &str| {
            let value = query.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}=")));
            value.map(|text| text.replace("%3D", "=").replace("%2F", "/").replace("%2C", ","))
        };
        let inside = format!("{path}/");
        let all = self.objects.iter().filter(|(at, _)| at.starts_with(&inside) && !at[inside.len()..].contains('/'));
        let name = asked("fieldSelector").and_then(|text| text.strip_prefix("metadata.name=").map(str::to_owned));
        let labels = asked("labelSelector").unwrap_or_default();
        let fits = |object: &Value| {
            labels
                .split(',')
                .filter_map(|pair| pair.split_once('='))
                .all(|(key, value)| object["metadata"]["labels"][key] == value)
        };
        let named = |at: &str| name.as_ref().is_none_or(|name| at[inside.len()..] == *name);
        all.filter(|(at, object)| named(at) && fits(object)).map(|(_, object)| object.clone()).collect()
    }
}

/// Where the API has an object.
pub fn path(manifest: &Manifest) -> String {
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
        if stream.read_exact(&mut body).await.is_err() {
            return;
        }
        let (method, target) = {
            let mut words = head[0].split(' ');
            (words.next().unwrap().to_owned(), words.next().unwrap().to_owned())
        };
        objects.asked.lock().unwrap().push(format!("{method} {target}"));
        let gone = objects.vanishing.lock().unwrap().take_if(|(on, word, _)| *on == method && target.contains(*word));
        if let Some((_, _, path)) = gone {
            objects.remove(path);
        }
        let fault = {
            let faults = objects.faults.lock().unwrap();
            let fits =
                |(on, word, _): &&(&str, &str, Fault)| (on.is_empty() || *on == method) && target.contains(*word);
            faults.iter().find(fits).map(|(_, _, fault)| *fault)
        };
        let (code, answer) = match fault {
            Some(Fault::Silence) => return std::future::pending().await,
            Some(Fault::HalfAnAnswer) => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{").await;
                return;
            }
            Some(Fault::Answer(code, message)) => (code, status(code, message)),
            None if target.contains("watch=true") || target.contains("watch=1") => {
                return watched(&mut stream, &objects, &target).await;
            }
            None => answer(&objects, &method, &target, &head, &body),
        };
        // A log is no object.
        let text = answer.as_str().map_or_else(|| answer.to_string(), str::to_owned);
        let head =
            format!("HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", text.len());
        if stream.write_all((head + &text).as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Sends what changes until somebody cuts it, or the other side is gone.
async fn watched(stream: &mut BufReader<TcpStream>, objects: &Objects, target: &str) {
    let path = target.split('?').next().unwrap().to_owned();
    let parameter = |name: &str| {
        let value = target.split(['?', '&']).find_map(|pair| pair.strip_prefix(&format!("{name}=")));
        value.unwrap_or_default().replace("%3D", "=").replace("%2C", ",")
    };
    let mut from: u64 = parameter("resourceVersion").parse().unwrap_or(0);
    let name = parameter("fieldSelector").strip_prefix("metadata.name=").map(str::to_owned);
    if name.is_none() {
        objects.strange.lock().unwrap().push(format!("a watch that bibd's role does not allow: {target}"));
    }
    let (mut versions, mut cuts) = (objects.version.subscribe(), objects.cuts.subscribe());
    cuts.mark_unchanged();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    if stream.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    let wanted = name.map(|name| format!("{path}/{name}")).unwrap_or_default();
    loop {
        versions.mark_unchanged();
        let (lines, too_old) = {
            let kept = objects.kept.lock().unwrap();
            let changes: Vec<_> = kept.changes.iter().filter(|one| one.version > from).cloned().collect();
            (changes, from < kept.oldest)
        };
        let mut events = Vec::new();
        if too_old {
            events.push(json!({ "type": "ERROR", "object": status(410, "too old resource version") }));
        } else {
            for change in lines {
                from = change.version;
                if change.path == wanted {
                    events.push(json!({ "type": change.kind, "object": change.object }));
                }
            }
        }
        for event in events {
            let line = format!("{event}\n");
            if stream.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes()).await.is_err() {
                return;
            }
        }
        if too_old {
            let _ = stream.write_all(b"0\r\n\r\n").await;
            return;
        }
        tokio::select! {
            _ = versions.changed() => {}
            // Without the end that the form asks for.
            _ = cuts.changed() => return,
        }
    }
}

pub fn status(code: u16, message: &str) -> Value {
    let reason = if code == 404 { "NotFound" } else { "Whatever" };
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message, "reason": reason })
}

fn answer(objects: &Objects, method: &str, target: &str, head: &[String], body: &[u8]) -> (u16, Value) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if path.contains("/clusters") && objects.kept.lock().unwrap().has_no_operator {
        return (404, status(404, "the server could not find the requested resource"));
    }
    match method {
        "GET" => read(objects, path, query),
        "PATCH" => apply(objects, path, query, head, body),
        "DELETE" => {
            let found = objects.kept.lock().unwrap().objects.get(path).cloned();
            let Some(mut found) = found else { return (404, status(404, "not found")) };
            let options: Value = serde_json::from_slice(body).unwrap_or_default();
            let has_node = objects.kept.lock().unwrap().has_node;
            if path.contains("/pods/") && has_node {
                found["metadata"]["deletionTimestamp"] = json!("2026-11-21T00:00:00Z");
                found["metadata"]["deletionGracePeriodSeconds"] = options["gracePeriodSeconds"].clone();
                objects.put(path, found);
            } else {
                objects.remove(path);
            }
            (200, json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" }))
        }
        "POST" if path.ends_with("/selfsubjectaccessreviews") => {
            let mut review: Value = serde_json::from_slice(body).unwrap();
            review["status"] = json!({ "allowed": !objects.kept.lock().unwrap().may_not });
            (201, review)
        }
        _ => {
            objects.strange.lock().unwrap().push(format!("{method} {target}"));
            (405, status(405, "only to be asked"))
        }
    }
}

fn read(objects: &Objects, path: &str, query: &str) -> (u16, Value) {
    let kept = objects.kept.lock().unwrap();
    if let Some(pod) = path.strip_suffix("/log") {
        let container = query.split('&').find_map(|pair| pair.strip_prefix("container=")).unwrap_or_default();
        return match kept.logs.get(container).filter(|_| kept.objects.contains_key(pod)) {
            Some(text) => (200, Value::String(text.clone())),
            None => (404, status(404, "no log")),
        };
    }
    let list = |kind: &str, items: Vec<Value>| {
        let version = kept.version.to_string();
        json!({ "kind": kind, "apiVersion": "v1", "metadata": { "resourceVersion": version }, "items": items })
    };
    if path.ends_with("/events") {
        return (200, list("EventList", kept.events.clone()));
    }
    for (plural, kind) in
        [("/pods", "PodList"), ("/persistentvolumeclaims", "PersistentVolumeClaimList"), ("/clusters", "ClusterList")]
    {
        if path.ends_with(plural) {
            return (200, list(kind, kept.listed(path, query)));
        }
    }
    kept.objects.get(path).map_or_else(|| (404, status(404, "not found")), |object| (200, object.clone()))
}

fn apply(objects: &Objects, path: &str, query: &str, head: &[String], body: &[u8]) -> (u16, Value) {
    let is_apply = head.iter().any(|line| line.eq_ignore_ascii_case("content-type: application/apply-patch+yaml"));
    if !is_apply || !query.contains("fieldManager=bibd") || query.contains("force=true") {
        objects.strange.lock().unwrap().push(format!("{path}?{query} {head:?}"));
        return (400, status(400, "this is no apply of bibd's"));
    }
    let given: Value = serde_json::from_slice(body).unwrap();
    // One who applies and a controller that writes a status do not undo one another.
    let mut kept = objects.kept.lock().unwrap();
    let (is, before) = (kept.objects.get(path).cloned(), kept.applied.get(path).cloned());
    // One that names the object which it is for makes no other.
    let uid = |object: &Value| object["metadata"]["uid"].as_str().map(str::to_owned);
    if uid(&given).is_some_and(|wanted| is.as_ref().and_then(uid) != Some(wanted)) {
        return (
            409,
            status(409, "uid mismatch: the provided object specified a uid, and no existing object was found"),
        );
    }
    let owner = is.as_ref().and_then(|is| is["metadata"]["labels"]["app.kubernetes.io/managed-by"].as_str());
    if let Some(owner) = owner.filter(|owner| *owner != "bibd") {
        let field = ".metadata.labels.app.kubernetes.io/managed-by";
        return (409, status(409, &format!("Apply failed with 1 conflict: conflict with \"{owner}\": {field}")));
    }
    let mut would = is.clone().unwrap_or_else(|| json!({}));
    if let Some(before) = before {
        forgo(&mut would, &before, &given);
    }
    merge(&mut would, &given);
    if query.contains("dryRun=All") {
        if is.as_ref() != Some(&would) {
            would["metadata"]["resourceVersion"] = json!("8");
        }
        return (200, would);
    }
    let port = &would["spec"]["ports"][0];
    if would["spec"]["type"] == "NodePort" && port["nodePort"].is_null() {
        let port = free_port();
        would["spec"]["ports"][0]["nodePort"] = json!(port);
    }
    kept.applied.insert(path.to_owned(), given);
    if is.as_ref() != Some(&would) {
        let version = kept.put(path, would);
        objects.version.send_replace(version);
    }
    (200, kept.objects[path].clone())
}

/// Below those that the system gives out, so that it stays free while a server stands still.
fn free_port() -> u16 {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = std::process::id() + 7 * GIVEN.fetch_add(1, Ordering::SeqCst);
        let port = u16::try_from(10_000 + step % 10_000).unwrap();
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// What was applied before and is not any more goes.
fn forgo(is: &mut Value, before: &Value, given: &Value) {
    let (Value::Object(is), Value::Object(before)) = (is, before) else { return };
    for (name, value) in before {
        match given.get(name) {
            None => drop(is.remove(name)),
            Some(given) => {
                if let Some(is) = is.get_mut(name) {
                    forgo(is, value, given);
                }
            }
        }
    }
}

/// Lists are taken as they are given, but that items keep what a cluster added to them.
fn merge(is: &mut Value, given: &Value) {
    match (is, given) {
        (Value::Object(is), Value::Object(given)) => {
            for (name, value) in given {
                merge(is.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (Value::Array(is), Value::Array(given)) if is.len() == given.len() => {
            is.iter_mut().zip(given).for_each(|(is, given)| merge(is, given));
        }
        (is, given) => *is = given.clone(),
    }
}
