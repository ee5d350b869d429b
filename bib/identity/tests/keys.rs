//! The node's key, sealed secrets and the recovery sheet, against real files and the public `age` tool.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use bib_core::signature::Purpose;
use bib_identity::node_key::{self, NodeKeyError};
use bib_identity::recovery::{RecoveryError, RecoverySheet};
use bib_identity::sealed::{self, SealError};
use bib_identity::{FileError, NodeKey, Recipient, SealedDir};
use secrecy::{ExposeSecret as _, SecretSlice};
use support::{now, rng};

fn secret(bytes: &[u8]) -> SecretSlice<u8> {
    SecretSlice::from(bytes.to_vec())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn created_key_is_private_and_loads_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node_key");
    let key = NodeKey::create(&path, &mut rng(1)).unwrap();
    assert_eq!(mode(&path), 0o600);
    assert_eq!(NodeKey::load(&path).unwrap().peer_id(), key.peer_id());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    let before = fs::read(&path).unwrap();
    let error = NodeKey::create(&path, &mut rng(2)).unwrap_err();
    assert!(matches!(error, NodeKeyError::File(FileError::Exists { .. })));
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn ssh_keygen_reads_the_key_and_agrees_on_its_public_half() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node_key");
    let key = NodeKey::create(&path, &mut rng(1)).unwrap();
    let output = Command::new("ssh-keygen").arg("-y").arg("-f").arg(&path).output().unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    assert!(line.starts_with(&key.public_openssh().unwrap()), "{line}");
}

#[test]
fn peer_id_is_that_of_libp2p() {
    let dir = tempfile::tempdir().unwrap();
    for seed in 0..8 {
        let key = NodeKey::create(&dir.path().join(seed.to_string()), &mut rng(seed)).unwrap();
        let public = libp2p_identity::ed25519::PublicKey::try_from_bytes(key.peer_id().public_key()).unwrap();
        let theirs = libp2p_identity::PublicKey::from(public).to_peer_id();
        assert_eq!(key.peer_id().to_string(), theirs.to_string());
        assert_eq!(key.peer_id().to_multihash().to_vec(), theirs.to_bytes());
    }
}

#[test]
fn each_damage_to_the_key_file_has_its_own_error_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node_key");
    NodeKey::create(&path, &mut rng(1)).unwrap();
    let good = fs::read(&path).unwrap();

    let put = |bytes: &[u8], mode: u32| {
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let error = NodeKey::load(&path).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), bytes, "the file was touched");
        assert!(error.hint().is_some(), "{error}");
        error
    };
    assert!(matches!(put(b"", 0o600), NodeKeyError::File(FileError::Empty { .. })));
    assert!(matches!(put(&good, 0o640), NodeKeyError::File(FileError::TooOpen { mode: 0o640, .. })));
    assert!(matches!(put(&good, 0o604), NodeKeyError::File(FileError::TooOpen { mode: 0o604, .. })));
    assert!(matches!(put(&good[..good.len() / 2], 0o600), NodeKeyError::Damaged { .. }));
    assert!(matches!(put(b"\xff\0rubbish", 0o600), NodeKeyError::Damaged { .. }));
    assert!(matches!(put(&vec![b'a'; 20_000], 0o600), NodeKeyError::File(FileError::TooLarge { .. })));
    let missing = NodeKey::load(&dir.path().join("none")).unwrap_err();
    assert!(matches!(missing, NodeKeyError::File(FileError::Missing { .. })));
    assert!(matches!(NodeKey::load(dir.path()).unwrap_err(), NodeKeyError::File(FileError::NotAFile { .. })));
}

#[test]
fn other_types_and_protected_keys_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let keygen = |name: &str, kind: &[&str], passphrase: &str| {
        let path = dir.path().join(name);
        let status =
            Command::new("ssh-keygen").args(["-q", "-N", passphrase, "-f"]).arg(&path).arg("-t").args(kind).status();
        assert!(status.unwrap().success());
        NodeKey::load(&path)
    };
    assert!(matches!(keygen("rsa", &["rsa", "-b", "2048"], "").unwrap_err(), NodeKeyError::WrongType { .. }));
    assert!(matches!(keygen("ecdsa", &["ecdsa"], "").unwrap_err(), NodeKeyError::WrongType { .. }));
    assert!(matches!(keygen("locked", &["ed25519"], "secret").unwrap_err(), NodeKeyError::Encrypted { .. }));
    keygen("good", &["ed25519"], "").unwrap();
}

#[test]
fn signatures_are_bound_to_purpose_body_and_node() {
    let dir = tempfile::tempdir().unwrap();
    let key = NodeKey::create(&dir.path().join("a"), &mut rng(1)).unwrap();
    let other = NodeKey::create(&dir.path().join("b"), &mut rng(2)).unwrap();
    let signature = key.sign(Purpose::Record, b"body");
    node_key::verify(&key.peer_id(), Purpose::Record, b"body", &signature).unwrap();
    assert!(node_key::verify(&key.peer_id(), Purpose::Grant, b"body", &signature).is_err());
    assert!(node_key::verify(&key.peer_id(), Purpose::Record, b"bodY", &signature).is_err());
    assert!(node_key::verify(&other.peer_id(), Purpose::Record, b"body", &signature).is_err());
    assert!(node_key::verify(&key.peer_id(), Purpose::Record, b"body", &signature[..63]).is_err());
    assert!(node_key::verify(&bib_core::PeerId::from_public_key([0; 32]), Purpose::Record, b"", &[0; 64]).is_err());

    let note = b"bib/12D3KooW/0\n1\nAAAA\n";
    let signature = key.sign_checkpoint(note).unwrap();
    node_key::verify_checkpoint(&key.peer_id(), note, &signature).unwrap();
    assert!(node_key::verify_checkpoint(&other.peer_id(), note, &signature).is_err());
    assert!(matches!(key.sign_checkpoint(b"bib-record-v1\0x").unwrap_err(), NodeKeyError::NotACheckpoint));
    // The signed bytes are what formats.md says, checked with the library alone.
    let public = ed25519_dalek::VerifyingKey::from_bytes(key.peer_id().public_key()).unwrap();
    let signature = ed25519_dalek::Signature::from_bytes(&key.sign(Purpose::Login, b"x"));
    public.verify_strict(b"bib-login-v1\0x", &signature).unwrap();
}

#[test]
fn debug_shows_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node_key");
    let key = NodeKey::create(&path, &mut rng(1)).unwrap();
    assert_eq!(format!("{key:?}"), format!("NodeKey({})", key.peer_id()));
    let sheet = RecoverySheet::generate(&mut rng(1));
    let text = sheet.to_text(&key.peer_id(), now());
    let seed: String = text.lines().find_map(|l| l.strip_prefix("ed25519-secret: ")).unwrap().replace(' ', "");
    let debug = format!("{sheet:?} {:?}", SealedDir::open(&dir.path().join("s"), &key, vec![]).unwrap());
    assert!(!debug.contains(&seed) && !debug.contains("AGE-SECRET"), "{debug}");
}

#[test]
fn sealed_directory_writes_privately_and_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let key = NodeKey::create(&dir.path().join("node_key"), &mut rng(1)).unwrap();
    let secrets = SealedDir::open(&dir.path().join("secrets"), &key, vec![]).unwrap();
    assert_eq!(mode(&dir.path().join("secrets")), 0o700);
    for length in [0, 1, 64, 65_536, 200_000] {
        secrets.write("pg.password", &secret(&vec![7; length])).unwrap();
        assert_eq!(secrets.read("pg.password").unwrap().expose_secret(), vec![7; length]);
    }
    let path = secrets.path("pg.password").unwrap();
    assert_eq!((mode(&path), path.file_name().unwrap().to_str()), (0o600, Some("pg.password.age")));
    assert!(secrets.find("none").unwrap().is_none());
    assert!(matches!(secrets.create("pg.password", &secret(b"x")), Err(SealError::File(FileError::Exists { .. }))));
    for name in ["", "../x", "a/b", ".hidden", "UPPER", "ä", &"x".repeat(65)] {
        assert!(matches!(secrets.write(name, &secret(b"x")), Err(SealError::Name(_))), "{name}");
    }
    assert!(secrets.remove("pg.password").unwrap() && !secrets.remove("pg.password").unwrap());
    fs::set_permissions(dir.path().join("secrets"), fs::Permissions::from_mode(0o750)).unwrap();
    let error = SealedDir::open(&dir.path().join("secrets"), &key, vec![]).unwrap_err();
    assert!(matches!(error, SealError::File(FileError::TooOpen { .. })));
}

#[test]
fn wrong_keys_and_changed_files_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let key = NodeKey::create(&dir.path().join("a"), &mut rng(1)).unwrap();
    let other = NodeKey::create(&dir.path().join("b"), &mut rng(2)).unwrap();
    let file = sealed::seal(b"the secret", &[Recipient::Node(key.peer_id())]).unwrap();
    assert!(matches!(sealed::open(&file, &other), Err(SealError::WrongKey)));
    for position in 0..file.len() {
        let mut changed = file.clone();
        changed[position] ^= 1;
        assert!(sealed::open(&changed, &key).is_err(), "byte {position}");
        assert!(sealed::open(&file[..position], &key).is_err(), "cut at {position}");
    }
    assert!(matches!(sealed::seal(b"x", &[]), Err(SealError::NoRecipients)));
    assert!(matches!(
        sealed::seal(&vec![0; 1024 * 1024 + 1], &[Recipient::Node(key.peer_id())]),
        Err(SealError::TooLarge)
    ));
}

#[test]
fn recovery_sheet_survives_typing_and_opens_what_the_node_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let key = NodeKey::create(&dir.path().join("node_key"), &mut rng(1)).unwrap();
    let sheet = RecoverySheet::generate(&mut rng(3));
    let json = serde_json::to_string(&sheet.public()).unwrap();
    let public: bib_identity::recovery::RecoveryPublic = serde_json::from_str(&json).unwrap();
    let secrets = SealedDir::open(&dir.path().join("s"), &key, vec![public.recipient().unwrap()]).unwrap();
    secrets.write("ca.key", &secret(b"off the node")).unwrap();

    let text = sheet.to_text(&key.peer_id(), now());
    let typed = text.to_lowercase().replace("\n", "\r\n").replace("ed25519-secret: ", "  ed25519-secret:");
    let typed = typed.replace(&key.peer_id().to_string().to_lowercase(), &key.peer_id().to_string());
    let typed = typed.replace("2026-11-20t12:00:00.000000z", "2026-11-20T12:00:00.000000Z");
    for text in [text.as_str(), typed.as_str()] {
        let parsed = RecoverySheet::parse(text).unwrap();
        assert_eq!((parsed.peer_id, parsed.created), (key.peer_id(), now()));
        assert_eq!(parsed.sheet.public(), public);
        let file = fs::read(secrets.path("ca.key").unwrap()).unwrap();
        assert_eq!(parsed.sheet.open(&file).unwrap().expose_secret(), b"off the node");
        let signature = parsed.sheet.sign(Purpose::Succession, b"next");
        public.verify(Purpose::Succession, b"next", &signature).unwrap();
        assert!(public.verify(Purpose::Record, b"next", &signature).is_err());
    }
}

#[test]
fn typing_errors_in_the_sheet_are_named() {
    let key = bib_core::PeerId::from_public_key([7; 32]);
    let text = RecoverySheet::generate(&mut rng(3)).to_text(&key, now());
    for name in ["format", "node", "created", "age-secret", "age-public", "ed25519-secret", "ed25519-public", "check"] {
        let without: String =
            text.lines().filter(|l| !l.starts_with(&format!("{name}:"))).map(|l| format!("{l}\n")).collect();
        assert_eq!(RecoverySheet::parse(&without).unwrap_err(), RecoveryError::Missing(name));
        let line = text.lines().find(|l| l.starts_with(&format!("{name}:"))).unwrap();
        assert_eq!(RecoverySheet::parse(&format!("{}{line}\n", *text)).unwrap_err(), RecoveryError::Twice(name));
        if name != "created" {
            // The last character mistyped.
            let last = line.chars().last().unwrap();
            let wrong = format!("{}{}", &line[..line.len() - 1], if last == '2' { '3' } else { '2' });
            assert!(RecoverySheet::parse(&text.replace(line, &wrong)).is_err(), "{name}");
        }
    }
    assert_eq!(RecoverySheet::parse(&"x".repeat(20_000)).unwrap_err(), RecoveryError::NotASheet);
}

#[test]
fn the_public_age_tool_opens_a_secret_with_the_node_key_and_with_the_sheet() {
    if Command::new("age").arg("--version").output().is_err() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "age is missing, and CI must have it");
        eprintln!(
            "NOT TESTED: `age` is not on PATH (package `age`); interoperability of sealed secrets is unproven here"
        );
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let key = NodeKey::create(&dir.path().join("node_key"), &mut rng(1)).unwrap();
    let sheet = RecoverySheet::generate(&mut rng(3));
    let secrets = SealedDir::open(&dir.path().join("s"), &key, vec![sheet.public().recipient().unwrap()]).unwrap();
    secrets.write("ca.key", &secret(b"hello age")).unwrap();
    let text = sheet.to_text(&key.peer_id(), now());
    let line = text.lines().find_map(|l| l.strip_prefix("age-secret: ")).unwrap();
    fs::write(dir.path().join("recovery"), line).unwrap();
    for identity in ["node_key", "recovery"] {
        let output = Command::new("age")
            .args(["-d", "-i"])
            .arg(dir.path().join(identity))
            .arg(secrets.path("ca.key").unwrap())
            .output()
            .unwrap();
        assert_eq!(output.stdout, b"hello age", "{identity}: {}", String::from_utf8_lossy(&output.stderr));
    }
    // And the other way: what age seals to the node's public line, we open.
    let recipient = key.public_openssh().unwrap();
    fs::write(dir.path().join("plain"), "from age").unwrap();
    let output = Command::new("age").args(["-r", &recipient]).arg(dir.path().join("plain")).output().unwrap();
    assert_eq!(sealed::open(&output.stdout, &key).unwrap().expose_secret(), b"from age");
}
