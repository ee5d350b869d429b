//! Floods, bombs and slow clients (security.md, B-NET 32, 39 to 42; B-STO 22), bounded to seconds on loopback. Whatever
//! one connection does, the daemon's memory stays bounded and honest clients are served.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests say what they skip and spawn tasks"
)]

mod faults;

use std::time::{Duration, Instant};

use bib_proto::v1::health_service_client::HealthServiceClient;
use bib_proto::v1::{HealthCheckRequest, PingRequest};
use faults::wire::*;
use faults::*;
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;
use tonic::transport::Channel;
use tower::{Service as _, ServiceExt as _};

/// What a connection may cost beyond what the daemon has.
const MAX_GROWTH_KIB: u64 = 64 << 10;
const PING_PATH: &str = "/bib.v1.HealthService/Ping";

/// An honest client on a new connection gets its answer soon.
async fn is_served(node: &Node) -> Duration {
    let begun = Instant::now();
    let ping = async { HealthServiceClient::new(node.channel().await).ping(PingRequest::default()).await };
    tokio::time::timeout(Duration::from_secs(5), ping).await.expect("an honest client waits").unwrap();
    begun.elapsed()
}

/// Sends batches until the daemon has had enough or all are sent; says whether it ended the connection.
async fn flood(node: &Node, what: &str, mut raw: Raw, batches: u32, mut batch: impl FnMut(u32) -> Vec<u8>) -> bool {
    let before = node.status("VmRSS");
    let mut sent = 0;
    let mut ended = false;
    for n in 0..batches {
        if !raw.send(&batch(n)).await {
            ended = true;
            break;
        }
        sent += 1;
    }
    let served = is_served(node).await;
    let growth = node.status("VmRSS").saturating_sub(before);
    eprintln!("{what}: {sent} batches, ended: {ended}, {growth} KiB more, honest ping {served:?}");
    assert!(growth <= MAX_GROWTH_KIB, "{what}: {growth} KiB");
    ended || raw.has_ended()
}

/// A call by hand: the body as it is, to the end; the gRPC status.
async fn call(channel: &mut Channel, path: &str, gzip: bool, body: Vec<u8>) -> Code {
    let mut request = http::Request::post(format!("http://bibd{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if gzip {
        request = request.header("grpc-encoding", "gzip");
    }
    let request = request.body(tonic::body::Body::new(http_body_util::Full::new(bytes::Bytes::from(body)))).unwrap();
    let response = channel.ready().await.unwrap().call(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let trailers = body.collect().await.map(|body| body.trailers().cloned().unwrap_or_default()).unwrap_or_default();
    let status = parts.headers.get("grpc-status").or_else(|| trailers.get("grpc-status"));
    Code::from_bytes(status.expect("a gRPC status").as_bytes())
}

/// The prefix of a message of gRPC: compressed or not, and how long.
fn message(compressed: bool, bytes: &[u8]) -> Vec<u8> {
    let mut framed = vec![u8::from(compressed)];
    framed.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
    framed.extend(bytes);
    framed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_end_their_own_connection_and_cost_little() {
    let place = Place::new();
    let node = place.start().await;
    let socket = node.ready().socket.clone();
    is_served(&node).await;

    let rapid_reset = |n: u32| {
        let each = (0..100).flat_map(|k| {
            let stream = 1 + 2 * (n * 100 + k);
            let mut pair = frame(HEADERS, END_HEADERS, stream, &headers(PING_PATH));
            pair.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            pair
        });
        each.collect()
    };
    assert!(flood(&node, "rapid reset", Raw::connect(&socket).await, 500, rapid_reset).await, "it is ended");

    let continuation = |n: u32| {
        let field = literal("x-more", &"y".repeat(100)).repeat(100);
        let mut bytes = if n == 0 { frame(HEADERS, 0, 1, &headers(PING_PATH)) } else { Vec::new() };
        bytes.extend(frame(CONTINUATION, 0, 1, &field));
        bytes
    };
    assert!(flood(&node, "CONTINUATION", Raw::connect(&socket).await, 20_000, continuation).await, "it is ended");

    let empty_data = |n: u32| {
        let mut bytes = if n == 0 { frame(HEADERS, END_HEADERS, 1, &headers(PING_PATH)) } else { Vec::new() };
        bytes.extend(frame(DATA, 0, 1, &[]).repeat(1_000));
        bytes
    };
    flood(&node, "empty DATA", Raw::connect(&socket).await, 2_000, empty_data).await;

    let settings = |_: u32| frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]).repeat(1_000);
    flood(&node, "SETTINGS, answers read", Raw::connect(&socket).await, 500, settings).await;
    assert!(flood(&node, "SETTINGS, never read", Raw::deaf(&socket).await, 5_000, settings).await, "it is held up");
    let pings = |_: u32| frame(PING, 0, 0, &[7; 8]).repeat(1_000);
    flood(&node, "PING, answers read", Raw::connect(&socket).await, 500, pings).await;
    assert!(flood(&node, "PING, never read", Raw::deaf(&socket).await, 5_000, pings).await, "it is held up");
    assert!(!place.log().contains("panicked"), "{}", place.log());
    assert!(node.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bombs_are_refused_before_they_take_memory() {
    let place = Place::new();
    let node = place.start().await;
    let mut channel = node.channel().await;
    is_served(&node).await;
    let before = node.status("VmRSS");

    // As much as gzip can hide: half a MiB becomes half a GiB.
    let pipe = "head -c 536870912 /dev/zero | gzip -9";
    let bomb = std::process::Command::new("sh").args(["-c", pipe]).output().unwrap().stdout;
    assert!((400 << 10..600 << 10).contains(&bomb.len()), "{}", bomb.len());
    let status = call(&mut channel, "/bib.v1.TopicService/CreateTopic", true, message(true, &bomb)).await;
    assert!([Code::ResourceExhausted, Code::Unimplemented, Code::OutOfRange].contains(&status), "{status:?}");

    // A length that is a lie, and one that is the truth.
    let mut lie = message(false, &[]);
    lie[1..5].copy_from_slice(&u32::MAX.to_be_bytes());
    let status = call(&mut channel, "/bib.v1.TopicService/CreateTopic", false, lie).await;
    assert!([Code::ResourceExhausted, Code::OutOfRange].contains(&status), "{status:?}");
    let large = message(false, &vec![0; 5 << 20]);
    let status = call(&mut channel, "/bib.v1.TopicService/CreateTopic", false, large).await;
    assert!([Code::ResourceExhausted, Code::OutOfRange].contains(&status), "{status:?}");

    // Groups within groups, as deep as a message is long: unknown fields are skipped with a limit, not with the stack.
    let deep = message(false, &[0x7b_u8].repeat(1 << 20));
    let many = message(false, &[0x7a, 0].repeat(1 << 20));
    let not_text = message(false, &[0x0a, 2, 0xff, 0xfe]);
    for (what, body) in [("deep", deep), ("many", many), ("not text", not_text)] {
        let status = call(&mut channel, "/bib.v1.TopicService/CreateTopic", false, body).await;
        assert_ne!(status, Code::Ok, "{what}");
        is_served(&node).await;
    }
    let growth = node.status("VmRSS").saturating_sub(before);
    assert!(growth <= MAX_GROWTH_KIB, "{growth} KiB");
    assert!(!place.log().contains("panicked"), "{}", place.log());
    assert!(node.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_and_slow_connections_leave_honest_ones_alone() {
    let place = Place::new();
    place.configure("grpc:\n  handshake_timeout: 1s\n  max_connections_per_address: 200\n");
    let node = place.start().await;
    let (socket, address) = (node.ready().socket.clone(), node.ready().addresses[0]);
    let (before, threads) = (node.status("VmRSS"), node.status("Threads"));

    let mut half_open = Vec::new();
    for n in 0..1_000 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        if n % 2 == 0 {
            // It may be closed already: there are more than may be.
            let _ = stream.write_all(&[0x16, 3, 1]).await;
        }
        half_open.push(stream);
    }
    let mut slow = Vec::new();
    for _ in 0..100 {
        // Streams that begin and never go on; answers that nobody reads.
        let mut raw = Raw::deaf(&socket).await;
        assert!(raw.send(&frame(HEADERS, END_HEADERS, 1, &headers(PING_PATH))).await);
        assert!(raw.send(&frame(HEADERS, 0, 3, &headers(PING_PATH)[..20])).await);
        slow.push(raw);
    }
    for _ in 0..50 {
        let taken = is_served(&node).await;
        assert!(taken < Duration::from_secs(1), "{taken:?}");
    }
    assert!(node.status("VmRSS").saturating_sub(before) <= MAX_GROWTH_KIB);
    assert!(node.status("Threads") <= threads + 8);
    // Each was ended by the daemon: at the cap at once, else at the time-out.
    let deadline = Instant::now() + Duration::from_secs(10);
    for mut stream in half_open {
        let left = deadline.saturating_duration_since(Instant::now());
        let ended = tokio::time::timeout(left, stream.read(&mut [0; 64])).await.expect("it is ended");
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }
    drop(slow);
    assert!(node.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn out_of_descriptors_the_daemon_waits_and_goes_on() {
    let place = Place::new();
    let mut command = place.wrapped(&["sh", "-c", "ulimit -n 256; exec \"$0\" \"$@\""]);
    command.env("BIBD__GRPC__MAX_CONNECTIONS_PER_ADDRESS", "1000");
    let node = place.start_as(command).await;
    let socket = node.ready().socket.clone();
    let mut held = Vec::new();
    for _ in 0..400 {
        match tokio::time::timeout(Duration::from_millis(200), Raw::connect(&socket)).await {
            Ok(raw) => held.push(raw),
            // The queue of the socket is full: as many as the kernel takes.
            Err(_) => break,
        }
    }
    wait_for("the daemon says so", Duration::from_secs(10), async || place.log().contains("raise the limit")).await;
    // It lives, and turns no processor while it waits.
    let request = HealthCheckRequest::default();
    drop(held);
    let served = async || HealthServiceClient::new(node.channel().await).check(request.clone()).await.is_ok();
    wait_for("service", Duration::from_secs(10), served).await;
    make_topic(&node.channel().await, "after").await.unwrap();
    assert!(!place.log().contains("panicked"), "{}", place.log());
    assert!(node.stop().success());
}
