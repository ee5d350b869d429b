//! How a user likes to be shown things. Stored as a small object; what does not parse any more counts as not set.

use bib_core::access::Verb;
use bibd_catalog::users;
use serde_json::json;

use super::Users;
use crate::actor::Call;
use crate::services::ServiceError;
use crate::services::accounts::{COMPONENT, need_full_scope};
use crate::services::base::allow_node;
use crate::services::journal::Act;

/// The longest language tag, in bytes (RFC 5646, 4.4.1).
const MAX_LOCALE_BYTES: usize = 35;

/// Light or dark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Theme {
    /// As the terminal is.
    #[default]
    Auto,
    /// Dark on light.
    Light,
    /// Light on dark.
    Dark,
}

impl Theme {
    /// The word in the `.proto`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Light => "light",
            Self::Dark => "dark",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Auto, Self::Light, Self::Dark].into_iter().find(|theme| theme.as_str() == text)
    }
}

/// What a user prefers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preferences {
    /// Light or dark.
    pub theme: Theme,
    /// A language tag such as `en`.
    pub locale: String,
}

impl Default for Preferences {
    fn default() -> Self {
        Self { theme: Theme::Auto, locale: "en".to_owned() }
    }
}

impl Preferences {
    /// Preferences from a request; what is empty is the default.
    ///
    /// # Errors
    /// An unknown theme, or a text that has not the form of a BCP 47 tag.
    pub fn parse(theme: &str, locale: &str) -> Result<Self, ServiceError> {
        let default = Self::default();
        let theme = match theme {
            "" => default.theme,
            text => Theme::parse(text)
                .ok_or_else(|| ServiceError::invalid("preferences.theme", "themes are auto, light and dark"))?,
        };
        let locale = if locale.is_empty() { default.locale } else { locale.to_owned() };
        if !is_tag(&locale) {
            return Err(ServiceError::invalid(
                "preferences.locale",
                "a language tag such as `en` or `pt-BR` is needed",
            ));
        }
        Ok(Self { theme, locale })
    }
}

fn is_tag(text: &str) -> bool {
    let part = |part: &str| (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_alphanumeric());
    let language = |part: &str| (2..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_alphabetic());
    text.len() <= MAX_LOCALE_BYTES && text.split('-').next().is_some_and(language) && text.split('-').all(part)
}

impl Users {
    /// The caller's preferences.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn preferences(&self, call: &Call) -> Result<Preferences, ServiceError> {
        allow_node(call, Verb::SelfManage)?;
        let stored = users::preferences(&mut self.accounts.base.db.read().await?, call.actor.user).await?;
        let text = |key: &str| stored.get(key).and_then(|value| value.as_str()).unwrap_or_default();
        Ok(Preferences::parse(text("theme"), text("locale")).unwrap_or_default())
    }

    /// Sets the caller's preferences.
    ///
    /// # Errors
    /// Denied for a token of narrower scope.
    pub async fn set_preferences(&self, call: &Call, new: Preferences) -> Result<Preferences, ServiceError> {
        allow_node(call, Verb::SelfManage)?;
        need_full_scope(call)?;
        let value = json!({ "theme": new.theme.as_str(), "locale": new.locale });
        let mut tx = self.accounts.base.begin(call, COMPONENT).await?;
        users::set_preferences(&mut tx, call.actor.user, &value, self.accounts.base.now()).await?;
        let act = Act::new("user.preferences", call.actor.user.to_string(), value);
        self.accounts.base.journal.commit(tx, call, act).await?;
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preferences_are_checked() {
        assert_eq!(Preferences::parse("", "").unwrap(), Preferences::default());
        assert_eq!(Preferences::parse("dark", "pt-BR").unwrap().locale, "pt-BR");
        for (theme, locale) in [("pink", "en"), ("dark", "e"), ("dark", "en_US"), ("dark", "-"), ("dark", "12")] {
            assert!(Preferences::parse(theme, locale).is_err(), "{theme} {locale}");
        }
    }
}
