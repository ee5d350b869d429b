//! The client: one node, and calls to it that survive a lost connection and a log-in that has run out.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bib_identity::trust::Presented;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt as _};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::connect::Link;
use crate::error::{Error, ErrorKind, Result};
use crate::options::Options;
use crate::target::Target;

/// Answers that come one after another.
pub type Answers<T> = BoxStream<'static, Result<T>>;

/// Whether a call may be sent twice when the connection breaks under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It only reads, or it is idempotent.
    Yes,
    /// It changes something.
    No,
    /// It is part of a log-in: not sent twice, and a refusal leads to no other log-in.
    Never,
}

/// One node. Cheap to clone; the clones share a connection.
///
/// ```no_run
/// use bib_client::{Client, Options, Places, Target};
///
/// # async fn example(options: Options) -> bib_client::Result<()> {
/// let target = Target::local(&Places::from_variables(|name| std::env::var(name).ok()))?;
/// let client = Client::connect(target, options)?;
/// let node = client.health().node_info().await?;
/// assert!(!node.peer_id.is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    target: Target,
    options: Options,
    link: RwLock<Arc<Link>>,
    /// Held while somebody logs in, so that many calls that fail at once lead to one log-in.
    login: tokio::sync::Mutex<()>,
}

impl Client {
    /// A client of `target`. Reads the trust store and the last log-in; connects at the first call.
    ///
    /// # Errors
    /// When the trust store or the stored credentials cannot be used.
    pub fn connect(target: Target, options: Options) -> Result<Self> {
        let link = RwLock::new(Arc::new(Link::make(&target, &options)?));
        Ok(Self { inner: Arc::new(Inner { target, options, link, login: tokio::sync::Mutex::new(()) }) })
    }

    /// The node that is meant.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.inner.target
    }

    /// The options that it was connected with.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.inner.options
    }

    /// Whether calls go over the Unix socket of this machine.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self.inner.target, Target::Socket(_))
    }

    /// Whether the node will know who calls: on the socket always, over TLS after a log-in.
    #[must_use]
    pub fn is_logged_in(&self) -> bool {
        self.link().is_logged_in()
    }

    /// What the node's TLS certificate showed; absent before the first call and on the socket.
    #[must_use]
    pub fn presented(&self) -> Option<Presented> {
        self.link().presented()
    }

    pub(crate) fn link(&self) -> Arc<Link> {
        Arc::clone(&self.inner.link.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes a new channel from what is trusted and stored now.
    pub(crate) fn relink(&self) -> Result<()> {
        let link = Arc::new(Link::make(&self.inner.target, &self.inner.options)?);
        *self.inner.link.write().unwrap_or_else(PoisonError::into_inner) = link;
        Ok(())
    }

    /// Makes a new channel that shows neither certificate nor token.
    pub(crate) fn relink_anonymously(&self) -> Result<()> {
        let link = Arc::new(Link::anonymous(&self.inner.target, &self.inner.options)?);
        *self.inner.link.write().unwrap_or_else(PoisonError::into_inner) = link;
        Ok(())
    }

    /// One request, one answer.
    pub(crate) async fn unary<Q, A, F, Fut>(&self, repeat: Repeat, message: Q, call: F) -> Result<A>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> Fut,
        Fut: Future<Output = Result<Response<A>, Status>>,
    {
        self.persistently(repeat, message, Some(self.inner.options.timeout), call).await
    }

    /// One request, many answers, for as long as the caller likes.
    pub(crate) async fn streaming<Q, A, F, Fut>(&self, message: Q, call: F) -> Result<Answers<A>>
    where
        Q: Clone,
        A: Send + 'static,
        F: Fn(Channel, Request<Q>) -> Fut,
        Fut: Future<Output = Result<Response<Streaming<A>>, Status>>,
    {
        let answers = self.persistently(Repeat::Yes, message, None, call).await?;
        Ok(answers.map(|answer| answer.map_err(Error::from)).boxed())
    }

    /// Many requests and many answers at once, each way for as long as it lasts. Never sent twice.
    pub(crate) async fn both_ways<Q, A, F, Fut>(&self, messages: Q, call: F) -> Result<Answers<A>>
    where
        A: Send + 'static,
        F: FnOnce(Channel, Request<Q>) -> Fut,
        Fut: Future<Output = Result<Response<Streaming<A>>, Status>>,
    {
        let link = self.link();
        let answers = call(link.channel.clone(), link.request(messages, None)).await.map_err(Error::from)?;
        Ok(answers.into_inner().map(|answer| answer.map_err(Error::from)).boxed())
    }

    async fn persistently<Q, A, F, Fut>(
        &self,
        repeat: Repeat,
        message: Q,
        timeout: Option<Duration>,
        call: F,
    ) -> Result<A>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> Fut,
        Fut: Future<Output = Result<Response<A>, Status>>,
    {
        let mut renewed = false;
        let mut left = self.inner.options.attempts.max(1);
        let mut pause = Duration::from_millis(50);
        loop {
            left -= 1;
            let link = self.link();
            let request = link.request(message.clone(), timeout);
            let error = match call(link.channel.clone(), request).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => Error::from(status),
            };
            if error.kind() == ErrorKind::Unauthenticated
                && !renewed
                && repeat != Repeat::Never
                && self.can_log_in_again()
            {
                renewed = true;
                left += 1;
                self.log_in_again(&link, error).await?;
            } else if error.is_transport()
                && error.kind() == ErrorKind::Unavailable
                && repeat == Repeat::Yes
                && left > 0
            {
                tracing::debug!(error = %error.chain(), "calling again");
                tokio::time::sleep(pause).await;
                pause = (pause * 3).min(Duration::from_secs(2));
            } else if error.is_transport() && error.code().is_none() && !self.is_local() && link.is_logged_in() {
                // Which of the two it was is lost when the connection closes before the alert is read.
                return Err(error.with_hint(
                    "`bib status` shows whether the node is up; a log-in that was revoked ends like this too: `bib login`",
                ));
            } else {
                return Err(error);
            }
        }
    }

    fn can_log_in_again(&self) -> bool {
        let options = &self.inner.options;
        !self.is_local() && options.token_file.is_none() && options.keys.is_some()
    }

    /// Logs in once for all calls that were refused on `link`. Boxed, because logging in is made of calls; those never
    /// come back here ([`Repeat::Never`]).
    fn log_in_again<'a>(&'a self, link: &'a Arc<Link>, refused: Error) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let _one = self.inner.login.lock().await;
            if !Arc::ptr_eq(link, &self.link()) {
                return Ok(());
            }
            match self.login_with_source().await {
                Ok(_) => Ok(()),
                // What the node said first is what the person needs to hear.
                Err(error) if error.code() == Some(crate::error::code::NO_KEY) => Err(refused),
                Err(error) => Err(error),
            }
        })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("target", &self.inner.target).finish_non_exhaustive()
    }
}
