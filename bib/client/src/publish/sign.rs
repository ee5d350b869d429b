//! What the version says of itself, and the person's signature under it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bib_core::metadata::import::{self, Source};
use bib_core::metadata::{self, Metadata, license};
use bib_core::statement::{Author, Statement};
use bib_core::{Hash, KeyFingerprint};
use bib_identity::ssh::{UserKey, generate};
use bib_proto::v1 as pb;
use rand_core::{CryptoRng, RngCore};

use super::Publish;
use super::parent::Parent;
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result, code};
use crate::login::no_key;
use crate::options::Random;
use crate::progress::{Notice, Progress};

/// What the folder's own files say about it.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) metadata: Option<Metadata>,
    pub(crate) license: Option<String>,
}

/// Reads `ro-crate-metadata.json`, `datacite.json` or `CITATION.cff`, the first that is there and can be used.
pub(crate) fn read_metadata(folder: &Path, progress: &dyn Progress) -> Found {
    for source in Source::ALL {
        let path = folder.join(source.file_name());
        let ignored = |reason: String| {
            progress.notice(Notice::MetadataIgnored { path: source.file_name().to_owned(), reason });
        };
        match std::fs::metadata(&path) {
            Ok(found) if !found.is_file() => continue,
            Ok(found) if found.len() > metadata::MAX_FILE_BYTES as u64 => {
                ignored("it is too large".to_owned());
                continue;
            }
            Ok(_) => {}
            Err(_) => continue,
        }
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => {
                ignored(error.to_string());
                continue;
            }
        };
        match import::read(source, &bytes) {
            Ok(import) => {
                import.warnings.into_iter().for_each(ignored);
                return Found { metadata: Some(import.metadata), license: import.license };
            }
            Err(error) => ignored(error.to_string()),
        }
    }
    Found::default()
}

/// The licence: as asked for, else as the folder says, else the parent's, else the topic's default. Never guessed.
pub(crate) fn choose_license(
    asked: Option<&str>,
    found: Option<&str>,
    parent: Option<&str>,
    default: &str,
) -> Result<String> {
    let default = Some(default).filter(|text| !text.is_empty());
    let license = asked.or(found).or(parent).or(default).ok_or_else(|| {
        Error::new(ErrorKind::Invalid, "a version needs a licence")
            .with_code(code::LICENSE_NEEDED)
            .with_hint("name one with `--license CC-BY-4.0` or another SPDX expression")
    })?;
    license::check(license).map_err(|error| {
        Error::new(ErrorKind::Invalid, error.to_string()).with_hint("licences are SPDX expressions such as `CC-BY-4.0`")
    })?;
    Ok(license.to_owned())
}

/// Makes the statement's bytes and signs them.
pub(crate) async fn sign(
    publish: &Publish,
    begun: &Begun,
    content: Hash,
    key: &Arc<UserKey>,
    client: &Client,
) -> Result<(Vec<u8>, String)> {
    let statement = Statement {
        dataset: begun.dataset,
        content,
        parents: begun.parents.clone(),
        label: publish.label.clone(),
        message: publish.message.clone(),
        time: client.options().clock.now(),
        license: begun.license.clone(),
        metadata: begun.metadata.clone(),
        author: Author::Person { key: key.public().fingerprint(), name: publish.author_name.clone() },
        provenance: None,
        author_extra: Default::default(),
        extra: Default::default(),
    };
    let bytes = statement.to_bytes().map_err(|error| Error::new(ErrorKind::Invalid, error.to_string()))?;
    let signature = crate::login::sign(key, bib_core::signature::VERSION_NAMESPACE, bytes.clone()).await?;
    Ok((bytes, signature))
}

/// What is known once the upload has begun.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) session_id: String,
    pub(crate) dataset: bib_core::DatasetId,
    pub(crate) parents: Vec<Hash>,
    pub(crate) license: String,
    pub(crate) metadata: Metadata,
    pub(crate) signing_keys: Vec<KeyFingerprint>,
}

impl Begun {
    /// Licence and metadata of this version, by what was asked for, found and there before.
    pub(crate) fn new(
        publish: &Publish,
        found: &Found,
        parent: Option<&Parent>,
        answer: &pb::BeginUploadResponse,
    ) -> Result<Self> {
        let before = parent.map(|parent| Statement::parse(&parent.statement)).transpose();
        let before = before.map_err(|error| Error::damaged(format!("the parent's statement: {error}")))?;
        let license = choose_license(
            publish.license.as_deref(),
            found.license.as_deref(),
            before.as_ref().map(|before| before.license.as_str()),
            &answer.default_license,
        )?;
        let metadata = publish.metadata.clone().or_else(|| found.metadata.clone());
        Ok(Self {
            session_id: answer.session_id.clone(),
            dataset: answer.dataset_id.parse().map_err(|_| Error::bad_answer("the node names no dataset id"))?,
            parents: parent.map(|parent| parent.version).into_iter().collect(),
            license,
            metadata: metadata.or(before.map(|before| before.metadata)).unwrap_or_default(),
            signing_keys: answer.signing_keys.iter().filter_map(|key| key.parse().ok()).collect(),
        })
    }
}

/// The key that signs: the caller's, else one that the source finds, else on the socket a new one. Registered with the
/// node when it is not yet.
pub(crate) async fn ensure_key(
    publish: &Publish,
    client: &Client,
    registered: &[KeyFingerprint],
    progress: &dyn Progress,
) -> Result<Arc<UserKey>> {
    let found = match &publish.key {
        Some(key) => Some(Arc::clone(key)),
        None => match client.find_key(registered).await? {
            Some(key) => Some(key),
            None => own_key(publish, client)?,
        },
    };
    let key = match found {
        Some(key) => key,
        None if client.is_local() => make_key(publish, client, progress)?,
        None => return Err(no_key()),
    };
    if client.is_local() && !registered.contains(&key.public().fingerprint()) {
        let fingerprint = key.public().fingerprint();
        client.auth().register_my_key(&key.public().to_line()).await.map_err(|error| not_yours(error, &fingerprint))?;
    }
    Ok(key)
}

/// Says which key it is that somebody else has registered, and how another is named.
fn not_yours(error: Error, key: &KeyFingerprint) -> Error {
    if error.code() != Some(code::ALREADY_THERE) {
        return error;
    }
    Error::new(ErrorKind::Conflict, format!("the key {key} is registered to somebody else on this node"))
        .with_code(code::ALREADY_THERE)
        .with_hint("sign with a key of your own: `--key FILE`, or `bib config set identity.key FILE`")
        .with_detail("key", key.to_string())
}

fn key_path(publish: &Publish, client: &Client) -> PathBuf {
    publish.new_key_path.clone().unwrap_or_else(|| client.options().config_dir.join("id_ed25519"))
}

/// The key that an earlier publish made.
fn own_key(publish: &Publish, client: &Client) -> Result<Option<Arc<UserKey>>> {
    let path = key_path(publish, client);
    if !path.exists() {
        return Ok(None);
    }
    Ok(Some(Arc::new(UserKey::load(&path, &mut |_| None)?)))
}

fn make_key(publish: &Publish, client: &Client, progress: &dyn Progress) -> Result<Arc<UserKey>> {
    let path = key_path(publish, client);
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(|error| Error::local("make", directory, error))?;
    }
    let key = generate(&path, "bib", &mut Source64(&client.options().random))?;
    progress.notice(Notice::KeyMade { path, fingerprint: key.public().fingerprint().to_string() });
    Ok(Arc::new(key))
}

/// The caller's randomness as key makers want it.
struct Source64<'a>(&'a Random);

impl RngCore for Source64<'_> {
    fn next_u32(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn fill_bytes(&mut self, dest: &mut [u8]) {
        self.0.fill(dest);
    }

    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), rand_core::Error> {
        self.0.fill(dest);
        Ok(())
    }
}

impl CryptoRng for Source64<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_somebody_else_is_named_with_the_way_out() {
        let key = bib_core::KeyFingerprint::of_wire_key(b"a key");
        let taken = Error::new(ErrorKind::Conflict, "there is one already").with_code(code::ALREADY_THERE);
        let error = not_yours(taken, &key);
        assert!(error.message().contains(&key.to_string()), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("--key")), "{error:?}");
        let other = not_yours(Error::new(ErrorKind::Denied, "no"), &key);
        assert_eq!((other.kind(), other.hint()), (ErrorKind::Denied, None));
    }

    #[test]
    fn the_licence_is_chosen_and_never_guessed() {
        let choose = |asked, found, parent, default| {
            choose_license(asked, found, parent, default).map_err(|e| e.code().map(str::to_owned))
        };
        assert_eq!(choose(Some("MIT"), Some("CC0-1.0"), None, "").unwrap(), "MIT");
        assert_eq!(choose(None, Some("CC0-1.0"), Some("MIT"), "").unwrap(), "CC0-1.0");
        assert_eq!(choose(None, None, Some("MIT"), "CC0-1.0").unwrap(), "MIT");
        assert_eq!(choose(None, None, None, "CC0-1.0").unwrap(), "CC0-1.0");
        assert_eq!(choose(None, None, None, "").unwrap_err().as_deref(), Some(code::LICENSE_NEEDED));
        assert!(choose(Some("no such licence"), None, None, "").is_err());
    }
}
