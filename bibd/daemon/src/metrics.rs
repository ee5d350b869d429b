//! The daemon's counters, and `/metrics` where the configuration asks for it.
//!
//! Labels have few values: methods, codes, kinds. Never names, users or addresses.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bibd_cache::{Swept, Usage};
use bibd_catalog::StatementCount;
use bibd_catalog::statistics::Statistics;
use prometheus::{
    Encoder as _, Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use tokio_util::sync::CancellationToken;

/// Every metric that the frame of the daemon keeps; services register theirs in [`Metrics::registry`].
#[derive(Debug)]
pub struct Metrics {
    /// The registry behind all of them.
    pub registry: Registry,
    /// `bibd_grpc_requests_total{method,code}`.
    pub requests: IntCounterVec,
    /// `bibd_grpc_request_seconds{method}`.
    pub request_seconds: HistogramVec,
    /// `bibd_grpc_requests_in_flight`.
    pub in_flight: IntGauge,
    /// `bibd_grpc_panics_total`.
    pub panics: IntCounter,
    /// `bibd_grpc_rate_limited_total`.
    pub rate_limited: IntCounter,
    /// `bibd_grpc_connections{kind}`.
    pub connections: IntGaugeVec,
    /// `bibd_grpc_connections_refused_total{reason}`.
    pub connections_refused: IntCounterVec,
    /// `bibd_tasks_failed_total{task}`: background tasks that failed or panicked.
    pub task_failures: IntCounterVec,
    /// `bibd_start_time_seconds`.
    pub started: Gauge,
    /// What PostgreSQL says of itself.
    pub database: DatabaseMetrics,
    /// What the daemon asked of it.
    pub statements: StatementMetrics,
}

/// Statements by role, class and table.
#[derive(Debug)]
pub struct StatementMetrics {
    /// `bibd_statements_total{role,class,table}`.
    calls: IntCounterVec,
    /// `bibd_statement_rows_total{role,class,table}`.
    rows: IntCounterVec,
    /// `bibd_statement_microseconds_total{role,class,table}`.
    us: IntCounterVec,
}

impl StatementMetrics {
    /// Shows what the catalog counted.
    pub fn set(&self, found: &BTreeMap<(&str, &str, &str), StatementCount>) {
        for ((role, class, table), count) in found {
            let pairs = [(&self.calls, count.calls), (&self.rows, count.rows), (&self.us, count.us)];
            for (counter, now) in pairs {
                let counter = counter.with_label_values(&[*role, *class, *table]);
                counter.inc_by(now.saturating_sub(counter.get()));
            }
        }
    }
}

/// Counters that PostgreSQL keeps, as it was last asked for them.
#[derive(Debug)]
pub struct DatabaseMetrics {
    /// `bibd_postgres_rows_written_total{verb}`.
    rows: IntCounterVec,
    /// `bibd_postgres_wal_bytes_total`.
    wal: IntCounter,
    /// `bibd_postgres_database_bytes`.
    size: IntGauge,
}

/// What a cache node keeps of others.
#[derive(Debug)]
pub struct CacheMetrics {
    /// `bibd_cache_records`.
    records: IntGauge,
    /// `bibd_cache_pages`.
    pages: IntGauge,
    /// `bibd_cache_bytes`.
    bytes: IntGauge,
    /// `bibd_cache_expired_total`.
    expired: IntCounter,
}

impl CacheMetrics {
    /// Registers everything; only a node that has a cache does.
    ///
    /// # Errors
    /// When a name is registered twice, which is a mistake in the program.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| {
            let metric = IntGauge::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let expired = IntCounter::new("bibd_cache_expired_total", "Records and pages that were too old.")?;
        registry.register(Box::new(expired.clone()))?;
        Ok(Self {
            records: gauge("bibd_cache_records", "Records of other nodes in the cache.")?,
            pages: gauge("bibd_cache_pages", "Pages in the cache.")?,
            bytes: gauge("bibd_cache_bytes", "Bytes of records and pages in the cache.")?,
            expired,
        })
    }

    /// Shows what a sweep left and what it removed.
    pub fn set(&self, usage: &Usage, swept: &Swept) {
        for (gauge, now) in [(&self.records, usage.records), (&self.pages, usage.pages), (&self.bytes, usage.bytes)] {
            gauge.set(i64::try_from(now).unwrap_or(i64::MAX));
        }
        self.expired.inc_by(swept.records + swept.pages);
    }
}

/// What tells statements apart.
const STATEMENT_LABELS: &[&str] = &["role", "class", "table"];

/// Seconds: from a tenth of a millisecond to the time limit of a call.
const BUCKETS: &[f64] =
    &[0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// When a name is registered twice, which is a mistake in the program.
    pub fn new() -> Result<Arc<Self>, prometheus::Error> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let counter = |name: &str, help: &str| {
            let metric = IntCounter::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let in_flight = IntGauge::new("bibd_grpc_requests_in_flight", "Calls being answered.")?;
        registry.register(Box::new(in_flight.clone()))?;
        let connections = IntGaugeVec::new(Opts::new("bibd_grpc_connections", "Live connections."), &["kind"])?;
        registry.register(Box::new(connections.clone()))?;
        let started = Gauge::new("bibd_start_time_seconds", "When the daemon started, in seconds since 1970.")?;
        registry.register(Box::new(started.clone()))?;
        let seconds = HistogramOpts::new("bibd_grpc_request_seconds", "Time until a call's last byte.");
        let request_seconds = HistogramVec::new(seconds.buckets(BUCKETS.to_vec()), &["method"])?;
        registry.register(Box::new(request_seconds.clone()))?;
        let about = "Rows of the catalog's tables written.";
        let rows = counters("bibd_postgres_rows_written_total", about, &["verb"])?;
        let wal = counter("bibd_postgres_wal_bytes_total", "Write-ahead log written.")?;
        let size = IntGauge::new("bibd_postgres_database_bytes", "Size of the database on disk.")?;
        registry.register(Box::new(size.clone()))?;
        Ok(Arc::new(Self {
            requests: counters("bibd_grpc_requests_total", "Calls answered.", &["method", "code"])?,
            request_seconds,
            in_flight,
            panics: counter("bibd_grpc_panics_total", "Calls that panicked.")?,
            rate_limited: counter("bibd_grpc_rate_limited_total", "Calls refused by the rate limit.")?,
            connections,
            connections_refused: counters(
                "bibd_grpc_connections_refused_total",
                "Connections that were not taken.",
                &["reason"],
            )?,
            task_failures: counters("bibd_tasks_failed_total", "Background tasks that failed or panicked.", &["task"])?,
            started,
            database: DatabaseMetrics { rows, wal, size },
            statements: StatementMetrics {
                calls: counters("bibd_statements_total", "Statements run.", STATEMENT_LABELS)?,
                rows: counters("bibd_statement_rows_total", "Rows that statements read or changed.", STATEMENT_LABELS)?,
                us: counters("bibd_statement_microseconds_total", "Time that statements took.", STATEMENT_LABELS)?,
            },
            registry,
        }))
    }

    /// Everything in the Prometheus text format.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(error.cause = %error, "the metrics cannot be written as text");
        }
        String::from_utf8(text).unwrap_or_default()
    }
}

impl DatabaseMetrics {
    /// Shows what the database said. Its counters begin anew after a crash, and so do these.
    pub fn set(&self, found: &Statistics) {
        let show = |counter: &IntCounter, count: u64| {
            counter.reset();
            counter.inc_by(count);
        };
        let rows = [("insert", found.rows_inserted), ("update", found.rows_updated), ("delete", found.rows_deleted)];
        for (verb, count) in rows {
            show(&self.rows.with_label_values(&[verb]), count);
        }
        show(&self.wal, found.wal_bytes);
        self.size.set(i64::try_from(found.database_bytes).unwrap_or(i64::MAX));
    }
}

/// Serves `GET /metrics`, whose text `render` makes, on a listener that is bound already, until `stop`.
///
/// # Errors
/// When the listener fails.
pub async fn serve<F, R>(
    listener: tokio::net::TcpListener,
    render: F,
    stop: CancellationToken,
) -> Result<(), std::io::Error>
where
    F: Fn() -> R + Clone + Send + Sync + 'static,
    R: Future<Output = String> + Send,
{
    let answer = move || async move {
        let headers = [("content-type", "text/plain; version=0.0.4; charset=utf-8")];
        (headers, render().await)
    };
    let router = axum::Router::new().route("/metrics", axum::routing::get(answer));
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// Binds the listener of `/metrics`.
///
/// # Errors
/// When the address cannot be used.
pub async fn bind(address: SocketAddr) -> Result<tokio::net::TcpListener, std::io::Error> {
    tokio::net::TcpListener::bind(address).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_show_in_the_text() {
        let metrics = Metrics::new().unwrap();
        metrics.requests.with_label_values(&["HealthService/Ping", "OK"]).inc();
        metrics.request_seconds.with_label_values(&["HealthService/Ping"]).observe(0.002);
        let text = metrics.render();
        assert!(text.contains(r#"bibd_grpc_requests_total{code="OK",method="HealthService/Ping"} 1"#), "{text}");
        assert!(text.contains("bibd_grpc_request_seconds_bucket"));
    }
}
