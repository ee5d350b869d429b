//! Two questions past bollard. Of a container: Podman has words for its state that Docker does not have, and bollard
//! takes an answer with one of them for damaged. Of the engine: which version of the API it speaks must be known
//! before the first question in one.

use std::path::Path;

use bollard::ClientVersion;
use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::UnixStream;

/// A description has some ten kilobytes.
const MAX_BYTES: usize = 4 << 20;

/// Which engine it is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Version {
    /// Its own version.
    pub(crate) version: String,
    api_version: String,
    #[serde(default)]
    components: Vec<Component>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Component {
    name: String,
}

impl Version {
    pub(crate) fn is_podman(&self) -> bool {
        self.components.iter().any(|component| component.name.starts_with("Podman"))
    }

    /// The newest version of the API that both sides know.
    pub(crate) fn common(&self, ours: &ClientVersion) -> Option<ClientVersion> {
        let (major, minor) = self.api_version.split_once('.')?;
        let theirs = ClientVersion { major_version: major.parse().ok()?, minor_version: minor.parse().ok()? };
        Some(if theirs < *ours { theirs } else { *ours })
    }
}

/// Asks the engine behind `socket` who it is.
///
/// # Errors
/// In words: no answer, another status, nonsense.
pub(crate) async fn version(socket: &Path) -> Result<Version, String> {
    match get(socket, "/version").await.map_err(|error| error.to_string())? {
        (StatusCode::OK, body) => serde_json::from_slice(&body).map_err(|error| error.to_string()),
        (other, body) => Err(refused(other, &body)),
    }
}

/// Asks the engine behind `socket` for `path`; `None` when there is no such container.
///
/// # Errors
/// In words: no answer, another status, nonsense.
pub(crate) async fn container(socket: &Path, path: &str) -> Result<Option<ContainerInspectResponse>, String> {
    let (status, body) = get(socket, path).await.map_err(|error| error.to_string())?;
    match status {
        StatusCode::OK => parse(&body).map(Some).map_err(|error| error.to_string()),
        StatusCode::NOT_FOUND => Ok(None),
        other => Err(refused(other, &body)),
    }
}

fn refused(status: StatusCode, body: &[u8]) -> String {
    format!("{} (status {})", String::from_utf8_lossy(body).trim(), status.as_u16())
}

async fn get(socket: &Path, path: &str) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path).header("host", "engine").body(Empty::<Bytes>::new())?;
    let ask = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_BYTES).collect().await?.to_bytes();
        Ok((status, body))
    };
    tokio::pin!(connection, ask);
    tokio::select! {
        answer = &mut ask => answer,
        ended = connection => {
            ended?;
            // What has come before the end is there.
            ask.await
        }
    }
}

fn parse(body: &[u8]) -> Result<ContainerInspectResponse, serde_json::Error> {
    let mut value: Value = serde_json::from_slice(body)?;
    if let Some(status) = value.pointer_mut("/State/Status") {
        let known = serde_json::from_value::<ContainerStateStatusEnum>(status.clone()).is_ok();
        // `Running`, `Pid` and `ExitCode` are what we go by.
        if !known {
            *status = Value::from("");
        }
    }
    serde_json::from_value(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_speak_the_older_version() {
        let version =
            |api: &str| Version { version: String::new(), api_version: api.to_owned(), components: Vec::new() };
        let ours = ClientVersion { major_version: 1, minor_version: 49 };
        for (theirs, both) in [("1.41", Some("1.41")), ("1.52", Some("1.49")), ("2.0", Some("1.49")), ("x", None)] {
            let common = version(theirs).common(&ours).map(|common| common.to_string());
            assert_eq!(common.as_deref(), both, "{theirs}");
        }
    }

    #[test]
    fn a_state_that_docker_does_not_have_is_no_damage() {
        for status in ["stopped", "configured", "exited"] {
            let body = format!("{{\"State\":{{\"Status\":\"{status}\",\"Running\":false,\"ExitCode\":3}}}}");
            let state = parse(body.as_bytes()).unwrap().state.unwrap();
            assert_eq!((state.running, state.exit_code), (Some(false), Some(3)), "{status}");
        }
        assert!(parse(b"{\"State\":").is_err());
    }
}
