//! Which node is meant: what `--node` takes, and where the own machine's node is found.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use bib_core::PeerId;

use crate::error::{Error, ErrorKind, Result, code};

/// The port of a node's gRPC listener when an address names none.
pub const DEFAULT_PORT: u16 = 4000;

/// The environment variable that names a node, as `--node` does.
pub const NODE_VARIABLE: &str = "BIB_NODE";

/// Where the socket lies inside a runtime directory.
pub const SOCKET_IN_RUNTIME_DIR: &str = "bibd/bibd.sock";

/// Where the socket lies inside a data directory.
pub const SOCKET_IN_DATA_DIR: &str = "run/bibd.sock";

/// The file that a running node writes into its data directory when it is ready (JSON: pid, socket, addresses, fingerprint).
pub const READY_FILE: &str = "ready.json";

/// A node to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// The node of this machine, by its Unix socket. The caller is known by uid; no log-in is needed.
    Socket(PathBuf),
    /// A node by address, over TLS.
    Tls {
        /// A host name or an address; it is only used to get there and never compared with the certificate.
        host: String,
        /// The TCP port.
        port: u16,
        /// Who must answer, when the person named a peer id.
        peer: Option<PeerId>,
    },
}

impl Target {
    /// Reads what a person wrote: `unix:/path`, `/path`, `host`, `host:port`, `[::1]:port`, a name or a peer id of `known`.
    ///
    /// `known` maps aliases and peer ids to addresses, as the configuration and the trust store know them. An alias
    /// wins over a host of the same name.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the text is none of these, [`ErrorKind::NotFound`] for a peer id without an address.
    ///
    /// ```
    /// use bib_client::Target;
    ///
    /// let known = [("lab".to_owned(), "lab.example.org:4000".to_owned())].into();
    /// assert_eq!(Target::parse("lab", &known)?, Target::parse("lab.example.org", &known)?);
    /// assert_eq!(Target::parse("unix:/run/bibd/bibd.sock", &known)?.to_string(), "unix:/run/bibd/bibd.sock");
    /// # Ok::<(), bib_client::Error>(())
    /// ```
    pub fn parse(text: &str, known: &BTreeMap<String, String>) -> Result<Self> {
        let text = text.trim();
        if let Some(address) = known.get(text) {
            let mut target = Self::parse_address(address)?;
            if let (Self::Tls { peer, .. }, Ok(id)) = (&mut target, text.parse::<PeerId>()) {
                *peer = Some(id);
            }
            return Ok(target);
        }
        if text.parse::<PeerId>().is_ok() {
            return Err(Error::new(ErrorKind::NotFound, format!("no address is known for the node `{text}`"))
                .with_hint("name it by address once: `bib connect HOST:PORT`"));
        }
        Self::parse_address(text)
    }

    fn parse_address(text: &str) -> Result<Self> {
        if let Some(path) = text.strip_prefix("unix:").or_else(|| text.starts_with('/').then_some(text)) {
            let path = path.strip_prefix("//").unwrap_or(path);
            if !path.starts_with('/') {
                return Err(invalid(text, "a socket's path begins with `/`"));
            }
            return Ok(Self::Socket(PathBuf::from(path)));
        }
        let text = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
        let (host, port) = split_port(text)?;
        let valid_name = |host: &str| host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        let is_address = host.parse::<std::net::IpAddr>().is_ok();
        if host.is_empty() || host.len() > 253 || !(is_address || valid_name(host)) {
            return Err(invalid(text, "this is no host name or address"));
        }
        Ok(Self::Tls { host: host.to_owned(), port, peer: None })
    }

    /// The node of this machine: the first socket that exists of `$XDG_RUNTIME_DIR/bibd/bibd.sock`,
    /// `/run/bibd/bibd.sock`, the data directories' `run/bibd.sock`, and what the ready files in these name.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when there is none, with the places that were looked at.
    pub fn local(places: &Places) -> Result<Self> {
        let candidates = places.candidates();
        let named = places.data_dirs.iter().filter_map(|dir| socket_of_ready_file(&dir.join(READY_FILE)));
        if let Some(socket) = candidates.iter().cloned().chain(named).find(|path| is_socket(path)) {
            return Ok(Self::Socket(socket));
        }
        let looked: Vec<_> = candidates.iter().map(|path| format!("`{}`", path.display())).collect();
        Err(Error::new(
            ErrorKind::Unavailable,
            format!("no node runs on this machine (looked at {})", looked.join(", ")),
        )
        .with_code(code::NO_NODE)
        .with_hint("start one with `bibd run`, or name one with `--node HOST:PORT`"))
    }

    /// What the trust store and the credentials are filed under: the address.
    #[must_use]
    pub fn address(&self) -> String {
        match self {
            Self::Socket(path) => format!("unix:{}", path.display()),
            Self::Tls { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Tls { host, port, .. } => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address())
    }
}

/// Where a local node may be: the directories of this user and machine, read from the environment by the caller.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// `$XDG_RUNTIME_DIR`.
    pub runtime_dir: Option<PathBuf>,
    /// Data directories that a node of this user or machine may have, most likely first.
    pub data_dirs: Vec<PathBuf>,
}

impl Places {
    /// Reads `XDG_RUNTIME_DIR`, `XDG_DATA_HOME` and `HOME` through `variable`; adds `/var/lib/bibd`.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let directory = |name: &str| variable(name).filter(|value| value.starts_with('/')).map(PathBuf::from);
        let data_home = directory("XDG_DATA_HOME").or_else(|| directory("HOME").map(|home| home.join(".local/share")));
        let data_dirs = directory("BIBD_DATA_DIR")
            .into_iter()
            .chain(data_home.map(|dir| dir.join("bibd")))
            .chain([PathBuf::from("/var/lib/bibd")])
            .collect();
        Self { runtime_dir: directory("XDG_RUNTIME_DIR"), data_dirs }
    }

    fn candidates(&self) -> Vec<PathBuf> {
        let runtime = self.runtime_dir.iter().map(|dir| dir.join(SOCKET_IN_RUNTIME_DIR));
        let system = [Path::new("/run").join(SOCKET_IN_RUNTIME_DIR)];
        let data = self.data_dirs.iter().map(|dir| dir.join(SOCKET_IN_DATA_DIR));
        runtime.chain(system).chain(data).collect()
    }
}

fn split_port(text: &str) -> Result<(&str, u16)> {
    let bad_port = |_| invalid(text, "the port is a number from 1 to 65535");
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(|| invalid(text, "a `]` is missing"))?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, port.parse().map_err(bad_port)?)),
            None if rest.is_empty() => Ok((host, DEFAULT_PORT)),
            None => Err(invalid(text, "after `]` only `:PORT` may follow")),
        };
    }
    match text.split_once(':') {
        // More than one colon: an IPv6 address without a port.
        Some((_, rest)) if rest.contains(':') => Ok((text, DEFAULT_PORT)),
        Some((host, port)) => Ok((host, port.parse().map_err(bad_port)?)),
        None => Ok((text, DEFAULT_PORT)),
    }
}

fn invalid(text: &str, reason: &str) -> Error {
    let shown: String = text.chars().take(120).filter(|c| !c.is_control()).collect();
    Error::new(ErrorKind::Invalid, format!("`{shown}` names no node: {reason}"))
        .with_hint("write HOST:PORT, unix:/path/to/bibd.sock, an alias or a peer id")
}

#[cfg(unix)]
fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

#[cfg(not(unix))]
fn is_socket(_: &Path) -> bool {
    false
}

fn socket_of_ready_file(path: &Path) -> Option<PathBuf> {
    let bytes = std::fs::read(path).ok().filter(|bytes| bytes.len() <= 64 * 1024)?;
    let value: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    value.get("socket")?.as_str().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Target> {
        let id = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X";
        let known = [("lab", "lab.example.org"), (id, "10.0.0.1:9000")];
        Target::parse(text, &known.map(|(a, b)| (a.to_owned(), b.to_owned())).into())
    }

    fn tls(host: &str, port: u16) -> Target {
        Target::Tls { host: host.to_owned(), port, peer: None }
    }

    #[test]
    fn reads_every_form() {
        let socket = Target::Socket("/run/bibd/bibd.sock".into());
        for (text, expected) in [
            ("unix:/run/bibd/bibd.sock", socket.clone()),
            ("unix:///run/bibd/bibd.sock", socket.clone()),
            ("/run/bibd/bibd.sock", socket),
            ("lab", tls("lab.example.org", DEFAULT_PORT)),
            ("example.org:443", tls("example.org", 443)),
            ("https://example.org:443/", tls("example.org", 443)),
            ("127.0.0.1", tls("127.0.0.1", DEFAULT_PORT)),
            ("::1", tls("::1", DEFAULT_PORT)),
            ("[::1]:8443", tls("::1", 8443)),
        ] {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn an_ipv6_address_is_written_back_with_brackets() {
        let target = parse("[::1]:8443").unwrap();
        assert_eq!(target.address(), "[::1]:8443");
        assert_eq!(parse(&target.address()).unwrap(), target);
    }

    #[test]
    fn a_known_peer_id_must_be_the_one_that_answers() {
        let id = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X";
        let target = parse(id).unwrap();
        assert_eq!(target, Target::Tls { host: "10.0.0.1".to_owned(), port: 9000, peer: Some(id.parse().unwrap()) });
        assert_eq!(Target::parse(id, &BTreeMap::new()).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn refuses_nonsense() {
        for text in ["", "unix:relative", "host:0x50", "host:70000", "[::1", "[::1]x", "a b", "http\u{1b}[31m", "-:-"] {
            assert_eq!(parse(text).map_err(|e| e.kind()).err(), Some(ErrorKind::Invalid), "{text}");
        }
    }

    #[test]
    fn finds_the_socket_and_the_one_the_ready_file_names() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places { runtime_dir: None, data_dirs: vec![dir.path().to_owned()] };
        let run = dir.path().join("run");
        std::fs::create_dir(&run).unwrap();
        let elsewhere = dir.path().join("other.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&elsewhere).unwrap();
        let ready = serde_json::json!({ "pid": 1, "socket": elsewhere }).to_string();
        std::fs::write(dir.path().join(READY_FILE), ready).unwrap();
        // A node of this machine at /run/bibd would win; then there is nothing to test.
        if !is_socket(Path::new("/run/bibd/bibd.sock")) {
            assert_eq!(Target::local(&places).unwrap(), Target::Socket(elsewhere));
            let own = run.join("bibd.sock");
            let _listener = std::os::unix::net::UnixListener::bind(&own).unwrap();
            assert_eq!(Target::local(&places).unwrap(), Target::Socket(own));
        }
    }
}
