//! AuthService, and the stack's [`Authenticator`].

use tonic::async_trait;

use super::peer::Peer;
use super::stack::Authenticator;
use crate::actor::Actor;
use crate::services::ServiceError;
use crate::services::auth::authenticate::Authentication;

#[async_trait]
impl Authenticator for Authentication {
    async fn authenticate(&self, peer: &Peer, bearer: Option<&str>, _: &str) -> Result<Actor, ServiceError> {
        self.recognise(peer, bearer).await
    }
}
