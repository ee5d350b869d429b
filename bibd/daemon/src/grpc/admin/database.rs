//! The managed PostgreSQL on the wire.

use bib_proto::v1::{
    self as pb, AuditDatabaseResponse, GetDatabaseStatusResponse, MoveDatabaseResponse, RotateDatabaseResponse,
    UpgradeDatabaseResponse,
};
use bibd_postgres::checklist::{Finding, Status as Verdict};
use bibd_postgres::upgrading::Prospect;

use crate::services::ServiceError;
use crate::services::moving::Planned;
use crate::services::rotation::{DatabaseStatus, RoleState, Rotated};

/// The checklist with its counts.
pub(super) fn audited(findings: Vec<Finding>) -> AuditDatabaseResponse {
    let mut answer = AuditDatabaseResponse::default();
    for found in findings {
        match found.status {
            Verdict::Pass => answer.passed += 1,
            Verdict::Fail => answer.failed += 1,
            Verdict::NotApplicable { .. } => answer.not_applicable += 1,
            Verdict::Warn => {}
        }
        answer.findings.push(finding(found));
    }
    answer
}

/// The server and its roles.
pub(super) fn status(status: DatabaseStatus) -> GetDatabaseStatusResponse {
    let role = |state: RoleState| pb::DatabaseRole {
        role: state.role.to_owned(),
        login: state.login,
        password_age_seconds: state.age.as_secs(),
        connections: state.connections,
    };
    GetDatabaseStatusResponse {
        provisioner: status.provisioner.to_owned(),
        version: status.version,
        uptime_seconds: status.uptime.as_secs(),
        rotated_every_seconds: status.rotated_every.as_secs(),
        roles: status.roles.into_iter().map(role).collect(),
        container: status.container.map(|found| pb::DatabaseContainer {
            name: found.name,
            engine: found.engine,
            image: found.image,
            digest: found.digest,
        }),
    }
}

/// A move as it is planned.
pub(super) fn planned(planned: Planned) -> MoveDatabaseResponse {
    MoveDatabaseResponse {
        from: planned.from.name().to_owned(),
        to: planned.to.name().to_owned(),
        version: planned.version,
        is_allowed: planned.is_allowed,
    }
}

/// An upgrade as it is planned, or would be.
pub(super) fn upgrade(prospect: Prospect) -> UpgradeDatabaseResponse {
    UpgradeDatabaseResponse {
        from: prospect.from.to_string(),
        to: prospect.to.to_string(),
        programs: prospect.bin_dir.display().to_string(),
        database_bytes: prospect.database_bytes,
        needed_bytes: prospect.needed_bytes,
        free_bytes: prospect.free_bytes,
        kept: prospect.kept.display().to_string(),
        removed_bytes: 0,
    }
}

/// Nothing is asked of an upgrade.
pub(super) fn no_act() -> ServiceError {
    ServiceError::invalid("act", "it says what is asked of the upgrade, and says nothing")
}

/// What a rotation did.
pub(super) fn rotated(rotated: Rotated) -> RotateDatabaseResponse {
    let texts = |names: Vec<&'static str>| names.into_iter().map(str::to_owned).collect();
    RotateDatabaseResponse {
        roles: texts(rotated.roles),
        left_out: texts(rotated.left_out),
        duration_ms: u64::try_from(rotated.took.as_millis()).unwrap_or(u64::MAX),
    }
}

fn finding(finding: Finding) -> pb::Finding {
    let (status, reason) = match finding.status {
        Verdict::Pass => ("pass", ""),
        Verdict::Fail => ("fail", ""),
        Verdict::Warn => ("warn", ""),
        Verdict::NotApplicable { reason } => ("not-applicable", reason),
    };
    pb::Finding {
        item: finding.item.to_owned(),
        title: finding.title.to_owned(),
        status: status.to_owned(),
        observed: finding.observed,
        expected: finding.expected,
        reason: reason.to_owned(),
    }
}
