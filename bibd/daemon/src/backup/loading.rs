//! A logical dump laid out: a new, empty cluster with the node's roles, and everything in it out of the dump.
//!
//! The cluster is of the major version that was dumped, or, where this machine does not have that, of a later one.

use std::collections::BTreeMap;
use std::sync::Arc;

use bib_identity::NodeKey;
use bibd_postgres::choose::choose;
use bibd_postgres::dump::LoadError;
use bibd_postgres::{Database, Error, ManagedPostgres, Stop, Wal};
use tempfile::TempDir;

use super::dump::Dump;
use super::error::BackupError;
use super::landing::{Examined, Landing, remove, sockets};
use super::{blocking, pack};
use crate::foundation;
use crate::secrets::Secrets;

impl Landing<'_> {
    /// Makes the cluster, loads the dump, compares what is there with what was dumped, and stops the server.
    pub(super) async fn load(&self, dump: &Dump, key: NodeKey) -> Result<Examined, BackupError> {
        let runtime = sockets()?;
        let secrets = Arc::new(self.secrets(key)?);
        let postgres = match self.server(dump, Some(dump.postgres), &runtime, &secrets).await {
            Err(Error::WrongMajor { .. }) => self.server(dump, None, &runtime, &secrets).await?,
            other => other?,
        };
        let here = postgres.version().await?;
        if here.major < dump.postgres {
            return Err(BackupError::OlderPostgres { dump: dump.postgres, here });
        }
        // With the superuser's password of the dump's own time, which gets another one with all the others.
        postgres.provision().await?;
        self.failpoints.hit("restore.unpacked");
        self.start(postgres.as_ref(), None).await?;
        let examined = self.fill(dump, &self.database(&postgres, &secrets)).await;
        let Ok(examined) = examined else {
            if let Err(error) = remove(postgres.as_ref()).await {
                tracing::warn!(error.cause = %error, "a server that was not filled could not be stopped either");
            }
            return examined;
        };
        postgres.stop(Stop::Clean).await?;
        postgres.dismantle().await?;
        self.failpoints.hit("restore.examined");
        Ok(examined)
    }

    /// The server that the dump is loaded into, of that major version or of any.
    async fn server(
        &self,
        dump: &Dump,
        major: Option<u32>,
        runtime: &TempDir,
        secrets: &Arc<Secrets>,
    ) -> Result<Arc<dyn ManagedPostgres>, Error> {
        let mut settings = foundation::postgres_settings_at(self.config, self.directory, runtime.path());
        settings.wal = Wal::Recycle;
        settings.major = major;
        let settings = settings.beside_node(&dump.node.short());
        let postgres = choose(self.wanted, settings, secrets.clone(), foundation::randomness(self.entropy)).await?;
        postgres.version().await?;
        Ok(postgres)
    }

    async fn fill(&self, dump: &Dump, database: &Database) -> Result<Examined, BackupError> {
        database.ensure_roles().await?;
        let (store, opener, key) = (self.store.clone(), self.opener.clone(), self.database_key());
        let name = key.clone();
        let source = blocking(move || pack::open(&store, &name, &opener)).await?;
        database.load_dump(source).await.map_err(|error| match error {
            LoadError::Source(error) => BackupError::damaged(&key, &error),
            LoadError::Postgres(error) => error.into(),
        })?;
        self.failpoints.hit("restore.recovered");
        // What the dump brought belongs to the owner; privileges of the checking functions and the like come now.
        database.ensure_roles().await?;
        match difference(&dump.rows, &database.count_rows().await?) {
            Some(difference) => Err(BackupError::Differs(difference)),
            None => self.examine(database).await,
        }
    }
}

/// The first table that has not as many rows as it had.
fn difference(dumped: &BTreeMap<String, u64>, loaded: &BTreeMap<String, u64>) -> Option<String> {
    let mut tables = dumped.keys().chain(loaded.keys());
    let table = tables.find(|table| dumped.get(*table) != loaded.get(*table))?;
    let shown = |rows: &BTreeMap<String, u64>| rows.get(table).map_or("no".to_owned(), u64::to_string);
    Some(format!("the table {table} has {} rows, and had {}", shown(loaded), shown(dumped)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_with_other_rows_is_named() {
        let rows = |rows: &[(&str, u64)]| rows.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        let dumped: BTreeMap<String, u64> = rows(&[("bib.a", 1), ("bib.b", 2)]);
        assert_eq!(difference(&dumped, &dumped), None);
        let said = |loaded: &[(&str, u64)]| difference(&dumped, &rows(loaded)).unwrap();
        assert_eq!(said(&[("bib.a", 1), ("bib.b", 3)]), "the table bib.b has 3 rows, and had 2");
        assert_eq!(said(&[("bib.a", 1)]), "the table bib.b has no rows, and had 2");
    }
}
