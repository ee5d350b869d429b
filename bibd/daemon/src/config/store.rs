//! Where backups are kept: a directory, or a bucket of an S3-compatible store.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::units::{Size, Span};

/// What every location in a bucket begins with.
const SCHEME: &str = "s3://";

/// Where a store is: an absolute path, or `s3://bucket/prefix`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreLocation {
    /// A directory.
    Directory(PathBuf),
    /// A bucket.
    Bucket {
        /// Its name.
        bucket: String,
        /// What every key of the store begins with, without slashes around it; may be empty.
        prefix: String,
    },
}

/// The text names no place of a bucket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a store such as /mnt/backups or s3://bucket/prefix")]
pub struct LocationError(String);

impl FromStr for StoreLocation {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        let refused = || LocationError(text.chars().take(120).collect());
        let Some(rest) = text.strip_prefix(SCHEME) else {
            // A word with a scheme that is not ours is never meant as a directory.
            return if text.is_empty() || text.contains("://") {
                Err(refused())
            } else {
                Ok(Self::Directory(text.into()))
            };
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        let is_bucket = (3..=63).contains(&bucket.len())
            && bucket.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'_'))
            && bucket.starts_with(|c: char| c.is_ascii_alphanumeric());
        let is_segment = |segment: &str| {
            !segment.is_empty()
                && segment != "."
                && segment != ".."
                && segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        };
        let is_prefix = prefix.len() <= 512 && (prefix.is_empty() || prefix.split('/').all(is_segment));
        if is_bucket && is_prefix {
            Ok(Self::Bucket { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
        } else {
            Err(refused())
        }
    }
}

impl fmt::Display for StoreLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::Bucket { bucket, prefix } if prefix.is_empty() => write!(f, "{SCHEME}{bucket}"),
            Self::Bucket { bucket, prefix } => write!(f, "{SCHEME}{bucket}/{prefix}"),
        }
    }
}

impl Serialize for StoreLocation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StoreLocation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'_, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for StoreLocation {
    fn schema_name() -> Cow<'static, str> {
        "StoreLocation".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "examples": ["/mnt/backups", "s3://bucket/prefix"] })
    }
}

/// How the bucket of an `s3://` store is reached. Its credentials never stand here: `bib admin backup credentials set`
/// seals them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct S3 {
    /// The URL of the store's API, such as `https://s3.example.org:9000`. Default: AWS, by the region.
    pub endpoint: Option<String>,
    /// The region that requests are signed for.
    pub region: String,
    /// Whether the bucket's name stands in the path and not in the host name. Default: where there is an endpoint.
    pub path_style: Option<bool>,
    /// Certificate authorities in PEM that the endpoint's certificate is checked against, instead of the machine's.
    pub ca_file: Option<PathBuf>,
    /// Speak to an endpoint of another machine in clear, at your own risk: whoever is on the way sees names and sizes,
    /// and can keep backups from the store.
    pub allow_http: bool,
    /// A file 0600 with the credentials, as `~/.aws/credentials` has them, read for each request; for who renews them
    /// by other means. Default: the sealed ones.
    pub credentials_file: Option<PathBuf>,
    /// How long the store may be silent, 1 s to 10 min.
    pub timeout: Span,
    /// The size of the pieces of a large object, 5MiB to 1GiB; there are 10,000 at most, and three in memory.
    pub part_size: Size,
}

impl Default for S3 {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: "us-east-1".to_owned(),
            path_style: None,
            ca_file: None,
            allow_http: false,
            credentials_file: None,
            timeout: Span(Duration::from_secs(30)),
            part_size: Size(16 << 20),
        }
    }
}

impl S3 {
    /// As the room of S3 takes them.
    #[must_use]
    pub fn settings(&self) -> bibd_s3::Settings {
        bibd_s3::Settings {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            path_style: self.path_style,
            ca_file: self.ca_file.clone(),
            timeout: self.timeout.0,
            part_bytes: usize::try_from(self.part_size.0).unwrap_or(usize::MAX),
        }
    }
}

/// What is wrong with a section: key, sentence, hint.
pub(super) type Refusal = (&'static str, &'static str, &'static str);

/// What types alone cannot say about the store of backups.
pub(super) fn check(store: Option<&StoreLocation>, s3: &S3) -> Vec<Refusal> {
    let mut found = Vec::new();
    match store {
        Some(StoreLocation::Directory(path)) if !path.is_absolute() => found.push((
            "backup.store",
            "must be an absolute path or s3://bucket/prefix",
            "write a path from the root of the file system",
        )),
        _ => {}
    }
    found.extend(check_s3(s3));
    found
}

/// What types alone cannot say about how a bucket is reached. The keys are those of backups.
pub(super) fn check_s3(s3: &S3) -> Vec<Refusal> {
    let mut found = Vec::new();
    if let Some(endpoint) = &s3.endpoint {
        found.extend(check_endpoint(endpoint, s3.allow_http));
    }
    let is_region = |text: &str| {
        (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if !is_region(&s3.region) {
        found.push(("backup.s3.region", "must be a word such as eu-central-1", "remove it to use us-east-1"));
    }
    if !(1..=600).contains(&s3.timeout.0.as_secs()) {
        found.push(("backup.s3.timeout", "must be 1s to 10m", "30s is usual"));
    }
    if !((5 << 20)..=(1 << 30)).contains(&s3.part_size.0) {
        found.push(("backup.s3.part_size", "must be 5MiB to 1GiB", "16MiB is usual: backups up to 156GiB"));
    }
    for (key, path) in [("backup.s3.ca_file", &s3.ca_file), ("backup.s3.credentials_file", &s3.credentials_file)] {
        if path.as_ref().is_some_and(|path| !path.is_absolute()) {
            found.push((key, "must be an absolute path", "write it from the root of the file system"));
        }
    }
    found
}

fn check_endpoint(endpoint: &str, allow_http: bool) -> Option<Refusal> {
    const KEY: &str = "backup.s3.endpoint";
    const LIKE: &str = "write it like https://s3.example.org:9000";
    let Ok(url) = endpoint.parse::<http::Uri>() else { return Some((KEY, "is not a URL", LIKE)) };
    let Some(host) = url.host().filter(|_| !endpoint.contains('@')) else {
        return Some((KEY, "must be a URL with a host and without a user", LIKE));
    };
    if !matches!(url.path(), "" | "/") || url.query().is_some() {
        return Some((KEY, "must end with the host or its port", "the bucket stands in `backup.store`"));
    }
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    let is_here = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    match url.scheme_str() {
        Some("https") => None,
        Some("http") if is_here || allow_http => None,
        Some("http") => {
            Some((KEY, "would send everything in clear", "use https:// there, or set backup.s3.allow_http"))
        }
        _ => Some((KEY, "must begin with https://", LIKE)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_read_as_they_are_written() {
        let bucket =
            |bucket: &str, prefix: &str| StoreLocation::Bucket { bucket: bucket.into(), prefix: prefix.into() };
        for (text, location) in [
            ("/mnt/backups", StoreLocation::Directory("/mnt/backups".into())),
            ("s3://lab-backups", bucket("lab-backups", "")),
            ("s3://lab.1/bib/node-a", bucket("lab.1", "bib/node-a")),
        ] {
            assert_eq!(text.parse(), Ok(location.clone()));
            assert_eq!(location.to_string(), text);
        }
        assert_eq!("s3://abc/".parse(), Ok(bucket("abc", "")));
        for text in ["", "s3://", "s3://ab", "s3://Abc", "s3://abc//x", "s3://abc/../x", "s3://abc/a b", "gs://abc"] {
            assert!(text.parse::<StoreLocation>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_endpoint_in_clear_is_for_this_machine_alone() {
        let said = |endpoint: &str, allow_http| check_endpoint(endpoint, allow_http).map(|refusal| refusal.1);
        for good in
            ["https://s3.example.org", "https://s3.example.org:9000/", "http://127.0.0.1:9000", "http://[::1]:1"]
        {
            assert_eq!(said(good, false), None, "{good}");
        }
        assert_eq!(said("http://minio:9000", false), Some("would send everything in clear"));
        assert_eq!(said("http://minio:9000", true), None);
        for bad in ["minio:9000", "https://key:word@host", "https://host/bucket", "ftp://host", "https://"] {
            assert!(said(bad, true).is_some(), "{bad}");
        }
    }
}
