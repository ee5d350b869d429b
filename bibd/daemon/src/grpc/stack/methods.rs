//! Every method that the daemon answers: who may call it at all, and what it costs in the rate limit.
//!
//! A path that is not in this table is refused before anything else looks at it: unknown means deny. A test compares
//! the table with the compiled `.proto` files.

/// Who may call a method at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anybody who can connect.
    Anonymous,
    /// Only a recognised actor.
    Actor,
}

/// A method of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method {
    /// The path of the HTTP request, `/bib.v1.TopicService/GetTopic`.
    pub path: &'static str,
    /// Who may call it.
    pub access: Access,
    /// Tokens that it takes from the caller's bucket.
    pub cost: u32,
}

impl Method {
    /// `TopicService/GetTopic`: for logs, metrics and the audit log.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.path.trim_start_matches('/').trim_start_matches("bib.v1.")
    }
}

/// Calls that last until the client has enough. They end with `UNAVAILABLE` as soon as the daemon begins to stop, so that
/// a drain waits for work and not for onlookers.
const ENDLESS: &[&str] = &[
    "/grpc.health.v1.Health/Watch",
    "/bib.v1.HealthService/Watch",
    "/bib.v1.TopicService/StreamTopicUpdates",
    "/bib.v1.AdminService/StreamLogs",
    "/bib.v1.AdminService/TailAudit",
    "/bib.v1.BreakGlassService/OpenSession",
];

/// Does a call of this path last until the client has enough?
#[must_use]
pub fn is_endless(path: &str) -> bool {
    ENDLESS.contains(&path)
}

/// Calls that store something new. What changes or removes little goes on when the disk has no room: it may make some.
const TAKES_SPACE: &[&str] = &[
    "/bib.v1.UserService/CreateUser",
    "/bib.v1.TopicService/CreateTopic",
    "/bib.v1.DatasetService/CreateDataset",
    "/bib.v1.DatasetService/BeginUpload",
    "/bib.v1.DatasetService/PutChunks",
    "/bib.v1.DatasetService/PutInPlace",
    "/bib.v1.DatasetService/PutPages",
    "/bib.v1.DatasetService/CommitVersion",
];

/// Does a call of this path store something new?
#[must_use]
pub fn takes_space(path: &str) -> bool {
    TAKES_SPACE.contains(&path)
}

/// Calls whose work grows with what they are about, so that no fixed time fits all: what a client streams in (a client
/// that stalls is cut by keepalive), and what checks or collects. Every other call is cut at `grpc.request_timeout`.
const UNTIMED: &[&str] = &[
    "/bib.v1.DatasetService/PutChunks",
    "/bib.v1.DatasetService/PutInPlace",
    "/bib.v1.DatasetService/PutPages",
    "/bib.v1.DatasetService/CommitVersion",
    "/bib.v1.DatasetService/WithdrawVersion",
    "/bib.v1.AdminService/CollectGarbage",
    "/bib.v1.AdminService/RotateDatabase",
    "/bib.v1.AdminService/MoveDatabase",
    "/bib.v1.AdminService/UpgradeDatabase",
    "/bib.v1.AdminService/CreateBackup",
    "/bib.v1.AdminService/VerifyBackup",
    "/bib.v1.AdminService/DeleteBackup",
    "/bib.v1.AdminService/SetBackupCredentials",
    "/bib.v1.AdminService/SetStorageCredentials",
    "/bib.v1.BreakGlassService/Enable",
    "/bib.v1.BreakGlassService/Disable",
];

/// May a call of this path take as long as it needs?
#[must_use]
pub fn is_untimed(path: &str) -> bool {
    UNTIMED.contains(&path)
}

/// The method of this path.
#[must_use]
pub fn find(path: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.path == path)
}

macro_rules! methods {
    ($($access:ident $cost:literal $path:literal,)*) => {
        /// Every method.
        pub const METHODS: &[Method] = &[$(Method { path: $path, access: Access::$access, cost: $cost },)*];
    };
}

methods! {
    Anonymous 1 "/grpc.health.v1.Health/Check",
    Anonymous 2 "/grpc.health.v1.Health/Watch",
    Anonymous 1 "/bib.v1.HealthService/Check",
    Anonymous 2 "/bib.v1.HealthService/Watch",
    Anonymous 1 "/bib.v1.HealthService/GetNodeInfo",
    Anonymous 1 "/bib.v1.HealthService/Ping",
    Anonymous 5 "/bib.v1.AuthService/Challenge",
    Anonymous 10 "/bib.v1.AuthService/VerifyChallenge",
    Anonymous 5 "/bib.v1.AuthService/GetPublicKeyInfo",
    Actor 10 "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    Actor 1 "/bib.v1.AuthService/WhoAmI",
    Actor 1 "/bib.v1.AuthService/Logout",
    Actor 1 "/bib.v1.AuthService/ListMySessions",
    Actor 1 "/bib.v1.AuthService/RevokeSession",
    Actor 5 "/bib.v1.AuthService/RegisterMyKey",
    Actor 10 "/bib.v1.AuthService/CreateToken",
    Actor 1 "/bib.v1.AuthService/ListTokens",
    Actor 1 "/bib.v1.AuthService/RevokeToken",
    Actor 10 "/bib.v1.AuthService/IssueCertificate",
    Actor 1 "/bib.v1.AuthService/ListCertificates",
    Actor 1 "/bib.v1.AuthService/RevokeCertificate",
    Actor 1 "/bib.v1.UserService/CreateUser",
    Actor 1 "/bib.v1.UserService/GetUser",
    Actor 1 "/bib.v1.UserService/ListUsers",
    Actor 2 "/bib.v1.UserService/SearchUsers",
    Actor 1 "/bib.v1.UserService/UpdateUser",
    Actor 1 "/bib.v1.UserService/SuspendUser",
    Actor 1 "/bib.v1.UserService/ResumeUser",
    Actor 1 "/bib.v1.UserService/RemoveUser",
    Actor 1 "/bib.v1.UserService/AddUserKey",
    Actor 1 "/bib.v1.UserService/RemoveUserKey",
    Actor 1 "/bib.v1.UserService/GetPreferences",
    Actor 1 "/bib.v1.UserService/SetPreferences",
    Actor 2 "/bib.v1.NodeService/GetSelfNode",
    Actor 1 "/bib.v1.TopicService/CreateTopic",
    Actor 1 "/bib.v1.TopicService/GetTopic",
    Actor 1 "/bib.v1.TopicService/ListTopics",
    Actor 1 "/bib.v1.TopicService/UpdateTopic",
    Actor 1 "/bib.v1.TopicService/DeleteTopic",
    Actor 1 "/bib.v1.TopicService/Grant",
    Actor 1 "/bib.v1.TopicService/RevokeGrant",
    Actor 1 "/bib.v1.TopicService/ListGrants",
    Actor 5 "/bib.v1.TopicService/StreamTopicUpdates",
    Actor 1 "/bib.v1.DatasetService/CreateDataset",
    Actor 1 "/bib.v1.DatasetService/GetDataset",
    Actor 1 "/bib.v1.DatasetService/ListDatasets",
    Actor 1 "/bib.v1.DatasetService/UpdateDataset",
    Actor 1 "/bib.v1.DatasetService/DeleteDataset",
    Actor 1 "/bib.v1.DatasetService/GetVersion",
    Actor 1 "/bib.v1.DatasetService/ListVersions",
    Actor 2 "/bib.v1.DatasetService/ListFiles",
    Actor 1 "/bib.v1.DatasetService/SetTag",
    Actor 1 "/bib.v1.DatasetService/RemoveTag",
    Actor 1 "/bib.v1.DatasetService/ListTags",
    Actor 1 "/bib.v1.DatasetService/WithdrawVersion",
    Actor 2 "/bib.v1.DatasetService/BeginUpload",
    Actor 1 "/bib.v1.DatasetService/FindMissingChunks",
    Actor 1 "/bib.v1.DatasetService/PutChunks",
    Actor 1 "/bib.v1.DatasetService/PutInPlace",
    Actor 1 "/bib.v1.DatasetService/FindMissingPages",
    Actor 1 "/bib.v1.DatasetService/PutPages",
    Actor 5 "/bib.v1.DatasetService/CommitVersion",
    Actor 1 "/bib.v1.DatasetService/AbortUpload",
    Actor 1 "/bib.v1.DatasetService/GetPages",
    Actor 1 "/bib.v1.DatasetService/GetChunks",
    Actor 20 "/bib.v1.DatasetService/VerifyVersion",
    Actor 10 "/bib.v1.DatasetService/ProveVersion",
    Actor 1 "/bib.v1.AdminService/GetConfig",
    Actor 1 "/bib.v1.AdminService/UpdateConfig",
    Actor 5 "/bib.v1.AdminService/GetMetrics",
    Actor 5 "/bib.v1.AdminService/StreamLogs",
    Actor 2 "/bib.v1.AdminService/ListAudit",
    Actor 5 "/bib.v1.AdminService/TailAudit",
    Actor 50 "/bib.v1.AdminService/VerifyAudit",
    Actor 10 "/bib.v1.AdminService/ProveAudit",
    Actor 50 "/bib.v1.AdminService/ExportAudit",
    Actor 1 "/bib.v1.AdminService/ListAuditSinks",
    Actor 1 "/bib.v1.AdminService/ListAlertRules",
    Actor 50 "/bib.v1.AdminService/TestAlertRule",
    Actor 1 "/bib.v1.AdminService/EraseAudit",
    Actor 20 "/bib.v1.AdminService/AuditDatabase",
    Actor 2 "/bib.v1.AdminService/GetDatabaseStatus",
    Actor 20 "/bib.v1.AdminService/RotateDatabase",
    Actor 20 "/bib.v1.AdminService/MoveDatabase",
    Actor 20 "/bib.v1.AdminService/UpgradeDatabase",
    Actor 10 "/bib.v1.AdminService/ExportRecovery",
    Actor 10 "/bib.v1.AdminService/ChallengeRecovery",
    Actor 10 "/bib.v1.AdminService/VerifyRecovery",
    Actor 20 "/bib.v1.AdminService/CollectGarbage",
    Actor 50 "/bib.v1.AdminService/Scrub",
    Actor 5 "/bib.v1.AdminService/GetStorageStatus",
    Actor 50 "/bib.v1.AdminService/MoveChunks",
    Actor 5 "/bib.v1.AdminService/SetStorageCredentials",
    Actor 50 "/bib.v1.AdminService/CreateBackup",
    Actor 5 "/bib.v1.AdminService/ListBackups",
    Actor 2 "/bib.v1.AdminService/ShowBackup",
    Actor 50 "/bib.v1.AdminService/VerifyBackup",
    Actor 5 "/bib.v1.AdminService/DeleteBackup",
    Actor 5 "/bib.v1.AdminService/SetBackupCredentials",
    Actor 1 "/bib.v1.AdminService/Shutdown",
    Actor 2 "/bib.v1.BreakGlassService/GetStatus",
    Actor 10 "/bib.v1.BreakGlassService/Challenge",
    Actor 20 "/bib.v1.BreakGlassService/Enable",
    Actor 5 "/bib.v1.BreakGlassService/OpenSession",
    Actor 10 "/bib.v1.BreakGlassService/Disable",
    Actor 2 "/bib.v1.BreakGlassService/ListSessions",
    Actor 20 "/bib.v1.BreakGlassService/ShowSession",
    Actor 5 "/bib.v1.BreakGlassService/GetReport",
    Actor 5 "/bib.v1.BreakGlassService/Review",
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    #[test]
    fn the_table_has_exactly_the_methods_of_the_proto_files() {
        let set = prost_types::FileDescriptorSet::decode(bib_proto::v1::FILE_DESCRIPTOR_SET).unwrap();
        let mut expected: Vec<String> = Vec::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    expected.push(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
                }
            }
        }
        expected.sort();
        let mut listed: Vec<&str> = METHODS.iter().map(|m| m.path).filter(|p| p.starts_with("/bib.v1.")).collect();
        listed.sort_unstable();
        assert_eq!(listed, expected);
    }

    #[test]
    fn only_health_and_log_in_are_anonymous() {
        let anonymous = METHODS.iter().filter(|m| m.access == Access::Anonymous);
        for method in anonymous {
            let allowed = method.path.contains("Health") || method.path.starts_with("/bib.v1.AuthService/");
            assert!(allowed, "{}", method.path);
        }
        assert_eq!(find("/bib.v1.AdminService/Shutdown").unwrap().access, Access::Actor);
        assert!(find("/bib.v1.AdminService/Nothing").is_none());
        assert!(TAKES_SPACE.iter().all(|path| find(path).is_some()));
        assert!(ENDLESS.iter().all(|path| find(path).is_some()));
    }
}
