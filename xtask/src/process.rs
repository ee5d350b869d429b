//! Runs other programs: announced, with the failure named by the command that a person can paste.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// The root of the repository.
#[must_use]
pub fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// The cargo that runs us.
#[must_use]
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    // What cargo said to the build of xtask is not meant for the builds that xtask starts.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "CARGO_BIN_NAME" {
            command.env_remove(name);
        }
    }
    command
}

/// The command as a person would type it.
#[must_use]
pub fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let words = std::iter::once(name).chain(command.get_args()).map(quoted);
    words.collect::<Vec<_>>().join(" ")
}

/// A word, in quotes where a shell would take it apart.
fn quoted(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:@,+%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Prints the command, runs it with our standard streams.
///
/// # Errors
/// When it cannot be started or ends with failure.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    println!("$ {}", shown(command));
    let status = command.status().with_context(|| format!("start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", shown(command));
    }
    Ok(())
}

/// Runs the command silently and returns its standard output.
///
/// # Errors
/// When it cannot be started or ends with failure; the message holds what it said on standard error.
pub fn capture(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start `{}`", shown(command)))?;
    if !output.status.success() {
        bail!("`{}` failed: {}\n{}", shown(command), output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    String::from_utf8(output.stdout).with_context(|| format!("read what `{}` said", shown(command)))
}

/// Prints the command, runs it, passes its standard error on as it comes and returns the last line that contains
/// `needle`, whether it succeeded or not.
///
/// # Errors
/// When it cannot be started or ends with failure; the message then carries that line.
pub fn run_and_find(command: &mut Command, needle: &str) -> anyhow::Result<Option<String>> {
    println!("$ {}", shown(command));
    let mut child = command.stderr(Stdio::piped()).spawn().with_context(|| format!("start `{}`", shown(command)))?;
    let mut found = None;
    if let Some(stderr) = child.stderr.take() {
        let mut line = Vec::new();
        let mut reader = BufReader::new(stderr);
        while reader.read_until(b'\n', &mut line).context("read standard error")? > 0 {
            std::io::stderr().write_all(&line).context("pass standard error on")?;
            let text = String::from_utf8_lossy(&line);
            if text.contains(needle) {
                found = Some(text.trim().to_owned());
            }
            line.clear();
        }
    }
    let status = child.wait().context("wait for the command")?;
    if !status.success() {
        bail!("`{}` failed: {status}\n{}", shown(command), found.unwrap_or_default());
    }
    Ok(found)
}

/// Where a program is, by PATH and the directories for administrators that a plain user's PATH leaves out.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let cargo = std::env::var_os("CARGO_HOME").map(|home| PathBuf::from(home).join("bin"));
    std::env::split_paths(&path)
        .chain(system)
        .chain(cargo)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_can_be_pasted() {
        let mut command = Command::new("/usr/bin/printf");
        command.args(["%s", "it's two words", ""]);
        assert_eq!(shown(&command), r"printf %s 'it'\''s two words' ''");
    }

    #[test]
    fn failure_names_the_command_and_what_it_said() {
        let error = capture(Command::new("sh").args(["-c", "echo broken >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().contains("sh -c"), "{error}");
        assert!(error.to_string().contains("broken"), "{error}");
    }

    #[test]
    fn finds_the_last_line_with_the_needle() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'Summary 1' >&2; echo other >&2; echo ' Summary 2' >&2"]);
        assert_eq!(run_and_find(&mut command, "Summary").unwrap().as_deref(), Some("Summary 2"));
    }
}
