//! One tonic server over both kinds of connection, with its limits.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::config::Grpc;
use crate::grpc::connections::Connection;
use crate::grpc::stack::{StackParts, layers};
use crate::supervisor::TaskResult;

/// Streams that a client reset before they were looked at; more at once end the connection (rapid reset).
const MAX_PENDING_RESETS: usize = 20;
/// Streams that we reset for a client's mistakes; more end the connection.
const MAX_LOCAL_RESETS: usize = 256;
/// The largest header list, in bytes.
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// The largest HTTP/2 frame that is taken: each costs a round through the stack at either end. The usual is 16 KiB.
const FRAME_BYTES: u32 = 256 * 1024;

/// Serves `routes` to the connections that arrive, until `stop`; then lets running calls end.
///
/// # Errors
/// When tonic's server fails, which it does not for a single connection.
pub async fn serve(
    config: &Grpc,
    parts: StackParts,
    routes: Routes,
    incoming: mpsc::Receiver<Connection>,
    stop: CancellationToken,
) -> TaskResult {
    let window = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX >> 1);
    let incoming = ReceiverStream::new(incoming).map(Ok::<_, std::io::Error>);
    Server::builder()
        .http2_keepalive_interval(Some(config.keepalive_interval.0))
        .http2_keepalive_timeout(Some(config.keepalive_timeout.0))
        .http2_adaptive_window(Some(false))
        .initial_stream_window_size(window(config.stream_window.0))
        .initial_connection_window_size(window(config.connection_window.0))
        .max_concurrent_streams(config.max_streams)
        .max_frame_size(FRAME_BYTES)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(MAX_LOCAL_RESETS))
        .layer(layers(parts, config.request_timeout.0))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await?;
    Ok(())
}

/// How long a connection that is being drained may go on answering, at least.
pub const SHORTEST_DRAIN: Duration = Duration::from_millis(100);
