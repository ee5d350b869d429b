//! The rate limit: a token bucket per caller, emptied by the cost of each call.
//!
//! A caller is the key of a client certificate, else the remote address, else a uid on the socket. Who runs the daemon
//! (and root) has no limit on the socket. It never looks into a request.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bib_core::KeyFingerprint;
use futures::future::BoxFuture;
use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::clock::Clock;
use crate::config::RateLimit;
use crate::errors::ErrorCode;
use crate::grpc::call::Arrival;
use crate::grpc::peer::Peer;
use crate::grpc::stack::methods;
use crate::metrics::Metrics;
use crate::services::ServiceError;

/// Buckets that are kept; beyond that the full ones are forgotten, and if there is none, callers share one.
const MAX_BUCKETS: usize = 16_384;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Caller {
    Key(KeyFingerprint),
    Address(IpAddr),
    Uid(u32),
    Crowd,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

/// All buckets. Cheap to clone; the limits can be changed while it runs.
#[derive(Clone)]
pub struct RateLimiter(Arc<Mutex<State>>);

impl std::fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RateLimiter")
    }
}

struct State {
    limit: RateLimit,
    buckets: HashMap<Caller, Bucket>,
    owner: u32,
}

impl RateLimiter {
    /// Buckets with these limits; `owner` is the uid that the daemon runs as.
    #[must_use]
    pub fn new(limit: RateLimit, owner: u32) -> Self {
        Self(Arc::new(Mutex::new(State { limit, buckets: HashMap::new(), owner })))
    }

    /// Takes new limits from now on.
    pub fn set(&self, limit: RateLimit) {
        self.lock().limit = limit;
    }

    /// The limits.
    #[must_use]
    pub fn limit(&self) -> RateLimit {
        self.lock().limit.clone()
    }

    /// Takes `cost` tokens for a call of `peer`.
    ///
    /// # Errors
    /// How long until there are enough.
    pub fn take(&self, peer: &Peer, cost: u32, now: Instant) -> Result<(), Duration> {
        let mut state = self.lock();
        let caller = match peer {
            Peer::Socket { uid, .. } if *uid == state.owner || *uid == 0 => return Ok(()),
            Peer::Socket { uid, .. } => Caller::Uid(*uid),
            Peer::Tls { client: Some(client), .. } => Caller::Key(client.key),
            Peer::Tls { remote, .. } => Caller::Address(group(remote.ip())),
        };
        if !state.limit.enabled {
            return Ok(());
        }
        state.take(caller, f64::from(cost), now)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One caller has a whole /64 of IPv6.
fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 => v4,
    }
}

impl State {
    fn take(&mut self, mut caller: Caller, cost: f64, now: Instant) -> Result<(), Duration> {
        let (rate, burst) = (f64::from(self.limit.per_second), f64::from(self.limit.burst));
        let level = |bucket: &Bucket| {
            let gained = now.saturating_duration_since(bucket.filled).as_secs_f64() * rate;
            (bucket.tokens + gained).min(burst)
        };
        if !self.buckets.contains_key(&caller) && self.buckets.len() >= MAX_BUCKETS {
            self.buckets.retain(|_, bucket| level(bucket) < burst);
            if self.buckets.len() >= MAX_BUCKETS {
                caller = Caller::Crowd;
            }
        }
        let bucket = self.buckets.entry(caller).or_insert(Bucket { tokens: burst, filled: now });
        *bucket = Bucket { tokens: level(bucket), filled: now };
        if bucket.tokens < cost {
            return Err(Duration::from_secs_f64(((cost - bucket.tokens) / rate).clamp(0.001, 3_600.0)));
        }
        bucket.tokens -= cost;
        Ok(())
    }
}

/// What the layer needs.
#[derive(Clone)]
pub struct RateLayer {
    limiter: RateLimiter,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

impl RateLayer {
    /// Limits by `limiter`.
    #[must_use]
    pub fn new(limiter: RateLimiter, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        Self { limiter, clock, metrics }
    }
}

impl<S> Layer<S> for RateLayer {
    type Service = Rate<S>;

    fn layer(&self, inner: S) -> Rate<S> {
        Rate { inner, layer: self.clone() }
    }
}

/// See [`RateLayer`].
#[derive(Clone)]
pub struct Rate<S> {
    inner: S,
    layer: RateLayer,
}

impl<S> Service<Request<Body>> for Rate<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let cost = methods::find(request.uri().path()).map_or(5, |method| method.cost);
        let peer = request.extensions().get::<Arrival>().map(|arrival| Arc::clone(&arrival.peer));
        let taken = peer.map_or(Ok(()), |peer| self.layer.limiter.take(&peer, cost, self.layer.clock.monotonic()));
        if let Err(wait) = taken {
            self.layer.metrics.rate_limited.inc();
            let error = ServiceError::Exhausted {
                code: ErrorCode::RATE_LIMITED,
                sentence: "too many requests in a short time".to_owned(),
                hint: format!("try again in {} ms", wait.as_millis().max(1)),
                retry_after: Some(wait),
            };
            return Box::pin(std::future::ready(Ok(Status::from(error).into_http())));
        }
        Box::pin(self.inner.call(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bib_identity::Fingerprint;

    fn remote(text: &str) -> Peer {
        Peer::Tls { remote: text.parse().unwrap(), client: None, server_leaf: Fingerprint::of(b"leaf") }
    }

    fn limiter() -> RateLimiter {
        RateLimiter::new(RateLimit { enabled: true, per_second: 10, burst: 50 }, 1000)
    }

    #[test]
    fn a_bucket_empties_by_cost_and_fills_with_time() {
        let (limiter, peer, start) = (limiter(), remote("192.0.2.7:1"), Instant::now());
        assert_eq!(limiter.take(&peer, 50, start), Ok(()));
        let wait = limiter.take(&peer, 5, start).unwrap_err();
        assert_eq!(wait, Duration::from_millis(500));
        assert_eq!(limiter.take(&peer, 5, start + wait), Ok(()));
        assert!(limiter.take(&peer, 1, start + wait).is_err());
        // Somebody else is not affected, another port of the same address is the same caller.
        assert_eq!(limiter.take(&remote("192.0.2.8:1"), 1, start), Ok(()));
        assert!(limiter.take(&remote("192.0.2.7:2"), 1, start + wait).is_err());
    }

    #[test]
    fn one_ipv6_network_is_one_caller_and_the_owner_has_no_limit() {
        let (limiter, start) = (limiter(), Instant::now());
        assert_eq!(limiter.take(&remote("[2001:db8::1]:1"), 50, start), Ok(()));
        assert!(limiter.take(&remote("[2001:db8::2]:1"), 1, start).is_err());
        for uid in [0, 1000] {
            let owner = Peer::Socket { uid, gid: 1, pid: None };
            assert!((0..100).all(|_| limiter.take(&owner, 50, start).is_ok()));
        }
        let other = Peer::Socket { uid: 1001, gid: 1, pid: None };
        assert_eq!(limiter.take(&other, 50, start), Ok(()));
        assert!(limiter.take(&other, 1, start).is_err());
    }

    #[test]
    fn many_callers_do_not_grow_the_table_without_end() {
        let (limiter, start) = (limiter(), Instant::now());
        for n in 0..(MAX_BUCKETS as u32 + 1_000) {
            let address = std::net::Ipv4Addr::from(n);
            let _ = limiter.take(&remote(&format!("{address}:1")), 1, start);
        }
        assert!(limiter.lock().buckets.len() <= MAX_BUCKETS + 1);
    }
}
