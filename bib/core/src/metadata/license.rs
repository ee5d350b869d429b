//! Licences: SPDX expressions.

/// The longest licence expression, in bytes.
pub const MAX_LICENSE_BYTES: usize = 512;

/// The text is not an SPDX licence expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LicenseError {
    /// A word in it is no SPDX licence id.
    #[error("`{term}` is not an SPDX licence id")]
    UnknownTerm {
        /// The word.
        term: String,
    },
    /// The words do not form an expression.
    #[error("`{expression}` is not an SPDX licence expression: {reason}")]
    Syntax {
        /// The text.
        expression: String,
        /// What is wrong.
        reason: String,
    },
}

/// Whether `expression` is an SPDX licence expression of known ids (`LicenseRef-` ids are known).
///
/// # Errors
/// When it is not; an unknown id is named, so that a caller can say what comes near.
pub fn check(expression: &str) -> Result<(), LicenseError> {
    let syntax = |reason: String| LicenseError::Syntax { expression: expression.chars().take(80).collect(), reason };
    crate::fields::check_line(expression, MAX_LICENSE_BYTES).map_err(syntax)?;
    match spdx::Expression::parse(expression) {
        Ok(_) => Ok(()),
        Err(e) if names_a_word(&e.reason) => {
            let term = expression.get(e.span.clone()).unwrap_or(expression);
            Err(LicenseError::UnknownTerm { term: term.chars().take(80).collect() })
        }
        Err(e) => Err(syntax(e.reason.to_string())),
    }
}

/// Every SPDX licence id, for "did you mean".
pub fn ids() -> impl Iterator<Item = &'static str> {
    spdx::identifiers::LICENSES.iter().map(|(id, _, _)| *id)
}

const fn names_a_word(reason: &spdx::error::Reason) -> bool {
    use spdx::error::Reason;
    matches!(reason, Reason::UnknownTerm | Reason::UnknownLicense | Reason::UnknownException)
}

/// The SPDX id that other formats mean by an id of another case, or by an address at SPDX or Creative Commons.
#[must_use]
pub fn from_id_or_url(text: &str) -> Option<String> {
    let text = text.trim();
    if check(text).is_ok() {
        return Some(text.to_owned());
    }
    let exact = |id: &str| ids().find(|known| known.eq_ignore_ascii_case(id)).map(str::to_owned);
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let Some(rest) = rest else { return exact(text) };
    let rest = rest.strip_prefix("www.").unwrap_or(rest);
    let rest = rest.trim_end_matches('/');
    if let Some(id) = rest.strip_prefix("spdx.org/licenses/") {
        return exact(id.trim_end_matches(".html").trim_end_matches(".json"));
    }
    if let Some(id) = rest.strip_prefix("opensource.org/licenses/") {
        return exact(id);
    }
    let path = rest.strip_prefix("creativecommons.org/")?;
    let path = path.trim_end_matches("/legalcode").trim_end_matches("/deed.en");
    let parts: Vec<&str> = path.trim_end_matches("/deed").split('/').collect();
    match parts.as_slice() {
        ["licenses", kind, version] => exact(&format!("CC-{kind}-{version}")),
        ["publicdomain", "zero", version] => exact(&format!("CC0-{version}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_expressions_and_names_the_unknown_word() {
        for good in [
            "CC-BY-4.0",
            "MIT OR Apache-2.0",
            "CC0-1.0",
            "LicenseRef-ours",
            "GPL-2.0-only WITH Classpath-exception-2.0",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        assert_eq!(check("MIT OR CC-BY-4"), Err(LicenseError::UnknownTerm { term: "CC-BY-4".into() }));
        for bad in ["", "MIT OR", "(MIT", "MIT\nOR MIT"] {
            assert!(matches!(check(bad), Err(LicenseError::Syntax { .. })), "{bad}");
        }
    }

    #[test]
    fn finds_the_id_behind_other_spellings() {
        let cases = [
            ("cc-by-4.0", "CC-BY-4.0"),
            ("https://creativecommons.org/licenses/by-nc/4.0/", "CC-BY-NC-4.0"),
            ("http://creativecommons.org/licenses/by/4.0/legalcode", "CC-BY-4.0"),
            ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
            ("https://spdx.org/licenses/ODbL-1.0.html", "ODbL-1.0"),
            ("https://opensource.org/licenses/MIT", "MIT"),
        ];
        for (text, id) in cases {
            assert_eq!(from_id_or_url(text).as_deref(), Some(id), "{text}");
        }
        assert_eq!(from_id_or_url("https://example.org/our-terms"), None);
    }
}
