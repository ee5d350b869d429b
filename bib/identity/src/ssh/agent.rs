//! A client of ssh-agent: list keys, sign (draft-ietf-sshm-ssh-agent, messages 11 to 14).
//!
//! Spoken here rather than through the crate ssh-agent-lib, whose blocking client allocates whatever length the other
//! end states, up to 4 GiB, and fails the whole list on one key that it cannot parse: people keep certificates and
//! security keys in their agents.

use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use super::{PublicKey, SshError};

const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
/// RSA keys sign with SHA-512 instead of SHA-1.
const FLAG_RSA_SHA2_512: u32 = 4;
/// The limit of OpenSSH's own agent.
const MAX_MESSAGE_BYTES: usize = 256 * 1024;
/// The most keys that are looked at.
const MAX_IDENTITIES: usize = 1024;
/// A person may have to confirm or touch something.
const SIGN_TIMEOUT: Duration = Duration::from_secs(60);
const LIST_TIMEOUT: Duration = Duration::from_secs(10);

/// The keys in the agent that BIB accepts, in the agent's order.
pub(crate) fn list(socket: &Path) -> Result<Vec<PublicKey>, SshError> {
    let answer = ask(socket, &[REQUEST_IDENTITIES], LIST_TIMEOUT)?;
    parse_identities(&answer)
}

/// A signature blob (algorithm and bytes) over `data` by `key`.
pub(crate) fn sign(socket: &Path, key: &PublicKey, data: &[u8]) -> Result<Vec<u8>, SshError> {
    let mut request = vec![SIGN_REQUEST];
    put(&mut request, key.wire());
    put(&mut request, data);
    request.extend_from_slice(&FLAG_RSA_SHA2_512.to_be_bytes());
    let answer = ask(socket, &request, SIGN_TIMEOUT)?;
    match answer.split_first() {
        Some((&SIGN_RESPONSE, mut rest)) => take(&mut rest).map(<[u8]>::to_vec),
        Some((&FAILURE, _)) => Err(SshError::AgentRefused),
        _ => Err(SshError::AgentAnswer("something else than a signature")),
    }
}

fn parse_identities(answer: &[u8]) -> Result<Vec<PublicKey>, SshError> {
    let mut rest = match answer.split_first() {
        Some((&IDENTITIES_ANSWER, rest)) => rest,
        Some((&FAILURE, _)) => return Err(SshError::AgentRefused),
        _ => return Err(SshError::AgentAnswer("something else than a list of keys")),
    };
    let count = take_u32(&mut rest)?;
    if count > MAX_IDENTITIES {
        return Err(SshError::AgentAnswer("more keys than can be"));
    }
    let mut keys = Vec::new();
    for _ in 0..count {
        let blob = take(&mut rest)?;
        let comment = take(&mut rest)?;
        // A key that BIB does not accept is somebody's for something else.
        if let Ok(key) = PublicKey::from_wire(blob) {
            keys.push(key.with_comment(&String::from_utf8_lossy(comment)));
        }
    }
    Ok(keys)
}

fn put(message: &mut Vec<u8>, bytes: &[u8]) {
    // The sum is checked against the limit before anything is sent.
    message.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    message.extend_from_slice(bytes);
}

fn take_u32(rest: &mut &[u8]) -> Result<usize, SshError> {
    let (number, tail) = rest.split_first_chunk::<4>().ok_or(SshError::AgentAnswer("half a message"))?;
    *rest = tail;
    Ok(u32::from_be_bytes(*number) as usize)
}

fn take<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], SshError> {
    let length = take_u32(rest)?;
    let (bytes, tail) = rest.split_at_checked(length).ok_or(SshError::AgentAnswer("half a message"))?;
    *rest = tail;
    Ok(bytes)
}

#[cfg(unix)]
fn ask(socket: &Path, request: &[u8], timeout: Duration) -> Result<Vec<u8>, SshError> {
    let connect = || -> io::Result<std::os::unix::net::UnixStream> {
        let stream = std::os::unix::net::UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(stream)
    };
    exchange(&mut connect().map_err(SshError::Agent)?, request)
}

#[cfg(not(unix))]
fn ask(_: &Path, _: &[u8], _: Duration) -> Result<Vec<u8>, SshError> {
    Err(SshError::Agent(io::ErrorKind::Unsupported.into()))
}

#[cfg_attr(not(unix), allow(dead_code))]
fn exchange(stream: &mut (impl Read + Write), request: &[u8]) -> Result<Vec<u8>, SshError> {
    let length = u32::try_from(request.len()).ok().filter(|_| request.len() <= MAX_MESSAGE_BYTES);
    let length = length.ok_or_else(|| SshError::Agent(io::ErrorKind::InvalidInput.into()))?;
    let message = [&length.to_be_bytes(), request].concat();
    stream.write_all(&message).map_err(SshError::Agent)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length).map_err(SshError::Agent)?;
    let length = u32::from_be_bytes(length) as usize;
    if length == 0 || length > MAX_MESSAGE_BYTES {
        return Err(SshError::AgentAnswer("a message of impossible length"));
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).map_err(SshError::Agent)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_answers_are_errors() {
        let cases: [&[u8]; 7] = [
            &[],
            &[FAILURE],
            &[IDENTITIES_ANSWER],
            &[IDENTITIES_ANSWER, 0xff, 0xff, 0xff, 0xff],
            &[IDENTITIES_ANSWER, 0, 0, 0, 1],
            &[IDENTITIES_ANSWER, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 1],
            &[SIGN_RESPONSE, 0, 0, 0, 0],
        ];
        for case in cases {
            assert!(parse_identities(case).is_err(), "{case:?}");
        }
        assert_eq!(parse_identities(&[IDENTITIES_ANSWER, 0, 0, 0, 0]).unwrap(), []);
    }

    #[test]
    fn skips_keys_that_it_does_not_know() {
        let mut answer = vec![IDENTITIES_ANSWER, 0, 0, 0, 1];
        put(&mut answer, b"\0\0\0\x07ssh-foo\0\0\0\x01x");
        put(&mut answer, b"somebody's");
        assert_eq!(parse_identities(&answer).unwrap(), []);
    }
}
