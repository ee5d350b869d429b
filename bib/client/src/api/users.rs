//! People and programs of the node.

use bib_proto::v1 as pb;
use futures::stream::BoxStream;
use pb::user_service_client::UserServiceClient;

use super::{call, rows};
use crate::client::Client;
use crate::error::Result;

/// People and programs of the node. A user is named by name, id or key fingerprint. Changing others is for admins.
#[derive(Debug, Clone)]
pub struct Users {
    pub(super) client: Client,
}

impl Users {
    /// Adds a user.
    pub async fn create(&self, request: pb::CreateUserRequest) -> Result<pb::User> {
        call!(self, No, UserServiceClient, create_user, request)
    }

    /// One user.
    pub async fn get(&self, user: &str) -> Result<pb::User> {
        call!(self, Yes, UserServiceClient, get_user, pb::GetUserRequest { user: user.to_owned() })
    }

    /// All users, by name.
    #[must_use]
    pub fn list(&self) -> BoxStream<'static, Result<pb::User>> {
        rows!(self, UserServiceClient, list_users, users, |page| pb::ListUsersRequest { page: Some(page) })
    }

    /// Users whose name, ORCID or key comment contains `text`.
    #[must_use]
    pub fn search(&self, text: &str) -> BoxStream<'static, Result<pb::User>> {
        let text = text.to_owned();
        rows!(self, UserServiceClient, search_users, users, |page| pb::SearchUsersRequest {
            page: Some(page),
            text: text.clone()
        })
    }

    /// Changes what the request names.
    pub async fn update(&self, request: pb::UpdateUserRequest) -> Result<pb::User> {
        call!(self, No, UserServiceClient, update_user, request)
    }

    /// Ends a user's sessions and refuses new ones.
    pub async fn suspend(&self, user: &str, reason: &str) -> Result<pb::User> {
        let message = pb::SuspendUserRequest { user: user.to_owned(), reason: reason.to_owned() };
        call!(self, No, UserServiceClient, suspend_user, message)
    }

    /// Lets a suspended user in again.
    pub async fn resume(&self, user: &str) -> Result<pb::User> {
        call!(self, No, UserServiceClient, resume_user, pb::ResumeUserRequest { user: user.to_owned() })
    }

    /// Removes a user; acts and versions stay.
    pub async fn remove(&self, user: &str) -> Result<()> {
        let message = pb::RemoveUserRequest { user: user.to_owned() };
        let answer: Result<pb::RemoveUserResponse> = call!(self, No, UserServiceClient, remove_user, message);
        answer.map(|_| ())
    }

    /// Gives a user one more SSH key: a line as in `id_ed25519.pub`.
    pub async fn add_key(&self, user: &str, public_key: &str) -> Result<pb::User> {
        let message = pb::AddUserKeyRequest { user: user.to_owned(), public_key: public_key.to_owned() };
        call!(self, No, UserServiceClient, add_user_key, message)
    }

    /// Takes a key from a user. Versions signed with it stay valid.
    pub async fn remove_key(&self, user: &str, fingerprint: &str) -> Result<pb::User> {
        let message = pb::RemoveUserKeyRequest { user: user.to_owned(), fingerprint: fingerprint.to_owned() };
        call!(self, No, UserServiceClient, remove_user_key, message)
    }

    /// The caller's preferences.
    pub async fn preferences(&self) -> Result<pb::Preferences> {
        call!(self, Yes, UserServiceClient, get_preferences, pb::GetPreferencesRequest {})
    }

    /// Sets the caller's preferences.
    pub async fn set_preferences(&self, preferences: pb::Preferences) -> Result<pb::Preferences> {
        let message = pb::SetPreferencesRequest { preferences: Some(preferences) };
        call!(self, Yes, UserServiceClient, set_preferences, message)
    }
}
