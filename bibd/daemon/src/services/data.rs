//! The use cases that move bytes, built together, and their background tasks.

use bib_core::PeerId;
use bib_core::content::Entry;
use prometheus::{IntCounter, Registry};

use super::activity::Activity;
use super::audit::AuditService;
use super::base::Base;
use super::chunk_reader::ChunkReader;
use super::collector::CollectorUseCases;
use super::commit::CommitUseCases;
use super::dataset::DatasetUseCases;
use super::download::DownloadUseCases;
use super::error::ServiceError;
use super::in_place::InPlaceUseCases;
use super::list_files::{self, FileFilter};
use super::prove::ProveUseCases;
use super::receive::ReceiveUseCases;
use super::reference::Found;
use super::scrub::ScrubUseCases;
use super::tier::{Tier, TierUseCases};
use super::topic::TopicUseCases;
use super::upload::UploadUseCases;
use super::verifier::{VerifierPoke, VerifyUseCases};
use crate::actor::Call;
use crate::supervisor::{Policy, Supervisor, TaskKind};

/// Everything about a dataset's bytes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DataUseCases {
    base: Base,
    /// Upload sessions and pages.
    pub uploads: UploadUseCases,
    /// Chunks on their way in.
    pub receive: ReceiveUseCases,
    /// Files that stay in place.
    pub in_place: InPlaceUseCases,
    /// Versions.
    pub commits: CommitUseCases,
    /// Pages and chunks on their way out.
    pub downloads: DownloadUseCases,
    /// Hashing files again.
    pub verify: VerifyUseCases,
    /// Proofs for strangers.
    pub prove: ProveUseCases,
    /// Garbage.
    pub collector: CollectorUseCases,
    /// Reading the store again.
    pub scrub: ScrubUseCases,
    /// Moving cold chunks to object storage.
    pub tier: TierUseCases,
}

impl DataUseCases {
    /// Over the node. Counts damaged chunks in `metrics`.
    ///
    /// # Errors
    /// When the counter is registered twice, which is a mistake in the program.
    pub fn new(
        base: Base,
        datasets: DatasetUseCases,
        topics: TopicUseCases,
        audit: AuditService,
        tier: Tier,
        metrics: &Registry,
    ) -> Result<Self, prometheus::Error> {
        let damaged = IntCounter::new("bibd_chunks_damaged_total", "Chunks that were found damaged or missing.")?;
        metrics.register(Box::new(damaged.clone()))?;
        let (activity, poke) = (Activity::default(), VerifierPoke::default());
        let reader = ChunkReader::new(base.clone(), tier.clone(), damaged);
        let tiering = TierUseCases::new(tier.clone(), reader.clone(), activity.clone());
        let uploads = UploadUseCases::new(base.clone(), datasets.clone(), topics);
        let downloads = DownloadUseCases::new(base.clone(), reader.clone(), activity.clone());
        Ok(Self {
            receive: ReceiveUseCases::new(uploads.clone(), activity.clone()),
            in_place: InPlaceUseCases::new(uploads.clone()),
            commits: CommitUseCases::new(uploads.clone(), datasets, poke.clone()),
            verify: VerifyUseCases::new(base.clone(), reader.clone(), downloads.clone(), activity.clone(), poke),
            prove: ProveUseCases::new(base.clone(), audit, downloads.clone()),
            collector: CollectorUseCases::new(base.clone(), tier, activity.clone()),
            scrub: ScrubUseCases::new(base.clone(), reader, tiering.clone(), activity),
            tier: tiering,
            uploads,
            downloads,
            base,
        })
    }

    /// Starts the verifier, the collector, the scrubber and the tier.
    pub fn start(&self, supervisor: &Supervisor) {
        let (verify, collector, scrub) = (self.verify.clone(), self.collector.clone(), self.scrub.clone());
        let policy = Policy::RestartWithBackoff;
        supervisor.spawn(TaskKind::Background, policy, "verifier", move |stop| verify.clone().run(stop));
        supervisor.spawn(TaskKind::Background, policy, "collector", move |stop| collector.clone().run(stop));
        supervisor.spawn(TaskKind::Background, policy, "scrubber", move |stop| scrub.clone().run(stop));
        let tier = self.tier.clone();
        supervisor.spawn(TaskKind::Background, policy, "tier", move |stop| tier.clone().run(stop));
    }

    /// Who this node is.
    #[must_use]
    pub fn node(&self) -> &PeerId {
        &self.base.peer
    }

    /// Entries of a version in path order.
    ///
    /// # Errors
    /// As [`list_files::list_files`].
    pub async fn list_files(
        &self,
        call: &Call,
        reference: &str,
        filter: &FileFilter,
    ) -> Result<(Found, Vec<Entry>), ServiceError> {
        list_files::list_files(&self.base, call, reference, filter).await
    }
}
