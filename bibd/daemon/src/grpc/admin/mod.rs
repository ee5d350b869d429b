//! AdminService: running the node. Each call asks the policy in its use case.

mod alerts;
mod audit;
mod backup;
mod database;
mod logs;
mod store;
mod working;

use std::sync::Arc;
use std::time::Duration;

use bib_core::access::Verb;
use bib_proto::v1::admin_service_server::AdminService;
use bib_proto::v1::{self as pb, AuditEntry, ExportAuditResponse, LogEntry, ScrubResponse, VerifyAuditResponse};
use futures::stream::BoxStream;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use super::page::Page;
use super::{call_of, metadata_of};
use crate::actor::Call;
use crate::clock::Clock;
use crate::logging::Logs;
use crate::secrets::Secrets;
use crate::services::ServiceError;
use crate::services::alerts::AlertUseCases;
use crate::services::audit::AuditService;
use crate::services::backup::BackupUseCases;
use crate::services::base::allow_node;
use crate::services::collector::CollectorUseCases;
use crate::services::configuration::Configuration;
use crate::services::database_audit::DatabaseAudit;
use crate::services::export_board::ExportBoard;
use crate::services::journal::Journal;
use crate::services::moving::Moving;
use crate::services::node_info::NodeUseCases;
use crate::services::recovery::Recovery;
use crate::services::recovery_check::RecoveryCheck;
use crate::services::rotation::Rotation;
use crate::services::scrub::ScrubUseCases;
use crate::services::tier::TierUseCases;
use crate::services::upgrading::Upgrading;

/// How long running calls are given when the request does not say.
const DEFAULT_DRAIN: Duration = Duration::from_secs(30);

/// What the handler calls.
#[derive(Clone)]
pub struct AdminParts {
    /// The audit log.
    pub audit: AuditService,
    /// How its sinks are.
    pub sinks: ExportBoard,
    /// Rules over it.
    pub alerts: AlertUseCases,
    /// Tells what is sealed.
    pub journal: Journal,
    /// The configuration.
    pub configuration: Configuration,
    /// The checklist.
    pub database: DatabaseAudit,
    /// The database's passwords.
    pub rotation: Rotation,
    /// The database from one provisioner to another.
    pub moving: Moving,
    /// The database carried over to a newer major version.
    pub upgrading: Upgrading,
    /// The node as a whole.
    pub node: NodeUseCases,
    /// The recovery sheet.
    pub recovery: Recovery,
    /// Asks for it.
    pub recovery_check: RecoveryCheck,
    /// Backups.
    pub backups: BackupUseCases,
    /// Garbage.
    pub collector: CollectorUseCases,
    /// Reading the store again.
    pub scrub: ScrubUseCases,
    /// Object storage.
    pub tier: TierUseCases,
    /// Where its credentials are sealed.
    pub secrets: Secrets,
    /// The daemon's log.
    pub logs: Logs,
    /// Measures durations.
    pub clock: Arc<dyn Clock>,
}

/// The handler.
pub struct AdminHandler {
    parts: AdminParts,
}

impl AdminHandler {
    /// Over the use cases.
    #[must_use]
    pub fn new(parts: AdminParts) -> Self {
        Self { parts }
    }

    fn config(&self, call: &Call) -> Result<pb::GetConfigResponse, ServiceError> {
        let values = self.parts.configuration.get(call)?;
        let value = |value: crate::services::configuration::Effective| pb::ConfigValue {
            key: value.key,
            value: value.value,
            origin: value.origin.to_owned(),
            mutable: value.is_mutable,
        };
        Ok(pb::GetConfigResponse { values: values.into_iter().map(value).collect() })
    }
}

type Streamed<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl AdminService for AdminHandler {
    async fn get_config(
        &self,
        request: Request<pb::GetConfigRequest>,
    ) -> Result<Response<pb::GetConfigResponse>, Status> {
        let call = call_of(&request)?;
        Ok(Response::new(self.config(&call)?))
    }

    async fn update_config(
        &self,
        request: Request<pb::UpdateConfigRequest>,
    ) -> Result<Response<pb::GetConfigResponse>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        self.parts.configuration.set(&call, &wanted.key, &wanted.value).await?;
        Ok(Response::new(self.config(&call)?))
    }

    async fn get_metrics(
        &self,
        request: Request<pb::GetMetricsRequest>,
    ) -> Result<Response<pb::GetMetricsResponse>, Status> {
        let call = call_of(&request)?;
        Ok(Response::new(pb::GetMetricsResponse { text: self.parts.node.metrics(&call).await? }))
    }

    type StreamLogsStream = Streamed<LogEntry>;

    async fn stream_logs(
        &self,
        request: Request<pb::StreamLogsRequest>,
    ) -> Result<Response<Self::StreamLogsStream>, Status> {
        let call = call_of(&request)?;
        allow_node(&call, Verb::LogsRead)?;
        let wanted = request.into_inner();
        let level = logs::level(&wanted.level)?;
        Ok(Response::new(logs::lines(&self.parts.logs, level, wanted.tail, wanted.follow)))
    }

    async fn list_audit(
        &self,
        request: Request<pb::ListAuditRequest>,
    ) -> Result<Response<pb::ListAuditResponse>, Status> {
        let call = call_of(&request)?;
        let mut wanted = request.into_inner();
        let page = Page::of(wanted.page.take())?;
        let list = self.parts.audit.list(&call, &audit::filter(&wanted, &page)?).await?;
        let info = page.info(list.len(), list.last().map(audit::key));
        let entries = list.into_iter().map(audit::listed).collect();
        Ok(Response::new(pb::ListAuditResponse { entries, page: Some(info) }))
    }

    type TailAuditStream = Streamed<AuditEntry>;

    async fn tail_audit(
        &self,
        request: Request<pb::TailAuditRequest>,
    ) -> Result<Response<Self::TailAuditStream>, Status> {
        let call = call_of(&request)?;
        let follow = self.parts.journal.follow();
        let count = request.into_inner().tail;
        Ok(Response::new(audit::tail(self.parts.audit.clone(), call, follow, count).await?))
    }

    type VerifyAuditStream = Streamed<VerifyAuditResponse>;

    async fn verify_audit(
        &self,
        request: Request<pb::VerifyAuditRequest>,
    ) -> Result<Response<Self::VerifyAuditStream>, Status> {
        let call = call_of(&request)?;
        allow_node(&call, Verb::AuditRead)?;
        Ok(Response::new(audit::verify(self.parts.audit.clone(), call, Arc::clone(&self.parts.clock))))
    }

    async fn prove_audit(
        &self,
        request: Request<pb::ProveAuditRequest>,
    ) -> Result<Response<pb::ProveAuditResponse>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        if wanted.seq == 0 {
            return Err(ServiceError::invalid("seq", "is the number of an entry, from 1").into());
        }
        let proof_json = self.parts.audit.prove(&call, wanted.epoch, wanted.seq).await?;
        Ok(Response::new(pb::ProveAuditResponse { proof_json }))
    }

    type ExportAuditStream = Streamed<ExportAuditResponse>;

    async fn export_audit(
        &self,
        request: Request<pb::ExportAuditRequest>,
    ) -> Result<Response<Self::ExportAuditStream>, Status> {
        let call = call_of(&request)?;
        allow_node(&call, Verb::AuditRead)?;
        Ok(Response::new(audit::export(self.parts.audit.clone(), call)))
    }

    async fn list_audit_sinks(
        &self,
        request: Request<pb::ListAuditSinksRequest>,
    ) -> Result<Response<pb::ListAuditSinksResponse>, Status> {
        allow_node(&call_of(&request)?, Verb::AuditRead)?;
        let sinks = self.parts.sinks.list().into_iter().map(audit::sink).collect();
        Ok(Response::new(pb::ListAuditSinksResponse { sinks }))
    }

    async fn list_alert_rules(
        &self,
        request: Request<pb::ListAlertRulesRequest>,
    ) -> Result<Response<pb::ListAlertRulesResponse>, Status> {
        let rules = self.parts.alerts.list(&call_of(&request)?)?;
        let rules = rules.into_iter().map(alerts::rule).collect();
        Ok(Response::new(pb::ListAlertRulesResponse { rules }))
    }

    type TestAlertRuleStream = Streamed<pb::TestAlertRuleResponse>;

    async fn test_alert_rule(
        &self,
        request: Request<pb::TestAlertRuleRequest>,
    ) -> Result<Response<Self::TestAlertRuleStream>, Status> {
        let call = call_of(&request)?;
        allow_node(&call, Verb::AuditRead)?;
        Ok(Response::new(alerts::test(self.parts.alerts.clone(), call, request.into_inner())?))
    }

    async fn erase_audit(
        &self,
        request: Request<pb::EraseAuditRequest>,
    ) -> Result<Response<pb::EraseAuditResponse>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let entry = wanted.entry_id.parse().map_err(|_| ServiceError::invalid("entry_id", "is not a UUID"))?;
        self.parts.audit.erase(&call, entry, &wanted.reason).await?;
        let operation = metadata_of(&call, &self.parts.node.foundation().peer_id);
        Ok(Response::new(pb::EraseAuditResponse { operation: Some(operation) }))
    }

    async fn audit_database(
        &self,
        request: Request<pb::AuditDatabaseRequest>,
    ) -> Result<Response<pb::AuditDatabaseResponse>, Status> {
        let call = call_of(&request)?;
        Ok(Response::new(database::audited(self.parts.database.run(&call).await?)))
    }

    async fn get_database_status(
        &self,
        request: Request<pb::GetDatabaseStatusRequest>,
    ) -> Result<Response<pb::GetDatabaseStatusResponse>, Status> {
        let call = call_of(&request)?;
        Ok(Response::new(database::status(self.parts.rotation.status(&call).await?)))
    }

    async fn rotate_database(
        &self,
        request: Request<pb::RotateDatabaseRequest>,
    ) -> Result<Response<pb::RotateDatabaseResponse>, Status> {
        let call = call_of(&request)?;
        let rotated = self.parts.rotation.rotate(&call, &request.into_inner().roles).await?;
        Ok(Response::new(database::rotated(rotated)))
    }

    async fn move_database(
        &self,
        request: Request<pb::MoveDatabaseRequest>,
    ) -> Result<Response<pb::MoveDatabaseResponse>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let planned = self.parts.moving.plan(&call, &wanted.to, wanted.dry_run).await?;
        Ok(Response::new(database::planned(planned)))
    }

    async fn upgrade_database(
        &self,
        request: Request<pb::UpgradeDatabaseRequest>,
    ) -> Result<Response<pb::UpgradeDatabaseResponse>, Status> {
        let call = call_of(&request)?;
        let wanted = request.into_inner();
        let upgrading = &self.parts.upgrading;
        let to = (wanted.to_major > 0).then_some(wanted.to_major);
        let answer = match wanted.act() {
            pb::DatabaseUpgrade::Unspecified => return Err(database::no_act().into()),
            pb::DatabaseUpgrade::Examine => database::upgrade(upgrading.examine(&call, to).await?),
            pb::DatabaseUpgrade::Plan => database::upgrade(upgrading.plan(&call, to).await?),
            pb::DatabaseUpgrade::Cancel => {
                upgrading.cancel(&call).await?;
                pb::UpgradeDatabaseResponse::default()
            }
            pb::DatabaseUpgrade::RemoveOld => {
                let removed_bytes = upgrading.remove_old(&call).await?;
                pb::UpgradeDatabaseResponse { removed_bytes, ..Default::default() }
            }
        };
        Ok(Response::new(answer))
    }

    async fn export_recovery(
        &self,
        request: Request<pb::ExportRecoveryRequest>,
    ) -> Result<Response<pb::ExportRecoveryResponse>, Status> {
        let call = call_of(&request)?;
        let exported = self.parts.recovery.export(&call, request.into_inner().replace).await?;
        Ok(Response::new(pb::ExportRecoveryResponse {
            sheet: exported.sheet.to_string(),
            age_recipient: exported.public.age_recipient,
            ed25519_fingerprint: exported.key.to_string(),
        }))
    }

    async fn challenge_recovery(
        &self,
        request: Request<pb::ChallengeRecoveryRequest>,
    ) -> Result<Response<pb::ChallengeRecoveryResponse>, Status> {
        let call = call_of(&request)?;
        let question = self.parts.recovery_check.ask(&call).await?;
        Ok(Response::new(pb::ChallengeRecoveryResponse {
            sealed: question.sealed.into(),
            ed25519_fingerprint: bib_core::PeerId::from_public_key(question.public.ed25519).to_string(),
            age_recipient: question.public.age_recipient,
            peer_id: question.peer.to_string(),
        }))
    }

    async fn verify_recovery(
        &self,
        request: Request<pb::VerifyRecoveryRequest>,
    ) -> Result<Response<pb::VerifyRecoveryResponse>, Status> {
        let call = call_of(&request)?;
        let answer = request.into_inner();
        self.parts.recovery_check.judge(&call, &answer.opened, &answer.signature).await?;
        Ok(Response::new(pb::VerifyRecoveryResponse {}))
    }

    async fn collect_garbage(
        &self,
        request: Request<pb::CollectGarbageRequest>,
    ) -> Result<Response<pb::CollectGarbageResponse>, Status> {
        let call = call_of(&request)?;
        let collected = self.parts.collector.collect(&call, request.into_inner().dry_run).await?;
        Ok(Response::new(store::collected(collected)))
    }

    type ScrubStream = Streamed<ScrubResponse>;

    async fn scrub(&self, request: Request<pb::ScrubRequest>) -> Result<Response<Self::ScrubStream>, Status> {
        let call = call_of(&request)?;
        allow_node(&call, Verb::Maintain)?;
        let objects = request.get_ref().objects;
        Ok(Response::new(store::scrub(self.parts.scrub.clone(), call, objects)))
    }

    async fn get_storage_status(
        &self,
        request: Request<pb::GetStorageStatusRequest>,
    ) -> Result<Response<pb::GetStorageStatusResponse>, Status> {
        let call = call_of(&request)?;
        Ok(Response::new(store::status(self.parts.tier.state(&call).await?)))
    }

    type MoveChunksStream = Streamed<pb::MoveChunksResponse>;

    async fn move_chunks(
        &self,
        request: Request<pb::MoveChunksRequest>,
    ) -> Result<Response<Self::MoveChunksStream>, Status> {
        let call = call_of(&request)?;
        allow_node(&call, Verb::Maintain)?;
        let direction = store::direction(&request.get_ref().to)?;
        let dry_run = request.get_ref().dry_run;
        Ok(Response::new(store::move_chunks(self.parts.tier.clone(), call, direction, dry_run)))
    }

    async fn set_storage_credentials(
        &self,
        request: Request<pb::SetStorageCredentialsRequest>,
    ) -> Result<Response<pb::SetStorageCredentialsResponse>, Status> {
        let call = call_of(&request)?;
        // Wiped when the call ends.
        let text = Zeroizing::new(request.into_inner().credentials);
        let accepted = self.parts.tier.set_credentials(&call, &self.parts.secrets, &text).await?;
        Ok(Response::new(store::accepted(accepted)))
    }

    type CreateBackupStream = Streamed<pb::CreateBackupResponse>;

    async fn create_backup(
        &self,
        request: Request<pb::CreateBackupRequest>,
    ) -> Result<Response<Self::CreateBackupStream>, Status> {
        let call = call_of(&request)?;
        allow_node(&call, Verb::Maintain)?;
        let kind = backup::kind(request.get_ref())?;
        Ok(Response::new(backup::create(self.parts.backups.clone(), call, kind)))
    }

    async fn list_backups(
        &self,
        request: Request<pb::ListBackupsRequest>,
    ) -> Result<Response<pb::ListBackupsResponse>, Status> {
        let call = call_of(&request)?;
        let listed = self.parts.backups.list(&call).await?;
        let backups = listed.into_iter().map(backup::backup).collect();
        Ok(Response::new(pb::ListBackupsResponse { backups }))
    }

    async fn show_backup(
        &self,
        request: Request<pb::ShowBackupRequest>,
    ) -> Result<Response<pb::ShowBackupResponse>, Status> {
        let call = call_of(&request)?;
        let listed = self.parts.backups.show(&call, &request.into_inner().id).await?;
        Ok(Response::new(pb::ShowBackupResponse { backup: Some(backup::backup(listed)) }))
    }

    async fn verify_backup(
        &self,
        request: Request<pb::VerifyBackupRequest>,
    ) -> Result<Response<pb::VerifyBackupResponse>, Status> {
        let call = call_of(&request)?;
        let examined = self.parts.backups.verify(&call, &request.into_inner().id).await?;
        Ok(Response::new(backup::examined(examined)))
    }

    async fn delete_backup(
        &self,
        request: Request<pb::DeleteBackupRequest>,
    ) -> Result<Response<pb::DeleteBackupResponse>, Status> {
        let call = call_of(&request)?;
        self.parts.backups.delete(&call, &request.into_inner().id).await?;
        Ok(Response::new(pb::DeleteBackupResponse {}))
    }

    async fn set_backup_credentials(
        &self,
        request: Request<pb::SetBackupCredentialsRequest>,
    ) -> Result<Response<pb::SetBackupCredentialsResponse>, Status> {
        let call = call_of(&request)?;
        // Wiped when the call ends.
        let text = Zeroizing::new(request.into_inner().credentials);
        let accepted = self.parts.backups.set_credentials(&call, &text).await?;
        Ok(Response::new(backup::accepted(accepted)))
    }

    async fn shutdown(&self, request: Request<pb::ShutdownRequest>) -> Result<Response<pb::ShutdownResponse>, Status> {
        let call = call_of(&request)?;
        let drain = match request.into_inner().drain_seconds {
            0 => DEFAULT_DRAIN,
            seconds => Duration::from_secs(u64::from(seconds)),
        };
        self.parts.node.shutdown(&call, drain).await?;
        Ok(Response::new(pb::ShutdownResponse {}))
    }
}
