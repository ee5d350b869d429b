use proptest::prelude::*;

use super::*;

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut all = vec![tag];
    all.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    all.extend(body);
    all
}

fn said(tag: u8, body: &[u8]) -> Result<Said, Malformed> {
    read(&Frame { raw: message(tag, body).into() })
}

fn start(body: &[u8]) -> Result<Option<Opening>, Malformed> {
    let mut all = u32::try_from(body.len() + 4).unwrap().to_be_bytes().to_vec();
    all.extend(body);
    opening(&mut BytesMut::from(&all[..]))
}

#[test]
fn openings_are_told_apart_and_wait_for_their_end() {
    assert_eq!(start(&[0x04, 0xd2, 0x16, 0x2f]), Ok(Some(Opening::Tls)));
    assert_eq!(start(&[0x04, 0xd2, 0x16, 0x30]), Ok(Some(Opening::Gss)));
    let key = BackendKey { pid: 7, secret: -1 };
    let cancel = [&[0x04, 0xd2, 0x16, 0x2e][..], &[0, 0, 0, 7], &[0xff; 4]].concat();
    assert_eq!(start(&cancel), Ok(Some(Opening::Cancel(key))));
    let parameters = vec![("user".to_owned(), "ada".to_owned())];
    assert_eq!(start(b"\0\x03\0\0user\0ada\0\0"), Ok(Some(Opening::Start(Startup { minor: 0, parameters }))));
    assert_eq!(start(b"\0\x03\0\x02\0"), Ok(Some(Opening::Start(Startup { minor: 2, parameters: vec![] }))));
    for wrong in [&b"\0\x02\0\0\0"[..], b"\0\x03\0\0user\0", b"\0\x03\0\0\0x", b"\0\x03\0\0a\0\xff\0\0", b""] {
        assert!(start(wrong).is_err(), "{wrong:?}");
    }
    let mut part = BytesMut::from(&[0, 0, 0, 8, 0x04][..]);
    assert_eq!(opening(&mut part), Ok(None));
    assert!(opening(&mut BytesMut::from(&[0xff; 8][..])).is_err(), "refused before anything is kept");
}

#[test]
fn what_is_run_is_read_to_the_byte() {
    assert_eq!(said(b'Q', b"SELECT '\xff'\0"), Ok(Said::Query(Bytes::from_static(b"SELECT '\xff'"))));
    let parse = Said::Parse { name: Bytes::from_static(b"s"), text: Bytes::from_static(b"SELECT $1") };
    assert_eq!(said(b'P', b"s\0SELECT $1\0\0\x01\0\0\0\x17"), Ok(parse));
    let value = |is_binary, bytes: Option<&'static [u8]>| Value { is_binary, bytes: bytes.map(Bytes::from_static) };
    let bind = |values| Said::Bind { portal: Bytes::new(), statement: Bytes::from_static(b"s"), values };
    let two = b"\0s\0\0\x01\0\x01\0\x02\0\0\0\x01\x07\xff\xff\xff\xff\0\0";
    assert_eq!(said(b'B', two), Ok(bind(vec![value(true, Some(&[7])), value(true, None)])));
    assert_eq!(said(b'B', b"\0s\0\0\0\0\x01\0\0\0\x01a\0\0"), Ok(bind(vec![value(false, Some(b"a"))])));
    let call = Said::Call { function: 957, values: vec![value(false, Some(b"1"))] };
    assert_eq!(said(b'F', b"\0\0\x03\xbd\0\0\0\x01\0\0\0\x011\0\0"), Ok(call));
    assert_eq!(said(b'E', b"p\0\0\0\0\x05"), Ok(Said::Execute { portal: Bytes::from_static(b"p"), rows: 5 }));
    assert_eq!(said(b'd', b"a\tb\n"), Ok(Said::CopyData(Bytes::from_static(b"a\tb\n"))));
    assert_eq!(said(b'X', b""), Ok(Said::Terminate));
}

#[test]
fn what_hides_something_is_refused() {
    for (tag, body) in [
        (b'Q', &b"SELECT 1\0; DROP TABLE t\0"[..]),
        (b'Q', b"SELECT 1"),
        (b'P', b"s\0SELECT 1\0\0\0more"),
        (b'B', b"\0s\0\0\x02\0\0\0\0\0\x01\0\0\0\x01a\0\0"),
        (b'B', b"\0s\0\0\x01\0\x02\0\0\0\0"),
        (b'B', b"\0s\0\0\0\0\x01\x7f\xff\xff\xff"),
        (b'E', b"p\0\0\0"),
        (b'p', b"password\0"),
        (b'Z', b"I"),
        (0, b""),
    ] {
        assert!(said(tag, body).is_err(), "{} {body:?}", char::from(tag));
    }
    let huge = [&[b'Q'][..], &[0x7f, 0xff, 0xff, 0xff]].concat();
    assert!(frame(&mut BytesMut::from(&huge[..])).is_err(), "refused before anything is kept");
    assert!(frame(&mut BytesMut::from(&b"Q\0\0\0\x03"[..])).is_err());
}

#[test]
fn an_answer_of_ours_is_one_that_the_library_reads() {
    use postgres_protocol::message::backend::Message;
    let mut answer = Answer::default();
    answer.authenticated();
    answer.parameter("TimeZone", "UTC");
    answer.key(BackendKey { pid: 1, secret: 2 });
    answer.ready();
    answer.fatal("57P01", "it is over", "");
    let mut bytes = BytesMut::from(&answer.into_bytes()[..]);
    let mut next = || Message::parse(&mut bytes).unwrap().unwrap();
    assert!(matches!(next(), Message::AuthenticationOk));
    assert!(matches!(next(), Message::ParameterStatus(body) if body.value().unwrap() == "UTC"));
    assert!(matches!(next(), Message::BackendKeyData(body) if (body.process_id(), body.secret_key()) == (1, 2)));
    assert!(matches!(next(), Message::ReadyForQuery(_)));
    assert!(matches!(next(), Message::ErrorResponse(_)));
    assert!(bytes.is_empty());
}

proptest! {
    #[test]
    fn frames_are_the_bytes_that_came(bodies in prop::collection::vec((0_u8..128, prop::collection::vec(any::<u8>(), 0..50)), 1..8)) {
        let all: Vec<u8> = bodies.iter().flat_map(|(tag, body)| message(*tag, body)).collect();
        let mut buffer = BytesMut::from(&all[..]);
        let mut out = Vec::new();
        while let Some(frame) = frame(&mut buffer).unwrap() {
            out.extend_from_slice(&frame.raw);
        }
        prop_assert_eq!(out, all);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = opening(&mut BytesMut::from(&bytes[..]));
        let mut buffer = BytesMut::from(&bytes[..]);
        while let Ok(Some(frame)) = frame(&mut buffer) {
            let _ = read(&frame);
            let _ = super::super::backend::read(&frame);
        }
    }
}
