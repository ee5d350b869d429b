//! The image: brought here, compared with the configured digest, and looked through for PostgreSQL's programs.

use std::path::PathBuf;

use bollard::models::ImageInspect;

use crate::error::Error;
use crate::settings::ContainerSettings;
use crate::version::{NEWEST_MAJOR, OLDEST_MAJOR, Version};

use super::engine::Engine;

/// An image that is here.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// Its id, which names these very bytes.
    pub(crate) id: String,
    /// Where it declares volumes.
    pub(crate) volumes: Vec<String>,
}

/// Prints a line `bin DIRECTORY BANNER` for each place with a server, and `locale NAME` for each locale.
pub(crate) const SURVEY: &str = r#"IFS=:
for d in $PATH /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /usr/local/pgsql/bin; do
    if [ -x "$d/postgres" ] && [ -x "$d/initdb" ]; then
        echo "bin $d $("$d/postgres" --version 2>&1)"
    fi
done
locale -a 2>/dev/null | while read -r name; do echo "locale $name"; done
exit 0"#;

/// What an image has for us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Survey {
    /// Where the programs are, inside.
    pub(crate) bin_dir: PathBuf,
    /// What `postgres --version` prints.
    pub(crate) banner: String,
    /// The version in it.
    pub(crate) version: Version,
    /// Its locales, one a line.
    pub(crate) locales: String,
}

/// The configured image: as it is here, or pulled.
///
/// # Errors
/// [`Error::ImageAbsent`], [`Error::OtherDigest`], and what the engine says.
pub(crate) async fn ensure(engine: &Engine, settings: &ContainerSettings) -> Result<Image, Error> {
    if let Some(image) = find(engine, settings).await? {
        return Ok(image);
    }
    let image = &settings.image;
    let absent = |reason: String| Error::ImageAbsent { image: image.clone(), reason };
    // With a digest exactly that one is asked for: a registry whose name means another image now has nothing for us.
    let wanted = match &settings.digest {
        Some(digest) if !image.contains('@') => format!("{}@{digest}", without_tag(image)),
        _ => image.clone(),
    };
    let pulled = engine.pull(&wanted, settings.pull_stalled).await;
    pulled.map_err(|error| absent(format!("it cannot be pulled: {error}")))?;
    let pulled = engine.find_image(&wanted).await?.ok_or_else(|| absent("it was pulled and is not here".to_owned()))?;
    check(settings, pulled)
}

/// The configured image, if it is here.
///
/// # Errors
/// [`Error::OtherDigest`], and what the engine says.
pub(crate) async fn find(engine: &Engine, settings: &ContainerSettings) -> Result<Option<Image>, Error> {
    match engine.find_image(&settings.image).await? {
        Some(image) => check(settings, image).map(Some),
        None => Ok(None),
    }
}

/// The digest of an image in its registry, or its own id.
///
/// # Errors
/// What the engine says.
pub(crate) async fn digest(engine: &Engine, id: &str) -> Result<String, Error> {
    let digests = engine.find_image(id).await?.and_then(|image| image.repo_digests).unwrap_or_default();
    let known = digests.iter().find_map(|name| name.split_once('@'));
    Ok(known.map_or_else(|| id.to_owned(), |(_, digest)| digest.to_owned()))
}

fn check(settings: &ContainerSettings, image: ImageInspect) -> Result<Image, Error> {
    let id = image.id.unwrap_or_default();
    if let Some(expected) = &settings.digest {
        let digests = image.repo_digests.unwrap_or_default();
        let mut known: Vec<&str> = digests.iter().filter_map(|name| name.split_once('@')).map(|(_, d)| d).collect();
        known.push(&id);
        // Podman names an id without its algorithm.
        let plain = expected.strip_prefix("sha256:").unwrap_or(expected);
        if !known.iter().any(|digest| digest.strip_prefix("sha256:").unwrap_or(digest) == plain) {
            let found = known.join(", ");
            return Err(Error::OtherDigest { image: settings.image.clone(), expected: expected.clone(), found });
        }
    }
    let volumes = image.config.and_then(|config| config.volumes).unwrap_or_default();
    Ok(Image { id, volumes })
}

/// `registry:5000/name:tag` without the tag.
fn without_tag(image: &str) -> &str {
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => image,
    }
}

/// Reads what [`SURVEY`] printed: the programs of `major` when given (the data decides), else the newest.
///
/// # Errors
/// [`Error::ImageUnusable`] with what was found instead.
pub(crate) fn read_survey(image: &str, output: &str, major: Option<u32>) -> Result<Survey, Error> {
    let locales: Vec<&str> = output.lines().filter_map(|line| line.strip_prefix("locale ")).collect();
    let mut found: Vec<Survey> = output
        .lines()
        .filter_map(|line| line.strip_prefix("bin ")?.split_once(' '))
        .filter_map(|(bin_dir, banner)| {
            let version = Version::parse_banner(banner)?;
            let banner = banner.trim().to_owned();
            Some(Survey { bin_dir: PathBuf::from(bin_dir), banner, version, locales: locales.join("\n") })
        })
        .collect();
    let unusable = |reason: String| Error::ImageUnusable { image: image.to_owned(), reason };
    if found.is_empty() {
        let said = output.lines().find(|line| !line.starts_with("locale ")).unwrap_or("nothing");
        return Err(unusable(format!("there is no `postgres` with `initdb` in it (it says: {said})")));
    }
    found.sort_by_key(|survey| survey.version);
    let versions: Vec<String> = found.iter().map(|survey| survey.version.to_string()).collect();
    let fits = |survey: &Survey| match major {
        Some(major) => survey.version.major == major,
        None => survey.version.is_managed(),
    };
    found.into_iter().rfind(fits).ok_or_else(|| {
        unusable(match major {
            Some(major) => format!("the data belongs to PostgreSQL {major}, it has {}", versions.join(" and ")),
            None => format!("it has PostgreSQL {}, not {OLDEST_MAJOR} to {NEWEST_MAJOR}", versions.join(" and ")),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_programs_that_the_data_needs() {
        let output = "bin /usr/lib/postgresql/15/bin postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n\
                      bin /usr/lib/postgresql/17/bin postgres (PostgreSQL) 17.12\n\
                      bin /usr/local/bin /usr/local/bin/postgres: not found\n\
                      locale C.utf8\nlocale POSIX\n";
        let survey = |major| read_survey("i", output, major).map(|survey| survey.version.major);
        assert_eq!((survey(None).unwrap(), survey(Some(15)).unwrap()), (17, 15));
        assert_eq!(read_survey("i", output, None).unwrap().locales, "C.utf8\nPOSIX");
        let refused = survey(Some(16)).unwrap_err().to_string();
        assert!(refused.contains("belongs to PostgreSQL 16, it has 15.18 and 17.12"), "{refused}");
        let old = read_survey("i", "bin /usr/bin postgres (PostgreSQL) 13.2\n", None).unwrap_err().to_string();
        assert!(old.contains("it has PostgreSQL 13.2, not 15 to 18"), "{old}");
        let none = read_survey("i", "locale C\n", None).unwrap_err().to_string();
        assert!(none.contains("there is no `postgres` with `initdb` in it"), "{none}");
    }

    #[test]
    fn a_tag_is_told_from_a_port() {
        assert_eq!(without_tag("docker.io/library/postgres:18"), "docker.io/library/postgres");
        assert_eq!(without_tag("registry:5000/postgres"), "registry:5000/postgres");
        assert_eq!(without_tag("postgres"), "postgres");
    }

    #[test]
    fn another_digest_is_refused_with_both() {
        let digest = |text: &str| ContainerSettings { digest: Some(text.to_owned()), ..ContainerSettings::default() };
        let here = ImageInspect {
            id: Some("sha256:aa".to_owned()),
            repo_digests: Some(vec!["docker.io/library/postgres@sha256:bb".to_owned()]),
            ..ImageInspect::default()
        };
        for known in ["sha256:aa", "sha256:bb", "bb"] {
            assert_eq!(check(&digest(known), here.clone()).unwrap().id, "sha256:aa");
        }
        let refused = check(&digest("sha256:cc"), here).unwrap_err();
        assert!(refused.to_string().ends_with("is sha256:bb, sha256:aa, not sha256:cc"), "{refused}");
    }
}
