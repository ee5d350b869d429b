//! An upgrade carried out: built beside the old cluster, then put in its place in steps of which each can be found done.
//!
//! The file UPGRADE says how far it came. Begun and not built: a start died, and this one clears away what it left and
//! goes on with the old cluster, for a start that takes too long must not be tried for ever. Built: the rest is renames,
//! and every start goes forward with them.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::content::{self, Shape};
use super::{Upgrade, Upgrader, database_bytes, free_bytes, kept_path, kept_record};
use crate::choose::under;
use crate::cluster::Control;
use crate::database::Database;
use crate::error::Error;
use crate::file;
use crate::moving::Ended;
use crate::provisioner::{ManagedPostgres, Program, Stop};
use crate::record::{Choice, Record};
use crate::role::OWNER;
use crate::settings::{Layout, Wal};
use crate::wal::{self, Segment};

/// A dump, or loading it, of the largest database that anybody would carry over in this way.
const COPY_DEADLINE: Duration = Duration::from_secs(7 * 24 * 60 * 60);
const RESET_DEADLINE: Duration = Duration::from_secs(300);
/// How often the log says how far it is.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// Segments left out between the old cluster's log and the new one's, so that no archive takes one for the other's
/// continuation.
const GAP: u64 = 2;

impl Upgrader {
    /// Carries out what is planned, before a start; nothing when nothing is. `look` looks at the new database before it
    /// takes the old one's place, and says what is wrong with it. A server that was put in its place runs afterwards.
    ///
    /// # Errors
    /// Only when what is planned cannot be read or its end cannot be written, or when neither cluster can be put in its
    /// place: what cannot be upgraded stays as it was.
    pub async fn carry_out<F, Fut>(&self, look: F) -> Result<(), Error>
    where
        F: FnOnce(Database) -> Fut,
        Fut: Future<Output = Result<(), String>>,
    {
        let planned = self.read()?.filter(|upgrade| upgrade.ended.is_none());
        let Some(mut upgrade) = planned else {
            // A daemon that died while it only tried out the programs.
            if file::exists(&self.beside_settings().data_root)? {
                self.clear(Choice::Process).await?;
            }
            return Ok(());
        };
        let outcome = match (&upgrade.built, upgrade.begun) {
            (Some(_), _) => self.put_in_place(&mut upgrade).await?,
            (None, true) => {
                self.put_back(&upgrade).await?;
                Err(Error::UpgradeInterrupted)
            }
            (None, false) => match self.build(&mut upgrade, look).await {
                Ok(()) => self.put_in_place(&mut upgrade).await?,
                Err(error) => Err(error),
            },
        };
        let (from, to) = (upgrade.from, upgrade.to);
        let ended = match outcome {
            Ok(()) => {
                tracing::info!(from, to, "the database was carried over to another major version of PostgreSQL");
                Ended::Done
            }
            Err(error) => {
                tracing::error!(%error, from, to, "the database is not upgraded, and stays as it was");
                self.clear(Choice::Process).await?;
                Ended::GivenUp(error.to_string())
            }
        };
        self.write(&Upgrade { ended: Some(ended), ..upgrade })?;
        self.failpoints.hit("upgrade.ended");
        Ok(())
    }

    /// Dumps the old cluster, makes the new one beside it, loads and compares.
    async fn build<F, Fut>(&self, upgrade: &mut Upgrade, look: F) -> Result<(), Error>
    where
        F: FnOnce(Database) -> Fut,
        Fut: Future<Output = Result<(), String>>,
    {
        let layout = self.layout();
        let (choice, record) = self.record()?;
        if record.major != upgrade.from {
            return Err(Error::NotNewer { from: record.major, to: upgrade.to });
        }
        if let Some(path) = self.kept()?.into_iter().next() {
            return Err(Error::OldDataKept { path });
        }
        let found = self.programs(choice, record.major, Some(upgrade.to)).await?;
        self.clear(choice).await?;
        upgrade.begun = true;
        self.write(upgrade)?;
        self.failpoints.hit("upgrade.begun");

        let old = under(choice, &self.settings, &self.secrets, &self.random)?;
        old.provision().await?;
        old.start().await?;
        let former = self.database(&old);
        // Also finishes a rotation that was interrupted: the new cluster gets the passwords that count.
        former.ensure_roles().await?;
        let bytes = database_bytes(&former).await?;
        let (needed_bytes, free_bytes) = (self.needed_bytes(bytes), free_bytes(&layout.home)?);
        if free_bytes < needed_bytes {
            return Err(Error::NoRoomToUpgrade { path: layout.home, needed_bytes, reserve_bytes: 0, free_bytes });
        }
        let new = self.beside(choice, upgrade.to, &found.bin_dir)?;
        new.provision().await?;
        self.failpoints.hit("upgrade.made");

        let dump = new.layout().spool.join("dump");
        let shape = Shape::of(&former).await?;
        let before = told("its rows are counted", &dump, bytes, content::read(&former, &shape.schemas)).await?;
        told("it is dumped", &dump, bytes, dump_into(&former, &new, &shape, &dump)).await?;
        old.stop(Stop::Clean).await?;
        let waiting = wal::waiting(&layout.data);
        if waiting > 0 && matches!(self.settings.wal, Wal::Archive { .. }) {
            return Err(Error::LogWaits { segments: waiting });
        }
        self.failpoints.hit("upgrade.dumped");

        new.start().await?;
        let database = self.database(&new);
        database.ensure_roles().await?;
        let available = database
            .superuser
            .act(crate::Act::TryUpgrade, "postgres", |connection| Box::pin(content::available_extensions(connection)))
            .await?;
        content::require(&shape.extensions, &available, upgrade.to)?;
        told("it is loaded", &new.layout().data, bytes, load_from(&database, &new, &dump)).await?;
        file::remove(&dump)?;
        database.ensure_roles().await?;
        let after =
            told("its rows are compared", &new.layout().data, bytes, content::read(&database, &shape.schemas)).await?;
        if let Some((table, what)) = content::difference(&before, &after) {
            return Err(Error::ContentDiffers { table, what });
        }
        look(database).await.map_err(Error::NotAsItWas)?;
        new.stop(Stop::Clean).await?;
        self.failpoints.hit("upgrade.loaded");

        continue_log(&new, &layout).await?;
        let identifier = Control::read(&new.layout().data)?.system_identifier;
        file::sync_dir(&new.layout().home)?;
        upgrade.built = Some(identifier.to_string());
        self.write(upgrade)?;
        self.failpoints.hit("upgrade.built");
        Ok(())
    }

    /// The renames, each found done or not, and the first start in the new place. A cluster that does not start there
    /// makes way for the old one again, before anybody saw it: the inner error. The outer one means that neither could be
    /// put in its place; the next start tries again.
    async fn put_in_place(&self, upgrade: &mut Upgrade) -> Result<Result<(), Error>, Error> {
        let layout = self.layout();
        let beside = Layout::new(&self.beside_settings().data_root, &self.beside_settings().runtime_dir);
        let identifier: u64 = upgrade.built.as_deref().and_then(|text| text.parse().ok()).unwrap_or_default();
        let (kept, record) = (kept_path(&layout, upgrade.from), kept_record(&layout, upgrade.from));
        let move_to = |from: &Path, to: &Path| std::fs::rename(from, to).map_err(Error::io("rename to", to));
        if file::exists(&beside.data)? {
            if file::exists(&layout.data)? {
                let text = std::fs::read(&layout.provisioner).map_err(Error::io("read", &layout.provisioner))?;
                file::replace(&record, &text, None)?;
                move_to(&layout.data, &kept)?;
                file::sync_dir(&layout.home)?;
            }
            self.failpoints.hit("upgrade.aside");
            move_to(&beside.data, &layout.data)?;
            file::sync_dir(&layout.home)?;
            file::sync_dir(&beside.home)?;
        }
        self.failpoints.hit("upgrade.placed");
        let found = Control::read(&layout.data)?.system_identifier;
        if found != identifier {
            return Err(Error::OtherCluster { data: layout.data.clone(), expected: identifier, found });
        }
        Record::ready(Choice::Process, upgrade.to, identifier).write(&layout.provisioner)?;
        self.failpoints.hit("upgrade.recorded");
        let postgres = under(Choice::Process, &self.settings, &self.secrets, &self.random)?;
        if let Err(error) = postgres.start().await {
            postgres.stop(Stop::Immediate).await?;
            // From here on every start goes back.
            upgrade.built = None;
            self.write(upgrade)?;
            self.put_back(upgrade).await?;
            return Ok(Err(error));
        }
        self.clear(Choice::Process).await.map(Ok)
    }

    /// The old cluster in its place, wherever it is now.
    async fn put_back(&self, upgrade: &Upgrade) -> Result<(), Error> {
        let layout = self.layout();
        let (kept, record) = (kept_path(&layout, upgrade.from), kept_record(&layout, upgrade.from));
        if file::exists(&kept)? {
            if file::exists(&layout.data)? {
                // What `put_in_place` put there, and nobody has used.
                std::fs::remove_dir_all(&layout.data).map_err(Error::io("remove", &layout.data))?;
            }
            std::fs::rename(&kept, &layout.data).map_err(Error::io("rename to", &layout.data))?;
            file::sync_dir(&layout.home)?;
        }
        if file::exists(&record)? {
            let text = std::fs::read(&record).map_err(Error::io("read", &record))?;
            file::replace(&layout.provisioner, &text, None)?;
            file::remove(&record)?;
        }
        self.clear(Choice::Process).await
    }
}

/// All of these schemas, by the newer programs out of the older server, as the owner of what is in them.
async fn dump_into(from: &Database, by: &Arc<dyn ManagedPostgres>, shape: &Shape, dump: &Path) -> Result<(), Error> {
    let mut arguments = vec![
        "--format=custom".to_owned(),
        // As fast as the disk; what is left out are mostly zeros.
        "--compress=1".to_owned(),
        "--no-sync".to_owned(),
        format!("--role={OWNER}"),
        format!("--file={}", dump.display()),
    ];
    arguments.extend(shape.selection());
    let socket_dir = from.server.layout().socket_dir.clone();
    let places = [by.layout().spool.clone(), socket_dir.clone()];
    let dumped = from.with_owner_login(|login| async move {
        let program = Program {
            name: "pg_dump",
            arguments: &arguments,
            places: &places,
            input: None,
            server: Some((&socket_dir, &login)),
            deadline: COPY_DEADLINE,
        };
        by.run(program).await
    });
    dumped.await?
}

async fn load_from(into: &Database, by: &Arc<dyn ManagedPostgres>, dump: &Path) -> Result<(), Error> {
    let arguments = ["--exit-on-error".to_owned(), format!("--role={OWNER}"), dump.display().to_string()];
    let socket_dir = by.layout().socket_dir.clone();
    let places = [by.layout().spool.clone(), socket_dir.clone()];
    let loaded = into.with_owner_login(|login| async move {
        let program = Program {
            name: "pg_restore",
            arguments: &arguments,
            places: &places,
            input: None,
            server: Some((&socket_dir, &login)),
            deadline: COPY_DEADLINE,
        };
        by.run(program).await
    });
    loaded.await?
}

/// The new cluster's log begins after the old one's: in an archive of both, no name stands for two things.
async fn continue_log(new: &Arc<dyn ManagedPostgres>, old: &Layout) -> Result<(), Error> {
    let directory = old.data.join("pg_wal");
    let mut last = Segment { timeline: 1, number: 0 };
    for entry in std::fs::read_dir(&directory).map_err(Error::io("list", &directory))? {
        let entry = entry.map_err(Error::io("list", &directory))?;
        if let Some(segment) = entry.file_name().to_str().and_then(Segment::parse) {
            last.timeline = last.timeline.max(segment.timeline);
            last.number = last.number.max(segment.number);
        }
    }
    let first = Segment { timeline: last.timeline, number: last.number + GAP };
    let data = new.layout().data.clone();
    let arguments = [format!("--next-wal-file={}", first.name()), format!("--pgdata={}", data.display())];
    let places = [data];
    let program = Program {
        name: "pg_resetwal",
        arguments: &arguments,
        places: &places,
        input: None,
        server: None,
        deadline: RESET_DEADLINE,
    };
    new.run(program).await
}

/// Waits for `work`, and tells the log now and then by how much `place` has grown.
async fn told<T>(what: &str, place: &Path, of_bytes: u64, work: impl Future<Output = T>) -> T {
    tracing::info!(of_bytes, "the database is being upgraded: {what}");
    let (mut work, begun, empty) = (std::pin::pin!(work), Instant::now(), size_of(place));
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(TELL_EVERY) => {
                let (bytes, seconds) = (size_of(place).saturating_sub(empty), begun.elapsed().as_secs());
                tracing::info!(bytes, of_bytes, seconds, "the upgrade of the database goes on: {what}");
            }
        }
    }
}

/// What a file, or everything in a directory, takes, bytes. What cannot be looked at does not count.
pub(super) fn size_of(path: &Path) -> u64 {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return 0 };
    if !meta.is_dir() {
        return meta.len();
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| size_of(&entry.path())).sum()
}
