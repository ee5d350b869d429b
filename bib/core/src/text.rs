//! Text from outside, made safe to print: on a terminal, in a log line, in an error message.
//!
//! Names, titles and paths come from strangers. Printed raw they could move the cursor, set the clipboard, or show one
//! name while another is meant. Nothing here changes what is stored or hashed.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Characters of an operand that an error message shows.
const CLIP_CHARS: usize = 80;

/// `text` with every control character (line ends and tabs too), bidirectional override and invisible character
/// written out as `\u{1b}`. For one line of output. Borrowed when there is nothing to replace.
#[must_use]
pub fn scrub(text: &str) -> Cow<'_, str> {
    replace(text, is_unsafe)
}

/// As [`scrub`], but line feeds and tabs stay: for descriptions and other text of several lines.
#[must_use]
pub fn scrub_lines(text: &str) -> Cow<'_, str> {
    replace(text, |c| is_unsafe(c) && !matches!(c, '\n' | '\t'))
}

/// The first characters of `text`, scrubbed: what an error message shows of its operand.
pub(crate) fn clip(text: &str) -> String {
    match text.char_indices().nth(CLIP_CHARS) {
        Some((end, _)) => format!("{}...", scrub(&text[..end])),
        None => scrub(text).into_owned(),
    }
}

fn replace(text: &str, unsafe_to_print: impl Fn(char) -> bool) -> Cow<'_, str> {
    let Some(first) = text.find(&unsafe_to_print) else {
        return Cow::Borrowed(text);
    };
    let mut out = String::with_capacity(text.len() + 16);
    out.push_str(&text[..first]);
    for c in text[first..].chars() {
        if unsafe_to_print(c) {
            // Writing into a String cannot fail.
            let _ = write!(out, "{}", c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Control characters of both sets, what turns the direction of writing, and what takes no room or ends a line.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' // soft hyphen
            | '\u{34f}' // combining grapheme joiner
            | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' // direction
            | '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}' // Hangul fillers
            | '\u{180b}'..='\u{180f}' // Mongolian selectors
            | '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{2065}' | '\u{206a}'..='\u{206f}' | '\u{feff}' // zero width
            | '\u{2028}' | '\u{2029}' // line and paragraph separators
            | '\u{fff9}'..='\u{fffb}' // interlinear annotation
            | '\u{e0000}'..='\u{e0fff}' // tags and supplementary selectors
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_text_is_borrowed() {
        for text in ["", "era5", "Übersicht 数据 🙂", "a b\\c"] {
            assert!(matches!(scrub(text), Cow::Borrowed(_)), "{text}");
        }
    }

    #[test]
    fn terminal_tricks_become_visible() {
        let table = [
            ("\u{1b}]52;c;ZXZpbA==\u{7}", r"\u{1b}]52;c;ZXZpbA==\u{7}"),
            ("\u{1b}]8;;x:y\u{1b}\\z", r"\u{1b}]8;;x:y\u{1b}\z"),
            ("a\u{9b}2Jb", r"a\u{9b}2Jb"),
            ("bell\u{7} null\0 del\u{7f}", r"bell\u{7} null\u{0} del\u{7f}"),
            ("fdp\u{202e}exe", r"fdp\u{202e}exe"),
            ("\u{2066}x\u{2069}\u{200f}", r"\u{2066}x\u{2069}\u{200f}"),
            ("ze\u{200b}ro\u{200d}\u{feff}", r"ze\u{200b}ro\u{200d}\u{feff}"),
            ("one\ntwo\tthree\r", r"one\u{a}two\u{9}three\u{d}"),
            ("a\u{2028}b", r"a\u{2028}b"),
        ];
        for (text, shown) in table {
            assert_eq!(scrub(text), shown);
        }
        assert_eq!(scrub_lines("one\n\ttwo\r\n"), "one\n\ttwo\\u{d}\n");
    }

    #[test]
    fn clipping_keeps_whole_characters() {
        assert_eq!(clip(&"é".repeat(100)), format!("{}...", "é".repeat(80)));
        assert_eq!(clip("\u{1b}"), r"\u{1b}");
    }
}
