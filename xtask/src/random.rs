//! Seeded numbers and files: the same seed makes the same bytes, on any machine and in any year.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::Context as _;

/// SplitMix64 (Steele, Lea, Flood 2014): small, fast, and written down, so that inputs never change with a library.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    #[must_use]
    pub const fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is above 0. The bias is below 2^-32 for the small ends used here.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    /// Fills a buffer.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for part in buffer.chunks_mut(8) {
            let bytes = self.number().to_le_bytes();
            part.copy_from_slice(&bytes[..part.len()]);
        }
    }
}

/// Writes a file of random bytes.
///
/// # Errors
/// When the system refuses.
pub fn write_file(path: &Path, bytes: u64, random: &mut Random) -> anyhow::Result<()> {
    let act = || format!("write `{}`", path.display());
    let mut file = File::create(path).with_context(act)?;
    let mut buffer = vec![0; usize::try_from(bytes.min(1 << 20)).unwrap_or(1 << 20)];
    let mut left = bytes;
    while left > 0 {
        let part = usize::try_from(left.min(buffer.len() as u64)).unwrap_or(buffer.len());
        random.fill(&mut buffer[..part]);
        file.write_all(&buffer[..part]).with_context(act)?;
        left -= part as u64;
    }
    Ok(())
}

/// Writes a table of weather observations: `rows` lines in the order of time, from 500 stations.
///
/// # Errors
/// When the system refuses.
pub fn write_observations(path: &Path, rows: u64, random: &mut Random) -> anyhow::Result<()> {
    let act = || format!("write `{}`", path.display());
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path).with_context(act)?);
    writeln!(out, "station,time,temperature_c,humidity_percent,wind_m_s,pressure_hpa").with_context(act)?;
    for row in 0..rows {
        let (hour, station) = (row / 500, row % 500);
        let (day, hour) = (hour / 24, hour % 24);
        // Days of 30-day months from the year 2000: a table for trying things, not a calendar.
        let (year, month, day) = (2000 + day / 360, day / 30 % 12 + 1, day % 30 + 1);
        let draw = random.number();
        // One draw gives four numbers of 16 bits.
        let [temperature, humidity, wind, pressure] = [0, 16, 32, 48].map(|shift| draw >> shift & 0xffff);
        writeln!(
            out,
            "S{station:03},{year}-{month:02}-{day:02}T{hour:02}:00:00Z,{}.{},{},{}.{},{}.{}",
            temperature % 40,
            temperature / 64 % 10,
            humidity % 101,
            wind % 30,
            wind / 64 % 10,
            960 + pressure % 80,
            pressure / 128 % 10,
        )
        .with_context(act)?;
    }
    out.flush().with_context(act)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_the_published_one() {
        // From the reference implementation, seed 1234567.
        let mut random = Random::of(1_234_567);
        assert_eq!(random.number(), 6_457_827_717_110_365_317);
        assert_eq!(random.number(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn the_same_seed_makes_the_same_table() {
        let here = tempfile::tempdir().unwrap();
        let [one, two] = ["a", "b"].map(|name| {
            let path = here.path().join(name);
            write_observations(&path, 1_000, &mut Random::of(7)).unwrap();
            std::fs::read_to_string(path).unwrap()
        });
        assert_eq!(one, two);
        assert_eq!(one.lines().count(), 1_001);
        assert!(one.lines().nth(1).unwrap().starts_with("S000,2000-01-01T00:00:00Z,"));
    }
}
