//! Collection against a model: whatever happens in whatever order, no chunk that a kept version names is ever missing.
#![allow(clippy::unwrap_used)]
#![allow(clippy::print_stderr, reason = "the seed of a round that fails")]

#[path = "support/publish.rs"]
mod publish;
mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use bib_core::Hash;
use bib_core::access::NodeRole;
use bibd::errors::ErrorCode;
use bibd::services::ServiceError;
use bibd::services::commit::Committed;
use publish::{Described, Folder, describe};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use support::{Lab, Person};

/// Acts in a round.
const ACTS: usize = 6;
/// Rounds; `BIB_MODEL_ROUNDS` asks for more.
const ROUNDS: u64 = 50;
/// Different files: few, so that versions share chunks and uploads meet doomed ones.
const FILES: u64 = 12;

fn rounds() -> u64 {
    std::env::var("BIB_MODEL_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS)
}

fn file(number: u64) -> Vec<u8> {
    let block = |i: u64| *Hash::of(&[number.to_le_bytes(), i.to_le_bytes()].concat()).as_bytes();
    (0..).flat_map(block).take(2_000).collect()
}

fn random_folder(random: &mut StdRng) -> Folder {
    (0..random.gen_range(1..4)).map(|_| random.gen_range(0..FILES)).map(|n| (format!("f{n}"), file(n))).collect()
}

/// What must be there.
#[derive(Default)]
struct Model {
    /// Kept versions and what they hold.
    kept: BTreeMap<String, Folder>,
    /// Uploads that were begun and not committed: dataset, session, folder.
    open: Vec<(bibd::services::upload::Begun, Described, Folder)>,
    published: u64,
}

impl Model {
    async fn act(&mut self, lab: &Lab, ada: &Person, admin: &Person, random: &mut StdRng) {
        match random.gen_range(0..9) {
            // Put.
            0 | 1 => {
                let folder = random_folder(random);
                let name = format!("t/d{}", random.gen_range(0..3));
                let outcome = lab.publish(ada, &name, &folder).await.unwrap();
                self.published += 1;
                self.kept.insert(outcome.version().hash.to_string(), folder);
            }
            // Have, and leave it at that for now.
            2 => {
                let folder = random_folder(random);
                let described = describe(&folder);
                let begun = lab.begin(ada, &format!("t/late{}", self.open.len())).await.unwrap();
                lab.stage(ada, begun.upload.id, &described).await.unwrap();
                self.open.push((begun, described, folder));
            }
            // Commit, sending again what is asked for.
            3 => {
                let Some((begun, described, folder)) = self.open.pop() else { return };
                self.commit(lab, ada, &begun, &described, folder).await;
            }
            // Withdraw.
            4 => {
                let Some(reference) = self.kept.keys().nth(random.gen_range(0..self.kept.len().max(1))).cloned() else {
                    return;
                };
                let verb = bib_core::access::Verb::DatasetWithdraw;
                let mut session = lab.base.db.read().await.unwrap();
                let found = bibd::services::reference::version(&lab.base, &ada.call, &mut session, &reference, verb);
                let found = found.await.unwrap();
                drop(session);
                let named = lab.data.collector.named_chunks(&ada.call, &reference).await.unwrap();
                lab.datasets.withdraw(&ada.call, &found.seen, &found.version, "a test").await.unwrap();
                if random.gen_bool(0.5) {
                    lab.data.collector.purge(&ada.call, named).await.unwrap();
                }
                self.kept.remove(&reference);
            }
            // Delete.
            5 => {
                let name = format!("t/d{}", random.gen_range(0..3));
                if lab.datasets.delete(&ada.call, &name).await.is_ok() {
                    self.forget(lab, ada).await;
                }
            }
            // Collect, at once or after the trash has grown old.
            6 | 7 => {
                if random.gen_bool(0.2) {
                    lab.advance(Duration::from_secs(25 * 60 * 60));
                    self.open.clear();
                }
                lab.data.collector.collect(&admin.call, false).await.unwrap();
            }
            // Put and collect at the same time.
            _ => {
                let folder = random_folder(random);
                let (outcome, collected) = tokio::join!(
                    self.publish_patiently(lab, ada, "t/both", &folder),
                    lab.data.collector.collect(&admin.call, false)
                );
                collected.unwrap();
                self.kept.insert(outcome, folder);
            }
        }
    }

    /// Publishes as a client does: what is asked for again is sent again.
    async fn publish_patiently(&self, lab: &Lab, who: &Person, name: &str, folder: &Folder) -> String {
        let described = describe(folder);
        let begun = lab.begin(who, name).await.unwrap();
        lab.stage(who, begun.upload.id, &described).await.unwrap();
        commit(lab, who, &begun, &described).await
    }

    async fn commit(
        &mut self,
        lab: &Lab,
        who: &Person,
        begun: &bibd::services::upload::Begun,
        described: &Described,
        folder: Folder,
    ) {
        let version = commit(lab, who, begun, described).await;
        self.kept.insert(version, folder);
    }

    /// Deleted with their dataset.
    async fn forget(&mut self, lab: &Lab, who: &Person) {
        let mut kept = BTreeMap::new();
        for (version, folder) in std::mem::take(&mut self.kept) {
            let mut session = lab.base.db.read().await.unwrap();
            let verb = bib_core::access::Verb::DatasetShow;
            if bibd::services::reference::version(&lab.base, &who.call, &mut session, &version, verb).await.is_ok() {
                kept.insert(version, folder);
            }
        }
        self.kept = kept;
    }

    async fn check(&self, lab: &Lab, ada: &Person) {
        for (version, folder) in &self.kept {
            assert_eq!(lab.download(ada, version).await.unwrap(), *folder, "version {version}");
        }
        let missing = lab
            .number(
                "SELECT count(*) FROM bib.page_spans s JOIN bib.page_chunks p ON p.page = s.page
                 LEFT JOIN bib.chunks c ON c.hash = p.chunk AND c.state = 0 WHERE c.hash IS NULL",
            )
            .await;
        assert_eq!(missing, 0, "chunks that versions name are not live");
    }
}

/// Commits as a client does: what is asked for again is sent again, and a latest version that moved (a withdrawal moves
/// it too) is built upon.
async fn commit(lab: &Lab, who: &Person, begun: &bibd::services::upload::Begun, described: &Described) -> String {
    let mut parents: Vec<Hash> = begun.latest.iter().map(|version| version.hash).collect();
    for _ in 0..5 {
        let mut statement = lab.statement(who, begun, described, parents.clone());
        // Versions of the same folder differ.
        statement.message = lab.base.ids.uuid().to_string();
        let wanted = lab.signed(who, begun.upload.id, &statement, described.layout_root.hash);
        match lab.data.commits.commit(&who.call, wanted).await {
            Ok(Committed::Version { version, .. }) => return version.hash.to_string(),
            Ok(Committed::Resend(chunks)) => {
                let again = chunks.into_iter().map(|hash| (hash, described.chunks[&hash].clone()));
                lab.send_chunks(who, begun.upload.id, again.collect::<Vec<_>>()).await.unwrap();
            }
            Err(ServiceError::Conflict { code: ErrorCode::LATEST_MOVED, values, .. }) => {
                let latest = values.iter().find(|(key, _)| *key == "latest").map(|(_, value)| value.parse());
                parents = latest.and_then(Result::ok).into_iter().collect();
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    panic!("asked for the same chunks again and again")
}

#[tokio::test(flavor = "multi_thread")]
async fn no_chunk_that_a_version_names_is_ever_missing() {
    let Some(lab) = Lab::start().await else { return };
    let ada = lab.person("ada", NodeRole::Writer).await;
    let admin = lab.person("root", NodeRole::Admin).await;
    let mut model = Model::default();
    for seed in 0..rounds() {
        eprintln!("round {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..ACTS {
            Box::pin(model.act(&lab, &ada, &admin, &mut random)).await;
        }
        model.check(&lab, &ada).await;
    }
    assert!(model.published > 10);
    lab.stop().await;
}
