//! Running the node. For admins.

use bib_proto::v1 as pb;
use futures::stream::BoxStream;
use pb::admin_service_client::AdminServiceClient;

use super::{call, rows, stream};
use crate::client::{Answers, Client};
use crate::error::Result;

/// Running the node. For admins.
#[derive(Debug, Clone)]
pub struct Admin {
    pub(super) client: Client,
}

impl Admin {
    /// The effective configuration with the origin of each value; secrets are redacted.
    pub async fn config(&self) -> Result<pb::GetConfigResponse> {
        call!(self, Yes, AdminServiceClient, get_config, pb::GetConfigRequest {})
    }

    /// Changes a setting that takes effect without a restart.
    pub async fn update_config(&self, key: &str, value: &str) -> Result<pb::GetConfigResponse> {
        let message = pb::UpdateConfigRequest { key: key.to_owned(), value: value.to_owned() };
        call!(self, No, AdminServiceClient, update_config, message)
    }

    /// The metrics in Prometheus' text format.
    pub async fn metrics(&self) -> Result<String> {
        let answer: Result<pb::GetMetricsResponse> =
            call!(self, Yes, AdminServiceClient, get_metrics, pb::GetMetricsRequest {});
        Ok(answer?.text)
    }

    /// The node's log lines.
    pub async fn logs(&self, request: pb::StreamLogsRequest) -> Result<Answers<pb::LogEntry>> {
        stream!(self, AdminServiceClient, stream_logs, request)
    }

    /// The audit log's entries that the request's filters take; its `page` is ignored.
    #[must_use]
    pub fn audit(&self, filter: pb::ListAuditRequest) -> BoxStream<'static, Result<pb::AuditEntry>> {
        rows!(self, AdminServiceClient, list_audit, entries, |page| pb::ListAuditRequest {
            page: Some(page),
            ..filter.clone()
        })
    }

    /// Entries of the audit log as they are sealed, after the last `tail` (at most 1000).
    pub async fn tail_audit(&self, tail: u32) -> Result<Answers<pb::AuditEntry>> {
        stream!(self, AdminServiceClient, tail_audit, pb::TailAuditRequest { tail })
    }

    /// Verifies the audit log: progress, then a verdict in the last answer.
    pub async fn verify_audit(&self) -> Result<Answers<pb::VerifyAuditResponse>> {
        stream!(self, AdminServiceClient, verify_audit, pb::VerifyAuditRequest {})
    }

    /// Entry, inclusion proof and checkpoint as JSON. Epoch 0 is the present one.
    pub async fn prove_audit(&self, epoch: u64, seq: u64) -> Result<String> {
        let message = pb::ProveAuditRequest { epoch, seq };
        let answer: Result<pb::ProveAuditResponse> = call!(self, Yes, AdminServiceClient, prove_audit, message);
        Ok(answer?.proof_json)
    }

    /// The whole audit log in pieces, as the verifiers read it.
    pub async fn export_audit(&self) -> Result<Answers<pb::ExportAuditResponse>> {
        stream!(self, AdminServiceClient, export_audit, pb::ExportAuditRequest {})
    }

    /// Where sealed entries are sent, and how far each place has come.
    pub async fn audit_sinks(&self) -> Result<Vec<pb::AuditSink>> {
        let answer: Result<pb::ListAuditSinksResponse> =
            call!(self, Yes, AdminServiceClient, list_audit_sinks, pb::ListAuditSinksRequest {});
        Ok(answer?.sinks)
    }

    /// The rules over the audit log.
    pub async fn alert_rules(&self) -> Result<Vec<pb::AlertRule>> {
        let answer: Result<pb::ListAlertRulesResponse> =
            call!(self, Yes, AdminServiceClient, list_alert_rules, pb::ListAlertRulesRequest {});
        Ok(answer?.rules)
    }

    /// Tries a rule on past entries: alerts and progress, the last answer is `finished`.
    pub async fn test_alert_rule(
        &self,
        request: pb::TestAlertRuleRequest,
    ) -> Result<Answers<pb::TestAlertRuleResponse>> {
        stream!(self, AdminServiceClient, test_alert_rule, request)
    }

    /// Erases the details of an entry; the entry and its place stay.
    pub async fn erase_audit(&self, entry_id: &str, reason: &str) -> Result<pb::EraseAuditResponse> {
        let message = pb::EraseAuditRequest { entry_id: entry_id.to_owned(), reason: reason.to_owned() };
        call!(self, No, AdminServiceClient, erase_audit, message)
    }

    /// The PostgreSQL checklist.
    pub async fn audit_database(&self) -> Result<pb::AuditDatabaseResponse> {
        call!(self, Yes, AdminServiceClient, audit_database, pb::AuditDatabaseRequest {})
    }

    /// What runs the database, and the login in use of every role.
    pub async fn database_status(&self) -> Result<pb::GetDatabaseStatusResponse> {
        call!(self, Yes, AdminServiceClient, get_database_status, pb::GetDatabaseStatusRequest {})
    }

    /// Gives these roles of the database new passwords; all when none is named.
    pub async fn rotate_database(&self, roles: &[String]) -> Result<pb::RotateDatabaseResponse> {
        let message = pb::RotateDatabaseRequest { roles: roles.to_vec() };
        call!(self, No, AdminServiceClient, rotate_database, message)
    }

    /// Hands the database to another provisioner with the next start, or says whether it could.
    pub async fn move_database(&self, to: &str, dry_run: bool) -> Result<pb::MoveDatabaseResponse> {
        let message = pb::MoveDatabaseRequest { to: to.to_owned(), dry_run };
        call!(self, No, AdminServiceClient, move_database, message)
    }

    /// Plans an upgrade of the database to `to_major` (0 is the newest that is there), says what it would be, or what else
    /// `act` asks.
    pub async fn upgrade_database(
        &self,
        act: pb::DatabaseUpgrade,
        to_major: u32,
    ) -> Result<pb::UpgradeDatabaseResponse> {
        let message = pb::UpgradeDatabaseRequest { act: act.into(), to_major };
        call!(self, No, AdminServiceClient, upgrade_database, message)
    }

    /// Makes the recovery keys and their sheet, once.
    pub async fn export_recovery(&self, request: pb::ExportRecoveryRequest) -> Result<pb::ExportRecoveryResponse> {
        call!(self, No, AdminServiceClient, export_recovery, request)
    }

    /// Asks for the holder of the recovery sheet.
    pub async fn challenge_recovery(&self) -> Result<pb::ChallengeRecoveryResponse> {
        call!(self, No, AdminServiceClient, challenge_recovery, pb::ChallengeRecoveryRequest {})
    }

    /// Answers as the holder of the recovery sheet.
    pub async fn verify_recovery(&self, request: pb::VerifyRecoveryRequest) -> Result<pb::VerifyRecoveryResponse> {
        call!(self, No, AdminServiceClient, verify_recovery, request)
    }

    /// Collects chunks that nothing keeps alive, or says which it would.
    pub async fn collect_garbage(&self, request: pb::CollectGarbageRequest) -> Result<pb::CollectGarbageResponse> {
        call!(self, No, AdminServiceClient, collect_garbage, request)
    }

    /// Reads stored chunks again: progress and findings.
    pub async fn scrub(&self, objects: bool) -> Result<Answers<pb::ScrubResponse>> {
        stream!(self, AdminServiceClient, scrub, pb::ScrubRequest { objects })
    }

    /// How object storage is, and which chunks lie where.
    pub async fn storage_status(&self) -> Result<pb::GetStorageStatusResponse> {
        call!(self, Yes, AdminServiceClient, get_storage_status, pb::GetStorageStatusRequest {})
    }

    /// Moves chunks to object storage or back to disk: progress, then a last word.
    pub async fn move_chunks(&self, request: pb::MoveChunksRequest) -> Result<Answers<pb::MoveChunksResponse>> {
        stream!(self, AdminServiceClient, move_chunks, request)
    }

    /// Seals the credentials of the node's object storage, as they stand in `~/.aws/credentials`.
    pub async fn set_storage_credentials(&self, credentials: &str) -> Result<pb::SetStorageCredentialsResponse> {
        let message = pb::SetStorageCredentialsRequest { credentials: credentials.to_owned() };
        call!(self, No, AdminServiceClient, set_storage_credentials, message)
    }

    /// Makes a backup of this kind, `physical` or `logical`: progress, then the backup in the last answer.
    pub async fn create_backup(&self, kind: &str) -> Result<Answers<pb::CreateBackupResponse>> {
        let message = pb::CreateBackupRequest { kind: kind.to_owned() };
        stream!(self, AdminServiceClient, create_backup, message)
    }

    /// The backups in the node's store, newest first.
    pub async fn backups(&self) -> Result<Vec<pb::Backup>> {
        let answer: Result<pb::ListBackupsResponse> =
            call!(self, Yes, AdminServiceClient, list_backups, pb::ListBackupsRequest {});
        Ok(answer?.backups)
    }

    /// One backup.
    pub async fn backup(&self, id: &str) -> Result<pb::Backup> {
        let message = pb::ShowBackupRequest { id: id.to_owned() };
        let answer: Result<pb::ShowBackupResponse> = call!(self, Yes, AdminServiceClient, show_backup, message);
        Ok(answer?.backup.unwrap_or_default())
    }

    /// Restores a backup beside the node, looks at it, and removes that again.
    pub async fn verify_backup(&self, id: &str) -> Result<pb::VerifyBackupResponse> {
        let message = pb::VerifyBackupRequest { id: id.to_owned() };
        call!(self, No, AdminServiceClient, verify_backup, message)
    }

    /// Deletes a backup, and the archived log that no other backup needs.
    pub async fn delete_backup(&self, id: &str) -> Result<()> {
        let message = pb::DeleteBackupRequest { id: id.to_owned() };
        let answer: Result<pb::DeleteBackupResponse> = call!(self, No, AdminServiceClient, delete_backup, message);
        answer.map(|_| ())
    }

    /// Seals the credentials of the node's S3-compatible store, as they stand in `~/.aws/credentials`.
    pub async fn set_backup_credentials(&self, credentials: &str) -> Result<pb::SetBackupCredentialsResponse> {
        let message = pb::SetBackupCredentialsRequest { credentials: credentials.to_owned() };
        call!(self, No, AdminServiceClient, set_backup_credentials, message)
    }

    /// Stops the node, giving running calls this many seconds; 0 means 30.
    pub async fn shutdown(&self, drain_seconds: u32) -> Result<()> {
        let message = pb::ShutdownRequest { drain_seconds };
        let answer: Result<pb::ShutdownResponse> = call!(self, No, AdminServiceClient, shutdown, message);
        answer.map(|_| ())
    }
}
