//! Somebody who publishes a folder with `bib-client` and remembers what was acknowledged.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bib_client::{Client, Download, Options, Publish, Published, Random, Silent, Target};
use bib_core::Hash;
use bib_identity::TimeSource;
use bib_identity::ssh::{UserKey, generate};
use bibd::clock::{Clock as _, SystemClock};
use futures::StreamExt as _;
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

pub const DATASET: &str = "fault/data";

/// Path and hash of every file.
pub type Listing = BTreeMap<PathBuf, Hash>;

pub struct Publisher {
    home: tempfile::TempDir,
    key: Arc<UserKey>,
    rng: StdRng,
    serial: u32,
    clients: AtomicU64,
    /// Every acknowledged version with what it holds.
    pub acknowledged: BTreeMap<String, Listing>,
}

impl Publisher {
    pub fn new(seed: u64) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut rng = StdRng::seed_from_u64(seed);
        let key = Arc::new(generate(&home.path().join("key"), "fault test", &mut rng).unwrap());
        fs::create_dir(home.path().join("folder")).unwrap();
        Self { home, key, rng, serial: 0, clients: AtomicU64::new(seed), acknowledged: BTreeMap::new() }
    }

    pub fn folder(&self) -> PathBuf {
        self.home.path().join("folder")
    }

    /// A number below `end`, from the seed.
    pub fn below(&mut self, end: u64) -> u64 {
        self.rng.gen_range(0..end)
    }

    /// New files and one changed: about eight chunks of bytes that nobody has seen, and a pack.
    pub fn change(&mut self) {
        self.serial += 1;
        for (name, bytes) in [("large", 4 << 20), ("middle", 700 << 10), ("small", 3 << 10), ("tiny", 40)] {
            let path = self.folder().join(format!("{name}-{}", self.serial % 3));
            let mut content = vec![0; bytes];
            self.rng.fill_bytes(&mut content);
            fs::write(path, content).unwrap();
        }
    }

    pub fn client(&self, socket: &Path) -> Client {
        // Two clients never make the same request id.
        let rng = StdRng::seed_from_u64(self.clients.fetch_add(1 << 32, Ordering::Relaxed));
        let rng = Arc::new(Mutex::new(rng));
        let options = Options::new(
            TimeSource::new(|| SystemClock.now()),
            Random::new(move |bytes| rng.lock().unwrap().fill_bytes(bytes)),
            self.home.path().join("config"),
            self.home.path().join("cache"),
        );
        Client::connect(Target::Socket(socket.to_owned()), options).unwrap()
    }

    pub async fn publish(&mut self, client: &Client) -> bib_client::Result<Published> {
        let listing = listing(&self.folder());
        let publish = Publish::new(self.folder(), DATASET.parse().unwrap(), "a round")
            .with_license("CC0-1.0")
            .with_key(Arc::clone(&self.key))
            .creating();
        let published = publish.run(client, Arc::new(Silent)).await?;
        self.acknowledged.insert(published.version.clone(), listing);
        Ok(published)
    }

    /// Every version that the node shows is whole; each acknowledged one is among them. `deep` downloads all of the
    /// acknowledged and compares, else only the last.
    pub async fn check(&self, client: &Client, deep: bool) {
        if self.acknowledged.is_empty() {
            return;
        }
        let mut shown = Vec::new();
        let mut versions = client.datasets().versions(DATASET);
        while let Some(version) = versions.next().await {
            shown.push(version.unwrap().version);
        }
        for version in &shown {
            let mut verify = client.datasets().verify_on_node(&format!("{DATASET}@{version}")).await.unwrap();
            let mut finished = false;
            while let Some(answer) = verify.next().await {
                let answer = answer.unwrap();
                assert!(answer.damaged.is_empty(), "{version}: {:?}", answer.damaged);
                finished |= answer.finished;
            }
            assert!(finished, "{version} was not verified to the end");
        }
        for (number, (version, expected)) in self.acknowledged.iter().enumerate() {
            assert!(shown.contains(version), "the acknowledged version {version} is gone");
            if deep || number + 1 == self.acknowledged.len() {
                let target = self.home.path().join(format!("down-{version}"));
                Download::new(format!("{DATASET}@{version}"), &target).run(client, Arc::new(Silent)).await.unwrap();
                assert_eq!(&listing(&target), expected, "{version}");
                fs::remove_dir_all(target).unwrap();
            }
        }
    }
}

fn listing(folder: &Path) -> Listing {
    let mut files = Listing::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        // What a download keeps to resume is not the version's.
        if entry.file_type().unwrap().is_file() && !entry.file_name().to_string_lossy().starts_with(".bib") {
            files.insert(entry.file_name().into(), Hash::of(&fs::read(entry.path()).unwrap()));
        }
    }
    files
}

/// The audit log says OK to the end.
pub async fn audit_is_ok(client: &Client) {
    let mut answers = client.admin().verify_audit().await.unwrap();
    let mut verdict = None;
    while let Some(answer) = answers.next().await {
        let answer = answer.unwrap();
        if !answer.verdict.is_empty() {
            verdict = Some((answer.verdict, answer.explanation));
        }
    }
    let (verdict, explanation) = verdict.expect("a verdict");
    assert_eq!(verdict, "OK", "{explanation}");
}
