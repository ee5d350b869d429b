//! One attempt at a publish, from BeginUpload to CommitVersion.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bib_core::Hash;
use bib_proto::v1 as pb;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::describe::{self, Described};
use super::extents::Extents;
use super::ingest::{Decision, Outlet, Work};
use super::pages::{self, PageOutlet};
use super::parent::Parent;
use super::pool::Pool;
use super::send::{self, Offered, Sent};
use super::session::{SessionFile, cache_name};
use super::sign::{self, Begun};
use super::stat_cache::{Lookup, StatCache};
use super::walk::{self, Folder};
use super::{Publish, Published, in_place};
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result, code};
use crate::progress::{Notice, Phase, Progress};

/// Chunks that wait for the sender.
const CHUNK_QUEUE: usize = 16;
/// Small files of unknown hash whose bytes are held until the parent's layout is known, in bytes. With more, the hashes
/// of all the parent's files are fetched first.
const HOLD_BYTES: u64 = 24 * 1024 * 1024;
/// Rounds of reading until nothing surprises any more, and of sending again what went away on the node.
const MAX_ROUNDS: u32 = 4;

/// One attempt. A moved latest version comes back as an error that says so.
pub(super) async fn attempt(
    publish: &Publish,
    client: &Client,
    idempotency_key: &str,
    progress: &Arc<dyn Progress>,
) -> Result<Published> {
    let path = std::path::absolute(&publish.path).map_err(|error| Error::local("find", &publish.path, error))?;
    let folder = Arc::new(Folder::open(&path)?);
    let root = path.to_string_lossy().into_owned();
    let dataset = publish.dataset.to_string();
    let address = client.target().address();
    let session = SessionFile::at(client.options().cache_file("uploads", &cache_name(&[&address, &dataset, &root])));
    let found = sign::read_metadata(&path, progress.as_ref());
    let cache = StatCache::at(client.options().cache_file("stat", &cache_name(&[&root])));
    let walked_ns = client.options().clock.now().as_micros().saturating_mul(1000);
    let latest = find_latest(publish, client).await?;
    // Nothing is made on the node for a folder that cannot be published as it is.
    let mut key = None;
    let looked = match latest {
        None if publish.create => {
            settle_license(publish, client, found.license.as_deref()).await?;
            let registered = client.auth().who_am_i().await?.keys;
            let registered: Vec<_> = registered.iter().filter_map(|key| key.parse().ok()).collect();
            key = Some(sign::ensure_key(publish, client, &registered, progress.as_ref()).await?);
            Some(look(publish, Arc::clone(&folder), &cache, progress).await?)
        }
        _ => None,
    };
    let is_new = latest.is_none();
    let answer = match begin(publish, client, latest.unwrap_or_default(), &session, progress.as_ref()).await {
        // Somebody else made the dataset in this very moment.
        Err(error) if is_new && error.code() == Some(code::ALREADY_THERE) => {
            let latest = find_latest(publish, client).await?.ok_or(error)?;
            if !latest.is_empty() {
                return Err(moved("", &latest));
            }
            begin(publish, client, latest, &session, progress.as_ref()).await?
        }
        answer => answer?,
    };
    let parent = match &answer.latest {
        Some(latest) if latest.state != "withdrawn" && !latest.version.is_empty() => {
            Some(Parent::load(client, latest).await?)
        }
        _ => None,
    };
    let begun = Begun::new(publish, &found, parent.as_ref(), &answer)?;
    let key = match key {
        Some(key) => key,
        None => sign::ensure_key(publish, client, &begun.signing_keys, progress.as_ref()).await?,
    };

    let (mut work, lookup) = match looked {
        Some(looked) => looked,
        None => look(publish, folder, &cache, progress).await?,
    };
    let mut upload = Upload {
        publish,
        client,
        begun: &begun,
        path: &path,
        progress,
        offered: Offered::default(),
        sent: Sent::default(),
    };
    let mut parent = parent;
    for round in 1..=MAX_ROUNDS {
        let (back, described) = upload.round(work, parent.as_ref(), &cache, &lookup, walked_ns).await?;
        work = back;
        progress.total(Phase::Commit, None);
        let (statement, signature) = sign::sign(publish, &begun, described.content.root.hash, &key, client).await?;
        let request = pb::CommitVersionRequest {
            session_id: begun.session_id.clone(),
            statement: statement.into(),
            signature,
            content_root: hash_bytes(&described.content.root.hash),
            layout_root: hash_bytes(&described.layout_root),
            // A commit that answered `resend` committed nothing; the next one is another request.
            idempotency_key: if round == 1 { idempotency_key.to_owned() } else { format!("{idempotency_key}-{round}") },
        };
        let committed = client.datasets().commit_version(request).await?;
        if committed.resend.is_empty() {
            session.forget();
            return published(publish, &answer, committed, &described, &work, upload.sent);
        }
        let gone: HashSet<Hash> =
            committed.resend.iter().filter_map(|hash| Hash::try_from(hash.as_ref()).ok()).collect();
        progress.notice(Notice::SentAgain { chunks: gone.len() });
        upload.offered.forget(&gone);
        if !forget_layouts(&mut work, &gone) || round > 1 {
            // The chunks came from the parent's layout: lay everything out anew.
            parent = None;
            work.extents = Extents::for_files(work.tree.files());
        }
    }
    Err(Error::new(ErrorKind::Unavailable, "the node loses chunks as fast as they are sent")
        .with_hint("ask the node's admin to run `bib admin storage scrub`"))
}

fn hash_bytes(hash: &Hash) -> Bytes {
    Bytes::copy_from_slice(hash.as_bytes())
}

/// The latest version of the dataset, empty when it has none; nothing when there is no such dataset.
async fn find_latest(publish: &Publish, client: &Client) -> Result<Option<String>> {
    match client.datasets().get(&publish.dataset.to_string()).await {
        Ok(found) => Ok(Some(found.latest)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a first version would have a licence; `found` is what the folder's own files say.
async fn settle_license(publish: &Publish, client: &Client, found: Option<&str>) -> Result<()> {
    let asked = publish.license.as_deref();
    let default = match asked.or(found) {
        Some(_) => String::new(),
        None => match client.topics().get(publish.dataset.topic.as_str()).await {
            Ok(topic) => topic.default_license,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        },
    };
    sign::choose_license(asked, found, None, &default).map(|_| ())
}

/// Begins the upload on top of the right parent, going on with an interrupted session if there is one.
async fn begin(
    publish: &Publish,
    client: &Client,
    latest: String,
    session: &SessionFile,
    progress: &dyn Progress,
) -> Result<pb::BeginUploadResponse> {
    let dataset = publish.dataset.to_string();
    // After a rebase the latest is the parent, whatever was named at first.
    if let Some(parent) = &publish.parent
        && parent.to_string() != latest
        && !publish.rebase
    {
        return Err(moved(&parent.to_string(), &latest));
    }
    let request = |session_id: String| pb::BeginUploadRequest {
        dataset: dataset.clone(),
        create: publish.create,
        parent: latest.clone(),
        session_id,
    };
    let answer = match session.read() {
        Some(id) => match client.datasets().begin_upload(request(id.clone())).await {
            Ok(answer) => {
                if answer.session_id == id {
                    progress.notice(Notice::Resumed);
                }
                answer
            }
            Err(error) if error.is_transport() || error.is_latest_moved() => return Err(error),
            // The session has ended, or was somebody else's: begin a new one.
            Err(error) => {
                tracing::debug!(%error, "an interrupted upload cannot go on");
                session.forget();
                client.datasets().begin_upload(request(String::new())).await?
            }
        },
        None => client.datasets().begin_upload(request(String::new())).await?,
    };
    session.write(&answer.session_id);
    let now = answer.latest.as_ref().map(|version| version.version.clone()).unwrap_or_default();
    if now != latest {
        return Err(moved(&latest, &now));
    }
    Ok(answer)
}

fn moved(parent: &str, latest: &str) -> Error {
    let sentence = match parent {
        "" => format!("somebody published {latest} in between"),
        parent => format!("the latest version is {latest}, not {parent}"),
    };
    Error::new(ErrorKind::Conflict, sentence)
        .with_code(code::LATEST_MOVED)
        .with_hint("look at what changed, then publish on top of it with `--rebase`")
        .with_detail("parent", parent)
        .with_detail("latest", latest)
}

/// Walks the folder and asks the cache.
async fn look(
    publish: &Publish,
    folder: Arc<Folder>,
    cache: &StatCache,
    progress: &Arc<dyn Progress>,
) -> Result<(Work, Lookup)> {
    let (threads, rehash, allow_changing) = (publish.threads, publish.rehash, publish.allow_changing);
    let progress = Arc::clone(progress);
    let cache = cache.clone();
    blocking(move || {
        let mut tree = walk::walk(&folder, threads, progress.as_ref())?;
        let lookup = if rehash { Lookup::nothing(tree.files()) } else { cache.fill(&mut tree) };
        let files = tree.files();
        let work = Work {
            folder,
            tree,
            extents: Extents::for_files(files),
            held: HashMap::new(),
            unsettled: vec![false; files],
            placed: Vec::new(),
            outlet: Outlet::InPlace,
            allow_changing,
            threads,
            pool: Pool::default(),
            progress,
        };
        Ok((work, lookup))
    })
    .await
}

/// Forgets where the files in these chunks lie; gives whether there were any.
fn forget_layouts(work: &mut Work, gone: &HashSet<Hash>) -> bool {
    let mut any = false;
    for file in 0..work.tree.files() {
        if work.extents.touches(file, gone) {
            work.extents.clear(file);
            any = true;
        }
    }
    any
}

/// What a round has made.
struct RoundEnd {
    content: bib_core::content::Content,
    layout_root: Hash,
}

/// What stays the same from round to round.
struct Upload<'a> {
    publish: &'a Publish,
    client: &'a Client,
    begun: &'a Begun,
    path: &'a Path,
    progress: &'a Arc<dyn Progress>,
    offered: Offered,
    sent: Sent,
}

type ChunkTask = JoinSet<Result<(Sent, Offered)>>;
type PageTask = JoinSet<Result<()>>;

impl Upload<'_> {
    /// Reads, sends and describes everything, so that a commit can follow.
    async fn round(
        &mut self,
        mut work: Work,
        parent: Option<&Parent>,
        cache: &StatCache,
        lookup: &Lookup,
        walked_ns: i64,
    ) -> Result<(Work, RoundEnd)> {
        let session_id = &self.begun.session_id;
        let mut chunk_task: ChunkTask = JoinSet::new();
        let mut page_task: PageTask = JoinSet::new();
        if !self.publish.in_place {
            let (sender, chunks) = mpsc::channel(CHUNK_QUEUE); // at most 4 MiB each
            work.outlet = Outlet::Send(sender);
            let offered = std::mem::take(&mut self.offered);
            let progress = Arc::clone(self.progress);
            chunk_task.spawn(send::send_all(self.client.clone(), session_id.clone(), chunks, offered, progress));
        }
        let (outlet, queue) = PageOutlet::new();
        let progress = Arc::clone(self.progress);
        page_task.spawn(pages::send_all(self.client.clone(), session_id.clone(), queue, progress));

        let made = self.make(work, parent, &outlet).await;
        drop(outlet);
        let (mut work, described, layout_root) = match made {
            Ok(made) => made,
            // "Stopped" only says that a sender has failed; the sender says why.
            Err(error) if error.kind() == ErrorKind::Cancelled => {
                while let Some(ended) = chunk_task.join_next().await {
                    ended.map_err(Error::task)??;
                }
                while let Some(ended) = page_task.join_next().await {
                    ended.map_err(Error::task)??;
                }
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        // Hangs up, so that the senders finish.
        work.outlet = Outlet::InPlace;
        if let Err(error) = cache.save(&work.tree, lookup, walked_ns, &work.unsettled) {
            tracing::debug!(%error, "the stat cache is not written");
        }
        while let Some(ended) = chunk_task.join_next().await {
            let (sent, offered) = ended.map_err(Error::task)??;
            self.sent.chunks += sent.chunks;
            self.sent.bytes += sent.bytes;
            self.offered = offered;
        }
        if self.publish.in_place {
            let placed = std::mem::take(&mut work.placed);
            in_place::put(self.client, session_id, self.path, &work, &placed).await?;
        }
        while let Some(ended) = page_task.join_next().await {
            ended.map_err(Error::task)??;
        }
        Ok((work, RoundEnd { content: described.content, layout_root }))
    }

    async fn make(&self, work: Work, parent: Option<&Parent>, outlet: &PageOutlet) -> Result<(Work, Described, Hash)> {
        let mut work = self.read_unknown(work, parent).await?;
        for _ in 0..MAX_ROUNDS {
            let pages = parent.map(Parent::numbers);
            let out = outlet.clone();
            let (back, described) = blocking(move || {
                let described = describe::content(&work.tree, pages.as_deref(), &out)?;
                Ok((work, described))
            })
            .await?;
            work = back;
            let mut lacking = describe::files_to_lay_out(&work, &described);
            if let Some(parent) = parent.filter(|_| !lacking.is_empty()) {
                describe::take_from_parent(&mut work, &described, parent, &lacking).await?;
                lacking.retain(|file| !work.extents.has(*file as usize));
            }
            let surprised = if lacking.is_empty() {
                false
            } else {
                let (back, surprised) = ingest(work, lacking, |_| Decision::Pack).await?;
                work = back;
                surprised
            };
            // A file that is not what the cache said it was: the content is another.
            if surprised {
                continue;
            }
            let shared = describe::layouts_of_shared(&described, parent);
            let out = outlet.clone();
            return blocking(move || {
                let layout = describe::layout(&work, &described, shared, &out)?;
                Ok((work, described, layout.root.hash))
            })
            .await;
        }
        Err(Error::new(ErrorKind::Conflict, "the folder changes faster than it can be read")
            .with_code(code::CHANGED_WHILE_READ)
            .with_hint("stop what writes into it, or publish a snapshot"))
    }

    /// Reads the files whose hash is not known, and packs those that the parent cannot have.
    async fn read_unknown(&self, work: Work, parent: Option<&Parent>) -> Result<Work> {
        let unknown: Vec<u32> = files(&work).filter(|file| work.tree.hash(*file as usize).is_none()).collect();
        let Some(parent) = parent else {
            let all = files(&work).filter(|file| !work.extents.has(*file as usize)).collect();
            return ingest(work, all, |_| Decision::Pack).await.map(|(work, _)| work);
        };
        let small = |file: &&u32| work.tree.stat(**file as usize).size < u64::from(bib_core::chunk::SMALL_FILE);
        let to_hold: u64 = unknown.iter().filter(small).map(|file| work.tree.stat(*file as usize).size).sum();
        if to_hold <= HOLD_BYTES {
            return ingest(work, unknown, |_| Decision::Hold).await.map(|(work, _)| work);
        }
        let mut there: Vec<Hash> = Vec::new();
        parent
            .all_layouts(|hash, _| {
                there.push(hash);
                Ok(())
            })
            .await?;
        there.sort_unstable();
        let list = files(&work)
            .filter(|file| work.tree.hash(*file as usize).is_none_or(|hash| there.binary_search(&hash).is_err()))
            .collect();
        let decide = move |hash: &Hash| if there.binary_search(hash).is_ok() { Decision::Skip } else { Decision::Pack };
        ingest(work, list, decide).await.map(|(work, _)| work)
    }
}

fn files(work: &Work) -> impl Iterator<Item = u32> + '_ {
    (0..u32::try_from(work.tree.files()).unwrap_or(u32::MAX)).filter(|file| !work.extents.has(*file as usize))
}

async fn ingest(
    mut work: Work,
    files: Vec<u32>,
    decide: impl Fn(&Hash) -> Decision + Send + 'static,
) -> Result<(Work, bool)> {
    blocking(move || {
        let surprised = work.ingest(&files, &decide)?;
        Ok((work, surprised))
    })
    .await
}

/// Work that computes or waits for disks, away from the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(Error::task)?
}

fn published(
    publish: &Publish,
    answer: &pb::BeginUploadResponse,
    committed: pb::CommitVersionResponse,
    described: &RoundEnd,
    work: &Work,
    sent: Sent,
) -> Result<Published> {
    let version = committed.version.ok_or_else(|| Error::bad_answer("the node committed and names no version"))?;
    let content = described.content.root.hash.to_string();
    if version.content != content {
        return Err(Error::damaged(format!("the node committed the content {}, not {content}", version.content)));
    }
    Ok(Published {
        dataset: publish.dataset.to_string(),
        dataset_id: answer.dataset_id.clone(),
        version: version.version,
        content,
        created: committed.created,
        created_dataset: answer.created_dataset,
        files: described.content.summary.files,
        bytes: described.content.summary.total_bytes,
        chunks: work.extents.chunk_count(),
        chunks_sent: sent.chunks,
        bytes_sent: sent.bytes,
        duration: Duration::ZERO,
    })
}
