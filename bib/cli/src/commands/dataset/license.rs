//! Licences on the command line: SPDX expressions, with "did you mean". Never guessed.

use bib_core::metadata::license::{LicenseError, check as check_expression, from_id_or_url, ids};

use crate::config::nearest;
use crate::errors::{Failure, Result};

/// What people most often choose for data.
const USUAL: &str = "CC-BY-4.0 and CC0-1.0 are usual for data; https://spdx.org/licenses lists all";

/// Checks an expression.
///
/// # Errors
/// Exit 2 with what was probably meant.
pub(crate) fn check(text: &str) -> Result<()> {
    complaint(text).map_err(|(sentence, hint)| Failure::usage(sentence).with_hint(hint))
}

/// What is wrong with an expression, in one line for a prompt.
///
/// # Errors
/// The sentence.
pub(crate) fn check_answer(text: &str) -> Result<(), String> {
    complaint(text).map_err(|(sentence, hint)| format!("{sentence}; {hint}"))
}

fn complaint(text: &str) -> Result<(), (String, String)> {
    let Err(error) = check_expression(text) else { return Ok(()) };
    // An id in another case, or an address at SPDX or Creative Commons, has exactly one meaning; it is still the
    // person who says so.
    let meant =
        from_id_or_url(text).or_else(|| from_id_or_url(&text.trim().replace(' ', "-"))).or_else(|| match &error {
            LicenseError::UnknownTerm { term } => {
                from_id_or_url(term).or_else(|| nearest(term, ids()).map(str::to_owned))
            }
            LicenseError::Syntax { .. } => nearest(text, ids()).map(str::to_owned),
        });
    Err((error.to_string(), meant.map_or_else(|| USUAL.to_owned(), |id| format!("did you mean `{id}`?"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_was_meant() {
        assert!(check("CC-BY-4.0").is_ok());
        for (text, meant) in [
            ("cc-by-4.0", "CC-BY-4.0"),
            ("CC-BY-4", "CC-BY-4.0"),
            ("CC BY 4.0", "CC-BY-4.0"),
            ("CCO-1.0", "CC0-1.0"),
            ("https://creativecommons.org/licenses/by/4.0/", "CC-BY-4.0"),
        ] {
            let sentence = check_answer(text).unwrap_err();
            assert!(sentence.contains(&format!("`{meant}`")), "{text}: {sentence}");
        }
        assert!(check_answer("ask me").unwrap_err().contains("spdx.org"));
    }
}
