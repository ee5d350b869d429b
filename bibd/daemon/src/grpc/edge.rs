//! Where services are built and their handlers are put together. One line here for each service.

use std::error::Error;
use std::sync::Arc;

use bib_proto::v1::auth_service_server::AuthServiceServer;
use bib_proto::v1::break_glass_service_server::BreakGlassServiceServer;
use bib_proto::v1::dataset_service_server::DatasetServiceServer;
use bib_proto::v1::topic_service_server::TopicServiceServer;
use bib_proto::v1::user_service_server::UserServiceServer;
use bibd_audit::CheckpointFile;
use tonic::service::Routes;

use crate::foundation::Foundation;
use crate::grpc::admin::{AdminHandler, AdminParts};
use crate::grpc::auth::AuthHandler;
use crate::grpc::break_glass::BreakGlassHandler;
use crate::grpc::dataset::DatasetHandler;
use crate::grpc::dataset_catalog::DatasetCatalog;
use crate::grpc::node::NodeHandler;
use crate::grpc::stack::{Authenticator, RefusalSink};
use crate::grpc::topic::TopicHandler;
use crate::grpc::user::UserHandler;
use crate::services::audit::AuditService;
use crate::services::auth::authenticate::Authentication;
use crate::services::auth::login::LogIns;
use crate::services::backup::BackupUseCases;
use crate::services::base::Base;
use crate::services::break_glass::BreakGlass;
use crate::services::configuration::Configuration;
use crate::services::data::DataUseCases;
use crate::services::database_audit::DatabaseAudit;
use crate::services::dataset::DatasetUseCases;
use crate::services::grant::GrantUseCases;
use crate::services::moving::Moving;
use crate::services::node_info::NodeUseCases;
use crate::services::recovery::Recovery;
use crate::services::recovery_check::RecoveryCheck;
use crate::services::refusals::Refusals;
use crate::services::rotation::Rotation;
use crate::services::tier::Tier;
use crate::services::topic::TopicUseCases;
use crate::services::upgrading::Upgrading;
use crate::services::users::Users;
use crate::services::{accounts, alert_delivery, alerts, export, retention, succession, tasks};
use crate::supervisor::{Policy, TaskKind};
use bib_proto::v1::admin_service_server::AdminServiceServer;
use bib_proto::v1::node_service_server::NodeServiceServer;

/// What the server serves and who guards it.
pub struct Edge {
    /// The handlers.
    pub routes: Routes,
    /// Recognises callers.
    pub authenticator: Arc<dyn Authenticator>,
    /// Takes note of refused calls.
    pub refusals: Arc<dyn RefusalSink>,
}

impl Edge {
    /// Builds every service on `foundation`, starts its background tasks under the supervisor, and puts the handlers
    /// together. Health is added by the composition root.
    ///
    /// # Errors
    /// When a service cannot read what it needs to begin.
    pub async fn build(foundation: &Foundation) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let base = Base::of(foundation);
        tasks::start(foundation, &base).await?;
        succession::carry_over(foundation, &base).await?;
        let accounts = accounts::start(foundation, &base).await?;
        let (refusals, writer) = Refusals::new(base.clone());
        foundation.supervisor.spawn(TaskKind::Background, Policy::RestartWithBackoff, "refusals", writer.writing());
        let log_ins = LogIns::new(accounts.clone(), Arc::clone(&foundation.certificates.tls), refusals.clone());
        let topics = TopicUseCases::new(base.clone());
        let grants = GrantUseCases::new(base.clone(), topics.clone());
        let audit = AuditService::new(base.clone(), CheckpointFile::new(&foundation.places.checkpoints))
            .with_archive(retention::archive(foundation));
        let sinks = export::start(foundation, &base).await?;
        let alerts = alerts::start(foundation, &base).await?;
        alert_delivery::start(foundation, &base).await?;
        let node = NodeUseCases::new(foundation.clone(), base.clone());
        let datasets = DatasetUseCases::new(base.clone(), topics.clone());
        let registry = &foundation.metrics.registry;
        let tier = Tier::open(foundation, base.clone())?;
        let data = DataUseCases::new(base.clone(), datasets.clone(), topics.clone(), audit.clone(), tier, registry)?;
        data.start(&foundation.supervisor);
        let rotation = Rotation::new(foundation, base.clone());
        let rotating = rotation.clone();
        foundation.supervisor.spawn(TaskKind::Background, Policy::RestartWithBackoff, "rotation", move |stop| {
            rotating.clone().run(stop)
        });
        let backups = BackupUseCases::start(foundation, base.clone()).await?;
        retention::start(foundation, &base, &backups);
        let shipping = backups.clone();
        foundation.supervisor.spawn(TaskKind::Background, Policy::RestartWithBackoff, "log-shipping", move |stop| {
            shipping.clone().shipping(stop)
        });
        let receiving = backups.clone();
        foundation.supervisor.spawn(TaskKind::Background, Policy::RestartWithBackoff, "log-receiving", move |stop| {
            receiving.clone().receiving(stop)
        });
        let keeping = backups.clone();
        foundation.supervisor.spawn(TaskKind::Background, Policy::RestartWithBackoff, "backups", move |stop| {
            keeping.clone().keeping(stop)
        });
        let glass = BreakGlassHandler::new(BreakGlass::start(foundation, base.clone())?);
        let admin = AdminParts {
            audit,
            sinks,
            alerts,
            journal: base.journal.clone(),
            configuration: Configuration::start(foundation, base.clone()).await?,
            database: DatabaseAudit::new(foundation, base.clone()),
            rotation,
            moving: Moving::start(foundation, base.clone()).await?,
            upgrading: Upgrading::start(foundation, base.clone()).await?,
            node: node.clone(),
            recovery: Recovery::start(foundation, base.clone())?,
            recovery_check: RecoveryCheck::new(base.clone(), foundation.secrets.clone()),
            backups,
            collector: data.collector.clone(),
            scrub: data.scrub.clone(),
            tier: data.tier.clone(),
            secrets: foundation.secrets.clone(),
            logs: foundation.logs.clone(),
            clock: Arc::clone(&foundation.clock),
        };
        let dataset_handler = DatasetHandler::new(DatasetCatalog::new(base.clone(), datasets), data);
        let limit = usize::try_from(foundation.config().grpc.max_message_bytes.0)?;
        let topic_handler = TopicHandler::new(topics, grants, base.updates.clone(), base.peer);
        let users = Users::new(accounts.clone());
        let routes = Routes::default()
            .add_service(AuthServiceServer::new(AuthHandler::new(&accounts, log_ins)).max_decoding_message_size(limit))
            .add_service(UserServiceServer::new(UserHandler::new(users)).max_decoding_message_size(limit))
            .add_service(TopicServiceServer::new(topic_handler).max_decoding_message_size(limit))
            .add_service(DatasetServiceServer::new(dataset_handler).max_decoding_message_size(limit))
            .add_service(NodeServiceServer::new(NodeHandler::new(node)).max_decoding_message_size(limit))
            .add_service(BreakGlassServiceServer::new(glass).max_decoding_message_size(limit))
            .add_service(AdminServiceServer::new(AdminHandler::new(admin)).max_decoding_message_size(limit));
        Ok(Self { routes, authenticator: Arc::new(Authentication::new(accounts)), refusals: Arc::new(refusals) })
    }
}
