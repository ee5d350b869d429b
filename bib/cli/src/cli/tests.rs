use clap::CommandFactory as _;
use expect_test::expect_file;

use super::reference::reference;
use super::*;

/// What stands above this line in `docs/cli.md` is written by hand, what follows by this test.
const MARK: &str = "<!-- What follows is written by `UPDATE_EXPECT=1 cargo nextest run -p bib`. -->\n";

#[test]
fn the_tree_of_commands_is_sound() {
    Cli::command().debug_assert();
}

/// clap finds out only when it runs, and then it panics.
#[test]
fn no_argument_is_called_like_a_flag_of_every_command() {
    fn check(command: &clap::Command, global: &[clap::Id]) {
        for argument in command.get_arguments().filter(|argument| !argument.is_global_set()) {
            assert!(!global.contains(argument.get_id()), "{} of {}", argument.get_id(), command.get_name());
        }
        command.get_subcommands().for_each(|below| check(below, global));
    }
    let root = Cli::command();
    let global: Vec<_> = root.get_arguments().filter(|a| a.is_global_set()).map(|a| a.get_id().clone()).collect();
    assert!(global.len() >= 10);
    check(&root, &global);
}

#[test]
fn every_command_flag_and_field_stands_in_the_documentation() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (by_hand, _) = text.split_once(MARK).expect("docs/cli.md has the line that parts it");
    expect_file![path].assert_eq(&format!("{by_hand}{MARK}{}", reference(Cli::command())));
}

#[test]
fn a_format_of_one_command_is_refused_by_the_others() {
    let parse = |line: &str| Cli::try_parse_from(line.split(' ')).unwrap();
    for (line, knows) in [
        ("bib dataset show a/b -o ro-crate", true),
        ("bib dataset show a/b -o schema.org", true),
        ("bib dataset list -o datacite", false),
        ("bib admin db audit -o markdown", true),
        ("bib status -o markdown", false),
    ] {
        let cli = parse(line);
        assert_eq!(cli.command.knows(cli.global.output), knows, "{line}");
    }
}

#[test]
fn the_names_of_the_issue_are_there() {
    let leaves = reference(Cli::command());
    for name in [
        "setup",
        "connect",
        "login",
        "logout",
        "whoami",
        "status",
        "version",
        "completions",
        "config list",
        "config get",
        "config set",
        "trust add",
        "trust list",
        "trust remove",
        "trust replace",
        "cert init",
        "cert generate",
        "cert list",
        "cert info",
        "cert export",
        "cert revoke",
        "token create",
        "token list",
        "token revoke",
        "user list",
        "user add",
        "user show",
        "user suspend",
        "user resume",
        "user remove",
        "user key add",
        "user key remove",
        "topic list",
        "topic create",
        "topic show",
        "topic update",
        "topic delete",
        "topic grant",
        "topic revoke",
        "topic grants",
        "dataset publish",
        "dataset list",
        "dataset show",
        "dataset versions",
        "dataset files",
        "dataset tag",
        "dataset download",
        "dataset verify",
        "dataset prove",
        "dataset withdraw",
        "dataset delete",
        "dataset cite",
        "admin audit list",
        "admin audit tail",
        "admin audit verify",
        "admin audit prove",
        "admin audit export",
        "admin audit erase",
        "admin config list",
        "admin config get",
        "admin config set",
        "admin db audit",
        "admin db move",
        "admin db rotate",
        "admin db status",
        "admin db upgrade",
        "admin logs",
        "admin metrics",
        "admin recovery export",
        "admin recovery verify",
        "admin storage collect",
        "admin storage scrub",
        "admin shutdown",
    ] {
        assert!(leaves.contains(&format!("\n### `bib {name}`")), "{name}");
    }
    for alias in ["bib dataset upload . a/b -m x", "bib dataset get a/b"] {
        assert!(Cli::try_parse_from(alias.split(' ')).is_ok(), "{alias}");
    }
}
