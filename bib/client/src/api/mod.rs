//! Every call of the node's API, grouped as the API is: `client.topics()`, `.datasets()`, `.users()`, `.auth()`,
//! `.admin()`, `.break_glass()`, `.node()`, `.health()`.
//!
//! Messages are those of [`bib_proto::v1`] where a type of our own would add nothing; long lists are streams of rows.
//! Every call fails as the node says ([`crate::ErrorKind`]), or with `Unavailable` when it does not answer. Calls that
//! only read are repeated when the connection breaks under them.

mod admin;
mod auth;
mod break_glass;
mod datasets;
mod health;
mod node;
mod topics;
mod transfer;
mod users;

pub use admin::Admin;
pub use auth::{Auth, Whose};
pub use break_glass::{BreakGlass, Wish};
pub use datasets::Datasets;
pub use health::Health;
pub use node::Node;
pub use topics::Topics;
pub use users::Users;

use crate::client::Client;

/// One request, one answer: `call!(self, Yes, TopicServiceClient, get_topic, message)`. `Yes` and `No` say whether it
/// may be repeated when the connection breaks.
macro_rules! call {
    ($self:ident, $repeat:ident, $service:ident, $method:ident, $message:expr) => {
        $self
            .client
            .unary(crate::client::Repeat::$repeat, $message, |channel, request| async move {
                $service::new(channel).$method(request).await
            })
            .await
    };
}

/// One request, many answers.
macro_rules! stream {
    ($self:ident, $service:ident, $method:ident, $message:expr) => {
        $self
            .client
            .streaming($message, |channel, request| async move { $service::new(channel).$method(request).await })
            .await
    };
}

/// All rows of a paged list: the field of the answer that holds them, and the request that holds `page`.
macro_rules! rows {
    ($self:ident, $service:ident, $method:ident, $field:ident, |$page:ident| $message:expr) => {{
        let client = $self.client.clone();
        crate::paging::rows(move |$page| {
            let client = client.clone();
            let message = $message;
            async move {
                let answer = client
                    .unary(crate::client::Repeat::Yes, message, |channel, request| async move {
                        $service::new(channel).$method(request).await
                    })
                    .await?;
                Ok((answer.$field, answer.page))
            }
        })
    }};
}

pub(crate) use {call, rows, stream};

impl Client {
    /// Topics and who may see and write them.
    #[must_use]
    pub fn topics(&self) -> Topics {
        Topics { client: self.clone() }
    }

    /// Datasets, versions, files and tags.
    #[must_use]
    pub fn datasets(&self) -> Datasets {
        Datasets { client: self.clone() }
    }

    /// The node's users. Changing others is for admins.
    #[must_use]
    pub fn users(&self) -> Users {
        Users { client: self.clone() }
    }

    /// Sessions, certificates and tokens.
    #[must_use]
    pub fn auth(&self) -> Auth {
        Auth { client: self.clone() }
    }

    /// Running the node. For admins.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin { client: self.clone() }
    }

    /// Opening the node's database to a person, recorded. For admins.
    #[must_use]
    pub fn break_glass(&self) -> BreakGlass {
        BreakGlass { client: self.clone() }
    }

    /// The node itself.
    #[must_use]
    pub fn node(&self) -> Node {
        Node { client: self.clone() }
    }

    /// Whether the node is well, and who it is.
    #[must_use]
    pub fn health(&self) -> Health {
        Health { client: self.clone() }
    }
}
