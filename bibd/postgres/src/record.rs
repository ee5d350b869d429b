//! `postgres/PROVISIONER`: which provisioner made the database, and whether it finished.
//!
//! Written in two durable steps around `initdb`, so that a crash at any moment leaves a state that says what to do:
//! [`decide`] is that table, and nothing else decides.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::file;

/// A provisioner of this release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// A process beside the daemon.
    Process,
    /// A container of Docker or Podman.
    Container,
    /// A pod of Kubernetes.
    Kubernetes,
}

impl Choice {
    /// Each.
    pub const ALL: [Self; 3] = [Self::Process, Self::Container, Self::Kubernetes];

    /// Its name in the file and in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Container => "container",
            Self::Kubernetes => "kubernetes",
        }
    }

    /// By its name.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|choice| choice.name() == name)
    }
}

/// The file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// The name of a [`Choice`], or of one that a later release knows.
    pub(crate) choice: String,
    /// The major version of PostgreSQL that made the data.
    pub(crate) major: u32,
    /// How far it came.
    pub(crate) state: RecordState,
    /// PostgreSQL's name of the cluster; a string, because it is larger than JSON's safe integers.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "as_text")]
    pub(crate) system_identifier: Option<u64>,
    /// Whether an operator of Kubernetes makes the pods and keeps the volumes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) operator: bool,
}

/// How far provisioning came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RecordState {
    /// `initdb` may be running or may have been interrupted.
    Initialising,
    /// There is a database.
    Ready,
}

mod as_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    #[allow(clippy::ref_option, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(value: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(number) => serializer.serialize_str(&number.to_string()),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Some).map_err(|_| D::Error::custom("system_identifier is not a number"))
    }
}

impl Record {
    /// The first step.
    pub(crate) fn initialising(choice: Choice, major: u32) -> Self {
        let (choice, state) = (choice.name().to_owned(), RecordState::Initialising);
        Self { choice, major, state, system_identifier: None, operator: false }
    }

    /// The second step.
    pub(crate) fn ready(choice: Choice, major: u32, system_identifier: u64) -> Self {
        let (choice, system_identifier) = (choice.name().to_owned(), Some(system_identifier));
        Self { choice, major, state: RecordState::Ready, system_identifier, operator: false }
    }

    /// The same of a database whose pods an operator makes.
    pub(crate) fn of_operator(self) -> Self {
        Self { operator: true, ..self }
    }

    /// Reads the file, which must be of `choice`; `None` when there is none.
    ///
    /// # Errors
    /// [`Error::ProvisionerDamaged`], [`Error::OtherProvisioner`], [`Error::Io`].
    pub(crate) fn read_of(choice: Choice, path: &Path) -> Result<Option<Self>, Error> {
        match Self::read(path)? {
            Some(record) if record.choice != choice.name() => {
                Err(Error::OtherProvisioner { chosen: record.choice, wanted: choice.name() })
            }
            other => Ok(other),
        }
    }

    /// Reads the file, whoever wrote it; `None` when there is none.
    ///
    /// # Errors
    /// [`Error::ProvisionerDamaged`], [`Error::Io`].
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, Error> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        let damaged = |problem: String| Error::ProvisionerDamaged { path: path.to_path_buf(), problem };
        let record: Self = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if (record.state == RecordState::Ready) != record.system_identifier.is_some() {
            return Err(damaged("state and system_identifier contradict each other".to_owned()));
        }
        Ok(Some(record))
    }

    /// The major version that made the data, where there is any. A damaged file is reported by who must read it.
    pub(crate) fn major_of(path: &Path) -> Option<u32> {
        Self::read(path).ok().flatten().map(|record| record.major)
    }

    /// Makes the file say this, durably.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn write(&self, path: &Path) -> Result<(), Error> {
        let mut text = serde_json::to_string(self).expect("a record of strings serialises");
        text.push('\n');
        file::replace(path, text.as_bytes(), None)
    }
}

/// What to do about a state on disk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nothing exists: write `initialising`, run `initdb`.
    Begin,
    /// `initdb` was interrupted: remove `data.new`, run `initdb` again.
    BeginAgain,
    /// The data is there, the second step is missing: read the identifier, write `ready`.
    Finish,
    /// All is there; the identifier must be this one.
    Use { system_identifier: u64 },
}

/// Why nothing may be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// `ready` without data.
    DataMissing,
    /// Data without PROVISIONER.
    DataUnknown,
    /// `data.new` without PROVISIONER.
    NewDataUnknown,
}

/// The whole table: (PROVISIONER, `data`, `data.new`) to what follows.
pub(crate) fn decide(record: Option<&Record>, data: bool, data_new: bool) -> Result<Decision, Refusal> {
    match (record.map(|record| (record.state, record.system_identifier)), data) {
        (None, true) => Err(Refusal::DataUnknown),
        (None, false) if data_new => Err(Refusal::NewDataUnknown),
        (None, false) => Ok(Decision::Begin),
        (Some((RecordState::Initialising, _)), false) => Ok(Decision::BeginAgain),
        (Some((RecordState::Initialising, _)), true) => Ok(Decision::Finish),
        (Some((RecordState::Ready, _)), false) => Err(Refusal::DataMissing),
        (Some((RecordState::Ready, Some(system_identifier))), true) => Ok(Decision::Use { system_identifier }),
        // `read` refuses a ready record without an identifier.
        (Some((RecordState::Ready, None)), true) => Ok(Decision::Finish),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decides_every_state_on_disk() {
        let (early, late) = (Record::initialising(Choice::Process, 15), Record::ready(Choice::Process, 15, 7));
        let table = [
            (None, false, false, Ok(Decision::Begin)),
            (None, false, true, Err(Refusal::NewDataUnknown)),
            (None, true, false, Err(Refusal::DataUnknown)),
            (None, true, true, Err(Refusal::DataUnknown)),
            (Some(&early), false, false, Ok(Decision::BeginAgain)),
            (Some(&early), false, true, Ok(Decision::BeginAgain)),
            (Some(&early), true, false, Ok(Decision::Finish)),
            (Some(&early), true, true, Ok(Decision::Finish)),
            (Some(&late), false, false, Err(Refusal::DataMissing)),
            (Some(&late), false, true, Err(Refusal::DataMissing)),
            (Some(&late), true, false, Ok(Decision::Use { system_identifier: 7 })),
            (Some(&late), true, true, Ok(Decision::Use { system_identifier: 7 })),
        ];
        for (record, data, data_new, expected) in table {
            assert_eq!(decide(record, data, data_new), expected, "{record:?} {data} {data_new}");
        }
    }

    #[test]
    fn the_file_is_as_documented_and_nonsense_is_refused() {
        let here = tempfile::tempdir().unwrap();
        let path = here.path().join("PROVISIONER");
        assert_eq!(Record::read(&path).unwrap(), None);
        Record::initialising(Choice::Process, 15).write(&path).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "{\"choice\":\"process\",\"major\":15,\"state\":\"initialising\"}\n"
        );
        Record::ready(Choice::Process, 16, u64::MAX).write(&path).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "{\"choice\":\"process\",\"major\":16,\"state\":\"ready\",\"system_identifier\":\"18446744073709551615\"}\n"
        );
        assert_eq!(Record::read(&path).unwrap(), Some(Record::ready(Choice::Process, 16, u64::MAX)));
        let operated = Record::ready(Choice::Kubernetes, 18, 7).of_operator();
        operated.write(&path).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "{\"choice\":\"kubernetes\",\"major\":18,\"state\":\"ready\",\"system_identifier\":\"7\",\"operator\":true}\n"
        );
        assert_eq!(Record::read(&path).unwrap(), Some(operated));
        for (text, damaged) in [
            ("", true),
            ("{}", true),
            ("{\"choice\":\"process\",\"major\":15,\"state\":\"ready\"}", true),
            ("{\"choice\":\"process\",\"major\":15,\"state\":\"done\"}", true),
            ("{\"choice\":\"container\",\"major\":15,\"state\":\"initialising\"}", false),
        ] {
            std::fs::write(&path, text).unwrap();
            match Record::read_of(Choice::Process, &path).unwrap_err() {
                Error::ProvisionerDamaged { .. } => assert!(damaged, "{text}"),
                Error::OtherProvisioner { chosen, wanted } => {
                    assert!(!damaged && (chosen.as_str(), wanted) == ("container", "process"), "{text}");
                }
                other => panic!("{text}: {other}"),
            }
        }
    }
}
