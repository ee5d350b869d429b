//! People's keys, against real `ssh-keygen` and a real `ssh-agent`.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bib_identity::FileError;
use bib_identity::ssh::{
    Candidate, Discovery, KeyKind, PassphraseRequest, PublicKey, SignatureError, SshError, UserKey, generate, verify,
};
use secrecy::SecretString;
use support::rng;

const NAMESPACE: &str = "bib-version-v1";

fn keygen(path: &Path, kind: &[&str], passphrase: &str) {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-C", "ada@lab", "-N", passphrase, "-f"]).arg(path).arg("-t").args(kind);
    assert!(command.status().unwrap().success());
}

fn public(path: &Path) -> PublicKey {
    fs::read_to_string(path.with_added_extension("pub")).unwrap().parse().unwrap()
}

fn none(_: PassphraseRequest<'_>) -> Option<SecretString> {
    None
}

/// `ssh-keygen -Y sign` with a key file.
fn sign_with_keygen(key: &Path, namespace: &str, hash: &str, message: &[u8]) -> String {
    let file = key.with_added_extension("message");
    fs::write(&file, message).unwrap();
    let signature = key.with_added_extension("message.sig");
    let _absent_is_fine = fs::remove_file(&signature);
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-Y", "sign", "-n", namespace, "-O", &format!("hashalg={hash}"), "-f"]).arg(key).arg(&file);
    assert!(command.stderr(Stdio::null()).status().unwrap().success());
    fs::read_to_string(signature).unwrap()
}

/// `ssh-keygen -Y verify` against an allowed_signers file.
fn keygen_believes(dir: &Path, key: &PublicKey, namespace: &str, message: &[u8], signature: &str) -> bool {
    fs::write(dir.join("allowed"), format!("ada@lab namespaces=\"{namespace}\" {key}\n")).unwrap();
    fs::write(dir.join("sig"), signature).unwrap();
    let mut verify = Command::new("ssh-keygen");
    verify
        .args(["-Y", "verify", "-I", "ada@lab", "-n", namespace, "-f"])
        .arg(dir.join("allowed"))
        .arg("-s")
        .arg(dir.join("sig"));
    let mut check = Command::new("ssh-keygen");
    check.args(["-Y", "check-novalidate", "-n", namespace, "-s"]).arg(dir.join("sig"));
    [verify, check].into_iter().all(|mut command| {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(message).unwrap();
        child.wait().unwrap().success()
    })
}

/// An agent of this test's own, ended when dropped.
struct Agent {
    child: Child,
    socket: PathBuf,
}

impl Agent {
    fn start(dir: &Path) -> Self {
        let socket = dir.join("agent.sock");
        let mut child =
            Command::new("ssh-agent").args(["-D", "-a"]).arg(&socket).stdout(Stdio::piped()).spawn().unwrap();
        // It says where it listens once it does.
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("SSH_AUTH_SOCK="), "{line}");
        Self { child, socket }
    }

    fn add(&self, key: &Path) {
        let mut command = Command::new("ssh-add");
        command.arg("-q").arg(key).env("SSH_AUTH_SOCK", &self.socket).stderr(Stdio::null());
        assert!(command.status().unwrap().success());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn file_keys_sign_what_ssh_keygen_believes_and_the_other_way() {
    let dir = tempfile::tempdir().unwrap();
    for (kind, expected) in [("ed25519", KeyKind::Ed25519), ("ecdsa", KeyKind::EcdsaP256)] {
        let path = dir.path().join(kind);
        keygen(&path, &[kind], "");
        let key = UserKey::load(&path, &mut none).unwrap();
        assert_eq!((key.public().kind(), key.public().comment()), (expected, "ada@lab"));
        let ours = key.sign(NAMESPACE, b"a statement").unwrap();
        assert!(keygen_believes(dir.path(), key.public(), NAMESPACE, b"a statement", ours.as_str()), "{kind}");
        assert!(!keygen_believes(dir.path(), key.public(), NAMESPACE, b"another", ours.as_str()), "{kind}");
        verify(key.public(), NAMESPACE, b"a statement", ours.as_str()).unwrap();
        for hash in ["sha512", "sha256"] {
            let theirs = sign_with_keygen(&path, NAMESPACE, hash, b"a statement");
            verify(key.public(), NAMESPACE, b"a statement", &theirs).unwrap();
        }
    }
}

#[test]
fn fingerprint_is_that_of_ssh_keygen() {
    let dir = tempfile::tempdir().unwrap();
    for kind in [&["ed25519"][..], &["ecdsa"], &["rsa", "-b", "2048"]] {
        let path = dir.path().join(kind[0]);
        keygen(&path, kind, "");
        let output = Command::new("ssh-keygen").args(["-l", "-f"]).arg(&path).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(&public(&path).fingerprint().to_string()), "{text}");
    }
}

#[test]
fn refuses_other_namespace_key_message_and_algorithm() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    keygen(&a, &["ed25519"], "");
    keygen(&b, &["ed25519"], "");
    let signature = sign_with_keygen(&a, NAMESPACE, "sha512", b"message");
    let check = |key: &PublicKey, namespace: &str, message: &[u8]| verify(key, namespace, message, &signature);
    check(&public(&a), NAMESPACE, b"message").unwrap();
    let other_namespace = check(&public(&a), "bib-login-v1", b"message");
    assert_eq!(other_namespace, Err(SignatureError::OtherNamespace(NAMESPACE.to_owned())));
    assert_eq!(check(&public(&b), NAMESPACE, b"message"), Err(SignatureError::OtherKey));
    assert_eq!(check(&public(&a), NAMESPACE, b"massage"), Err(SignatureError::Wrong));
}

#[test]
fn rsa_with_sha1_and_small_keys_are_refused() {
    use ssh_key::{Algorithm, HashAlg, LineEnding, Signature, SshSig};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rsa");
    keygen(&path, &["rsa", "-b", "2048"], "");
    let key = public(&path);
    let good = sign_with_keygen(&path, NAMESPACE, "sha512", b"m");
    verify(&key, NAMESPACE, b"m", &good).unwrap();

    // The same signature renamed to SHA-1's `ssh-rsa`, byte by byte, since no library writes it.
    let wire = bib_identity::pem::decode_one(good.as_bytes(), "SSH SIGNATURE").unwrap();
    let at = wire.windows(12).rposition(|w| w == b"rsa-sha2-512").unwrap();
    let outer = u32::from_be_bytes(wire[at - 8..at - 4].try_into().unwrap());
    let mut sha1 = wire[..at - 8].to_vec();
    sha1.extend((outer - 5).to_be_bytes());
    sha1.extend(7u32.to_be_bytes());
    sha1.extend(b"ssh-rsa");
    sha1.extend(&wire[at + 12..]);
    let text = bib_identity::pem::encode("SSH SIGNATURE", &sha1);
    let error = verify(&key, NAMESPACE, b"m", &text).unwrap_err();
    assert!(matches!(error, SignatureError::Malformed | SignatureError::Algorithm(_)), "{error}");

    // An Ed25519 signature under an RSA key.
    let other = dir.path().join("ed");
    keygen(&other, &["ed25519"], "");
    let ed = SshSig::from_pem(sign_with_keygen(&other, NAMESPACE, "sha512", b"m")).unwrap();
    let line = fs::read_to_string(path.with_added_extension("pub")).unwrap();
    let rsa = ssh_key::PublicKey::from_openssh(&line).unwrap();
    let mixed = SshSig::new(rsa.key_data().clone(), NAMESPACE, HashAlg::Sha512, ed.signature().clone()).unwrap();
    let error = verify(&key, NAMESPACE, b"m", &mixed.to_pem(LineEnding::LF).unwrap()).unwrap_err();
    assert_eq!(error, SignatureError::Algorithm("ssh-ed25519".to_owned()));

    let dsa = Signature::new(Algorithm::Dsa, vec![1; 40]).unwrap();
    let dsa = SshSig::new(rsa.key_data().clone(), NAMESPACE, HashAlg::Sha512, dsa).unwrap();
    let error = verify(&key, NAMESPACE, b"m", &dsa.to_pem(LineEnding::LF).unwrap()).unwrap_err();
    assert_eq!(error, SignatureError::Algorithm("ssh-dss".to_owned()));

    let small = dir.path().join("small");
    keygen(&small, &["rsa", "-b", "1024"], "");
    let error = fs::read_to_string(small.with_added_extension("pub")).unwrap().parse::<PublicKey>().unwrap_err();
    assert!(matches!(error, SshError::Unsupported(text) if text.contains("1024")));
}

#[test]
fn hostile_signatures_never_panic() {
    use rand::Rng as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("k");
    keygen(&path, &["ed25519"], "");
    let key = public(&path);
    let good = sign_with_keygen(&path, NAMESPACE, "sha512", b"m");
    let wire = bib_identity::pem::decode_one(good.as_bytes(), "SSH SIGNATURE").unwrap();
    for position in 0..wire.len() {
        for value in [0, 0x7f, 0xff, wire[position] ^ 1] {
            let mut changed = wire.to_vec();
            changed[position] = value;
            if changed != *wire {
                let text = bib_identity::pem::encode("SSH SIGNATURE", &changed);
                assert!(verify(&key, NAMESPACE, b"m", &text).is_err(), "byte {position} = {value}");
            }
        }
        let cut = bib_identity::pem::encode("SSH SIGNATURE", &wire[..position]);
        assert!(verify(&key, NAMESPACE, b"m", &cut).is_err(), "cut at {position}");
    }
    let mut rng = rng(11);
    for _ in 0..2000 {
        let bytes: Vec<u8> = (0..rng.gen_range(0..300)).map(|_| rng.r#gen()).collect();
        let framed = bib_identity::pem::encode("SSH SIGNATURE", &[b"SSHSIG\0\0\0\x01", bytes.as_slice()].concat());
        assert!(verify(&key, NAMESPACE, b"m", &framed).is_err());
        assert!(verify(&key, NAMESPACE, b"m", &String::from_utf8_lossy(&bytes)).is_err());
        assert!(PublicKey::from_wire(&bytes).is_err());
        assert!(String::from_utf8_lossy(&bytes).parse::<PublicKey>().is_err());
    }
    assert_eq!(verify(&key, NAMESPACE, b"m", &"x".repeat(20_000)), Err(SignatureError::TooLong));
}

#[test]
fn agent_signs_for_every_type_and_skips_what_it_does_not_know() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(dir.path());
    // An SSH certificate beside its key: an agent's list holds both.
    let ca = dir.path().join("ca");
    keygen(&ca, &["ed25519"], "");
    for kind in [&["ed25519"][..], &["ecdsa"], &["rsa", "-b", "2048"], &["ecdsa", "-b", "521"]] {
        let path = dir.path().join(kind.join(""));
        keygen(&path, kind, "");
        if kind == ["ed25519"] {
            let mut sign = Command::new("ssh-keygen");
            sign.args(["-q", "-I", "ada", "-n", "ada", "-s"]).arg(&ca).arg(path.with_added_extension("pub"));
            assert!(sign.status().unwrap().success());
        }
        agent.add(&path);
    }
    let discovery = Discovery { agent_socket: Some(agent.socket.clone()), ..Discovery::default() };
    let found = discovery.candidates().unwrap();
    let kinds: Vec<KeyKind> = found.iter().map(|c| c.public().kind()).collect();
    assert_eq!(kinds, [KeyKind::Ed25519, KeyKind::EcdsaP256, KeyKind::Rsa]);
    for candidate in found {
        assert_eq!(candidate.public().comment(), "ada@lab");
        let key = candidate.unlock(&mut none).unwrap();
        let signature = key.sign(NAMESPACE, b"through the agent").unwrap();
        verify(key.public(), NAMESPACE, b"through the agent", signature.as_str()).unwrap();
        assert!(keygen_believes(dir.path(), key.public(), NAMESPACE, b"through the agent", signature.as_str()));
    }
}

#[test]
fn agent_that_lost_the_key_or_is_gone_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("k");
    keygen(&path, &["ed25519"], "");
    let agent = Agent::start(dir.path());
    let key = UserKey::in_agent(&agent.socket, public(&path));
    assert!(matches!(key.sign(NAMESPACE, b"m"), Err(SshError::AgentRefused)));
    drop(agent);
    assert!(matches!(key.sign(NAMESPACE, b"m"), Err(SshError::Agent(_))));
}

#[test]
fn rsa_files_need_the_agent_and_use_it_when_it_has_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rsa");
    keygen(&path, &["rsa", "-b", "2048"], "");
    assert!(matches!(UserKey::load(&path, &mut none), Err(SshError::RsaNeedsAgent { .. })));
    let agent = Agent::start(dir.path());
    let discovery = Discovery { explicit: Some(path.clone()), agent_socket: Some(agent.socket.clone()), home: None };
    assert!(matches!(discovery.candidates(), Err(SshError::RsaNeedsAgent { .. })));
    agent.add(&path);
    let key = discovery.best(&mut none).unwrap();
    verify(key.public(), NAMESPACE, b"m", key.sign(NAMESPACE, b"m").unwrap().as_str()).unwrap();
}

#[test]
fn discovery_prefers_the_named_key_then_the_agent_then_the_usual_files() {
    let dir = tempfile::tempdir().unwrap();
    let ssh = dir.path().join(".ssh");
    fs::create_dir(&ssh).unwrap();
    let (named, held) = (dir.path().join("named"), dir.path().join("held"));
    let (ed, ecdsa) = (ssh.join("id_ed25519"), ssh.join("id_ecdsa"));
    for path in [&named, &held, &ed] {
        keygen(path, &["ed25519"], "");
    }
    keygen(&ecdsa, &["ecdsa"], "");
    let agent = Agent::start(dir.path());
    agent.add(&held);
    agent.add(&ed);
    let mut discovery = Discovery {
        explicit: Some(named.clone()),
        agent_socket: Some(agent.socket.clone()),
        home: Some(dir.path().to_owned()),
    };
    let prints =
        |d: &Discovery| -> Vec<_> { d.candidates().unwrap().iter().map(|c| c.public().fingerprint()).collect() };
    assert_eq!(prints(&discovery), [public(&named).fingerprint()]);
    discovery.explicit = None;
    let expected = [&held, &ed, &ecdsa].map(|p| public(p).fingerprint());
    assert_eq!(prints(&discovery), expected);
    discovery.agent_socket = Some(dir.path().join("left-over"));
    assert_eq!(prints(&discovery), [&ed, &ecdsa].map(|p| public(p).fingerprint()));
    assert!(matches!(discovery.candidates().unwrap()[0], Candidate::File { .. }));
    discovery.home = Some(dir.path().join("nobody"));
    assert!(matches!(discovery.best(&mut none), Err(SshError::NoKey)));
    discovery.explicit = Some(named.with_added_extension("pub"));
    assert_eq!(discovery.best(&mut none).unwrap().public(), &public(&named));
}

#[test]
fn passphrase_is_asked_three_times_at_most() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("locked");
    keygen(&path, &["ed25519"], "correct horse");
    let mut asked = Vec::new();
    let mut answer = |right_at: u32| {
        let asked = &mut asked;
        UserKey::load(&path, &mut |request: PassphraseRequest<'_>| {
            asked.push(request.attempt);
            Some(SecretString::from(if request.attempt == right_at { "correct horse" } else { "wrong" }))
        })
    };
    let key = answer(2).unwrap();
    verify(key.public(), NAMESPACE, b"m", key.sign(NAMESPACE, b"m").unwrap().as_str()).unwrap();
    assert!(matches!(answer(4), Err(SshError::Passphrase { .. })));
    assert_eq!(asked, [1, 2, 1, 2, 3]);
    assert!(matches!(UserKey::load(&path, &mut none), Err(SshError::Passphrase { .. })));
}

#[test]
fn bad_key_files_are_told_apart() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("k");
    keygen(&path, &["ed25519"], "");
    assert!(matches!(
        UserKey::load(&path.with_added_extension("pub"), &mut none),
        Err(SshError::File(FileError::TooOpen { .. }) | SshError::NotOpenSsh { .. })
    ));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(UserKey::load(&path, &mut none), Err(SshError::File(FileError::TooOpen { .. }))));
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(UserKey::load(&path, &mut none), Err(SshError::File(FileError::Empty { .. }))));
    fs::write(&path, "nonsense").unwrap();
    assert!(matches!(UserKey::load(&path, &mut none), Err(SshError::NotOpenSsh { .. })));
    let old = dir.path().join("old");
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-m", "PEM", "-t", "rsa", "-b", "2048", "-N", "", "-f"]).arg(&old);
    assert!(command.status().unwrap().success());
    assert!(matches!(UserKey::load(&old, &mut none), Err(SshError::RsaNeedsAgent { .. })));
}

#[test]
fn generated_key_is_one_that_openssh_uses() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("id_bib");
    let key = generate(&path, "ada\n@lab", &mut rng(1)).unwrap();
    assert!(matches!(generate(&path, "", &mut rng(1)), Err(SshError::File(FileError::Exists { .. }))));
    let signature = sign_with_keygen(&path, NAMESPACE, "sha512", b"m");
    verify(key.public(), NAMESPACE, b"m", &signature).unwrap();
    assert_eq!(public(&path), *key.public());
    assert_eq!(public(&path).comment(), "ada@lab");
    assert!(matches!(key.sign("", b"m"), Err(SshError::Namespace(_))));
}

#[test]
fn public_keys_of_other_types_and_lines_with_options_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("k");
    keygen(&path, &["ecdsa", "-b", "384"], "");
    let line = fs::read_to_string(path.with_added_extension("pub")).unwrap();
    assert!(matches!(line.parse::<PublicKey>(), Err(SshError::Unsupported(_))));
    keygen(&dir.path().join("e"), &["ed25519"], "");
    let key = public(&dir.path().join("e"));
    for line in [format!("command=\"x\" {key}"), format!("{key}\n{key}"), "ssh-ed25519 AAAA".to_owned(), String::new()]
    {
        assert!(line.parse::<PublicKey>().is_err(), "{line}");
    }
    let json = serde_json::to_string(&key).unwrap();
    assert_eq!(serde_json::from_str::<PublicKey>(&json).unwrap(), key);
}
