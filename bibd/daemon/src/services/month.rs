//! Months in UTC, as the audit log's partitions are cut.

use std::fmt;

use bib_core::Timestamp;
use uuid::Uuid;

/// A month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Month {
    year: i32,
    /// 1 to 12.
    month: u8,
}

impl Month {
    /// Reads `2026-05`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (year, month) = text.split_once('-')?;
        let found = Self { year: year.parse().ok()?, month: month.parse().ok()? };
        ((1..=12).contains(&found.month) && (0..=9999).contains(&found.year) && found.to_string() == text)
            .then_some(found)
    }

    /// The month that a moment lies in.
    #[must_use]
    pub fn of(moment: Timestamp) -> Self {
        let moment = moment.to_offset();
        Self { year: moment.year(), month: u8::from(moment.month()) }
    }

    /// The month that a UUIDv7 was made in.
    #[must_use]
    pub fn of_id(id: Uuid) -> Option<Self> {
        let (seconds, _) = id.get_timestamp()?.to_unix();
        Some(Self::of(Timestamp::from_micros(0).plus_seconds(i64::try_from(seconds).ok()?)))
    }

    /// Its first moment.
    #[must_use]
    pub fn begin(self) -> Timestamp {
        // Four digits, as every time of ours.
        format!("{self}-01T00:00:00.000000Z").parse().unwrap_or(Timestamp::from_micros(i64::MIN))
    }

    /// The month after.
    #[must_use]
    pub fn next(self) -> Self {
        if self.month == 12 { Self { year: self.year + 1, month: 1 } } else { Self { month: self.month + 1, ..self } }
    }

    /// The month before.
    #[must_use]
    pub fn before(self) -> Self {
        if self.month == 1 { Self { year: self.year - 1, month: 12 } } else { Self { month: self.month - 1, ..self } }
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_begin_and_follow_one_another() {
        let may = Month::parse("2026-05").unwrap();
        assert_eq!(may.begin().to_string(), "2026-05-01T00:00:00.000000Z");
        assert_eq!(may.next().begin().to_string(), "2026-06-01T00:00:00.000000Z");
        let december = Month::parse("2026-12").unwrap();
        assert_eq!(december.next(), Month::parse("2027-01").unwrap());
        assert_eq!(december.next().before(), december);
        assert_eq!(Month::of("2026-05-31T23:59:59.999999Z".parse().unwrap()), may);
        for text in ["2026", "2026-13", "2026-5", "2026-00", "26-05", "x-y"] {
            assert_eq!(Month::parse(text), None, "{text}");
        }
        let id = uuid::Builder::from_unix_timestamp_millis(1_779_000_000_000, &[0; 10]).into_uuid();
        assert_eq!(Month::of_id(id), Some(may));
        assert_eq!(Month::of_id(Uuid::nil()), None);
    }
}
