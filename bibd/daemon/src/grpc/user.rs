//! UserService.

use bib_core::access::NodeRole;
use bib_proto::v1 as pb;
use bib_proto::v1::user_service_server::UserService;
use bibd_catalog::users::{UserKey, UserState};
use tonic::{Request, Response, Status, async_trait};

use super::auth::role_to_wire;
use super::call_of;
use super::page::Page;
use crate::actor::Call;
use crate::services::ServiceError;
use crate::services::users::{Change, NewUser, Preferences, Profile, Users, parse_fingerprint};

/// The handler.
#[derive(Debug)]
pub struct UserHandler {
    users: Users,
}

impl UserHandler {
    /// Over the use cases.
    #[must_use]
    pub fn new(users: Users) -> Self {
        Self { users }
    }

    async fn page(
        &self,
        call: &Call,
        text: &str,
        page: Option<pb::PageRequest>,
    ) -> Result<Response<pb::ListUsersResponse>, Status> {
        let page = Page::of(page)?;
        let list = self.users.list(call, text, &page.after, page.limit).await?;
        let info = page.info(list.len(), list.last().map(|profile| profile.user.name.clone()));
        Ok(Response::new(pb::ListUsersResponse { users: list.into_iter().map(user).collect(), page: Some(info) }))
    }
}

#[async_trait]
impl UserService for UserHandler {
    async fn create_user(&self, request: Request<pb::CreateUserRequest>) -> Result<Response<pb::User>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let new = NewUser {
            name: wanted.name,
            display_name: wanted.display_name,
            orcid: wanted.orcid,
            role: role_of(wanted.role)?,
            public_keys: wanted.public_keys,
            uid: wanted.uid,
        };
        Ok(Response::new(user(self.users.create(&call, new).await?)))
    }

    async fn get_user(&self, request: Request<pb::GetUserRequest>) -> Result<Response<pb::User>, Status> {
        let call = call_of(&request)?;
        Ok(Response::new(user(self.users.get(&call, &request.into_inner().user).await?)))
    }

    async fn list_users(
        &self,
        request: Request<pb::ListUsersRequest>,
    ) -> Result<Response<pb::ListUsersResponse>, Status> {
        let call = call_of(&request)?;
        self.page(&call, "", request.into_inner().page).await
    }

    async fn search_users(
        &self,
        request: Request<pb::SearchUsersRequest>,
    ) -> Result<Response<pb::ListUsersResponse>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        self.page(&call, &wanted.text, wanted.page).await
    }

    async fn update_user(&self, request: Request<pb::UpdateUserRequest>) -> Result<Response<pb::User>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let role = match wanted.role {
            Some(number) => Some(role_of(number)?.ok_or_else(|| ServiceError::invalid("role", "a role is needed"))?),
            None => None,
        };
        let change = Change { display_name: wanted.display_name, orcid: wanted.orcid, role };
        Ok(Response::new(user(self.users.update(&call, &wanted.user, change).await?)))
    }

    async fn suspend_user(&self, request: Request<pb::SuspendUserRequest>) -> Result<Response<pb::User>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        Ok(Response::new(user(self.users.suspend(&call, &wanted.user, &wanted.reason).await?)))
    }

    async fn resume_user(&self, request: Request<pb::ResumeUserRequest>) -> Result<Response<pb::User>, Status> {
        let call = call_of(&request)?;
        Ok(Response::new(user(self.users.resume(&call, &request.into_inner().user).await?)))
    }

    async fn remove_user(
        &self,
        request: Request<pb::RemoveUserRequest>,
    ) -> Result<Response<pb::RemoveUserResponse>, Status> {
        let call = call_of(&request)?;
        self.users.remove(&call, &request.into_inner().user).await?;
        Ok(Response::new(pb::RemoveUserResponse {}))
    }

    async fn add_user_key(&self, request: Request<pb::AddUserKeyRequest>) -> Result<Response<pb::User>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        Ok(Response::new(user(self.users.add_key(&call, &wanted.user, &wanted.public_key).await?)))
    }

    async fn remove_user_key(&self, request: Request<pb::RemoveUserKeyRequest>) -> Result<Response<pb::User>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let key = parse_fingerprint("fingerprint", &wanted.fingerprint)?;
        Ok(Response::new(user(self.users.remove_key(&call, &wanted.user, &key).await?)))
    }

    async fn get_preferences(
        &self,
        request: Request<pb::GetPreferencesRequest>,
    ) -> Result<Response<pb::Preferences>, Status> {
        let call = call_of(&request)?;
        Ok(Response::new(preferences(self.users.preferences(&call).await?)))
    }

    async fn set_preferences(
        &self,
        request: Request<pb::SetPreferencesRequest>,
    ) -> Result<Response<pb::Preferences>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner().preferences.unwrap_or_default();
        let new = Preferences::parse(&wanted.theme, &wanted.locale)?;
        Ok(Response::new(preferences(self.users.set_preferences(&call, new).await?)))
    }
}

/// `None` for the unspecified role.
fn role_of(number: i32) -> Result<Option<NodeRole>, ServiceError> {
    match pb::NodeRole::try_from(number) {
        Ok(pb::NodeRole::Unspecified) => Ok(None),
        Ok(pb::NodeRole::Reader) => Ok(Some(NodeRole::Reader)),
        Ok(pb::NodeRole::Writer) => Ok(Some(NodeRole::Writer)),
        Ok(pb::NodeRole::Admin) => Ok(Some(NodeRole::Admin)),
        Err(_) => Err(ServiceError::invalid("role", "roles are reader, writer and admin")),
    }
}

fn state(state: UserState) -> pb::UserState {
    match state {
        UserState::Active => pb::UserState::Active,
        UserState::Suspended => pb::UserState::Suspended,
        UserState::Removed => pb::UserState::Removed,
    }
}

fn user(Profile { user, keys }: Profile) -> pb::User {
    pb::User {
        user_id: user.id.to_string(),
        name: user.name,
        display_name: user.display_name,
        orcid: user.orcid,
        role: role_to_wire(user.role).into(),
        state: state(user.state).into(),
        keys: keys.into_iter().map(key).collect(),
        uids: user.uids,
        created_at: user.created_at.to_string(),
    }
}

fn key(key: UserKey) -> pb::UserKey {
    pb::UserKey {
        fingerprint: key.fingerprint.to_string(),
        public_key: key.public_key,
        comment: key.comment,
        added_at: key.added_at.to_string(),
        removed_at: key.removed_at.map(|time| time.to_string()),
    }
}

fn preferences(preferences: Preferences) -> pb::Preferences {
    pb::Preferences { theme: preferences.theme.as_str().to_owned(), locale: preferences.locale }
}
