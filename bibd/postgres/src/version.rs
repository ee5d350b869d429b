//! PostgreSQL versions: which ones this room manages, and how old is too old.

use std::fmt;

/// The oldest major version managed.
pub const OLDEST_MAJOR: u32 = 15;
/// The newest major version managed.
pub const NEWEST_MAJOR: u32 = 18;

/// A server's version, as PostgreSQL counts since 10: `major.minor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// 15 to 18 when managed.
    pub major: u32,
    /// The minor release.
    pub minor: u32,
}

impl Version {
    /// From `server_version_num` (150018 is 15.18).
    pub fn from_number(number: u32) -> Self {
        Self { major: number / 10_000, minor: number % 10_000 }
    }

    /// Reads what `postgres --version` prints: `postgres (PostgreSQL) 15.18 (Debian ..)`.
    /// A development version (`19devel`, `18beta1`) has minor 0.
    pub fn parse_banner(banner: &str) -> Option<Self> {
        let rest = banner.trim().strip_prefix("postgres (PostgreSQL) ")?;
        let word = rest.split_whitespace().next()?;
        let digits = |text: &str| -> Option<u32> {
            let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            text[..end].parse().ok()
        };
        let mut parts = word.split('.');
        let major = digits(parts.next()?)?;
        let minor = parts.next().and_then(digits).unwrap_or(0);
        Some(Self { major, minor })
    }

    /// Whether this room has a configuration for that major version.
    pub fn is_managed(self) -> bool {
        (OLDEST_MAJOR..=NEWEST_MAJOR).contains(&self.major)
    }

    /// The newest minor release seen when the checklist was written: older ones miss published security fixes.
    pub fn floor(self) -> Option<Version> {
        let minor = match self.major {
            15 => 20,
            16 => 16,
            17 => 12,
            18 => 7,
            _ => return None,
        };
        Some(Self { major: self.major, minor })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_banners_of_distributions_and_betas() {
        let parsed = |text| Version::parse_banner(text).map(|v| (v.major, v.minor));
        assert_eq!(parsed("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some((15, 18)));
        assert_eq!(parsed("postgres (PostgreSQL) 18.0"), Some((18, 0)));
        assert_eq!(parsed("postgres (PostgreSQL) 19devel"), Some((19, 0)));
        assert_eq!(parsed("psql (PostgreSQL) 15.18"), None);
        assert_eq!(parsed(""), None);
    }

    #[test]
    fn manages_fifteen_to_eighteen_only() {
        let managed = |major| Version { major, minor: 1 }.is_managed();
        assert_eq!([14, 15, 18, 19].map(managed), [false, true, true, false]);
        assert_eq!(Version::from_number(150_018), Version { major: 15, minor: 18 });
    }
}
