//! `bib admin break-glass`: the database is opened to a person for a while, and everything is recorded.

mod connect;
mod prompt;
mod report;

use std::time::Duration;

use bib_client::api::Wish;
use bib_client::pb;
use bib_core::access::GlassAccess;
use clap::{Args, Subcommand};
use futures::TryStreamExt as _;

use crate::context::Context;
use crate::errors::{Failure, Result};
use crate::output::{Format, record};
use crate::units::{format_millis, parse_duration};

/// The database opened to a person, recorded.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Opens the database to you for a while, confirmed with a key that the node's configuration names (`--key`)
    Enable(Enable),
    /// Opens `psql` on the database, or a prompt of `bib` where there is none; everything is recorded by the node
    Connect(connect::Connect),
    /// Shows what the configuration allows and the grant that is open
    Status,
    /// Ends the open grant and cuts its sessions
    Disable {
        /// Which, when it must be this one
        grant: Option<String>,
    },
    /// Shows sessions, newest first
    Sessions {
        /// Only those of this grant
        #[arg(long, value_name = "GRANT")]
        grant: Option<String>,
    },
    /// Prints the recording of a session as JSON lines, or for a terminal
    Show {
        /// Which, as `sessions` shows it
        session: String,
        /// In the form of asciicast v2: `bib admin break-glass show ID --cast > it.cast; asciinema play it.cast`
        #[arg(long)]
        cast: bool,
    },
    /// Says what you found when you looked at what was done; the next grant may have to wait for this
    Review {
        /// Which; the oldest that waits for a review when missing
        grant: Option<String>,
        /// What you found
        #[arg(long)]
        note: String,
    },
    /// Shows what a grant came to: who, why, every statement, and what is not as it was. `-o markdown` and `-o json`
    Report {
        /// Which; the newest that has ended when missing
        grant: Option<String>,
    },
}

/// What is asked for.
#[derive(Debug, Args)]
pub(crate) struct Enable {
    /// Why: stands in the audit log, in the report, and in what you sign
    #[arg(long)]
    reason: String,
    /// For how long: 30s, 15m, 1h
    #[arg(long, value_parser = parse_duration)]
    duration: Duration,
    /// What for: `readonly`, or `readwrite` where the configuration allows it
    #[arg(long, default_value = "readonly", value_parser = parse_access)]
    access: GlassAccess,
}

fn parse_access(text: &str) -> Result<GlassAccess, String> {
    text.parse::<GlassAccess>().map_err(|error| error.to_string())
}

record! {
    /// A grant.
    GrantRow {
        grant: String = Text listed, state: String = Text listed, user: String = Text listed, reason: String = Text listed,
        access: String = Text, key_name: String = Text, key: String = Person, created_at: String = Time,
        expires_at: String = Time listed, remaining_ms: u64 = Millis, ended_at: String = Time, end_reason: String = Text,
        sessions: u32 = Text, statements: u64 = Text, reviewed_at: String = Time, reviewed_by: String = Text,
        review: String = Text,
    }
}

record! {
    /// What is allowed, and what is open.
    GlassStatusRow {
        enabled: bool = Text, max_duration_ms: u64 = Millis, access: String = Text, audit_level: String = Text,
        require_review: bool = Text, keys: Vec<String> = Lined, grant: String = Text, state: String = Text,
        user: String = Text, reason: String = Text, expires_at: String = Time, remaining_ms: u64 = Millis,
        unreviewed: Vec<String> = Lined,
    }
}

record! {
    /// A session.
    GlassSessionRow {
        session: String = Text listed, grant: String = Text, user: String = Text listed, application: String = Text listed,
        started_at: String = Time listed, ended_at: String = Time, end_reason: String = Text listed,
        statements: u64 = Text listed, in_bytes: u64 = Bytes, out_bytes: u64 = Bytes, recording_sha256: String = Hash,
    }
}

impl Command {
    /// Whether the command prints in a format of its own.
    pub(crate) fn knows(&self, format: Format) -> bool {
        matches!((self, format), (Self::Report { .. }, Format::Markdown))
    }

    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        let glass = context.client().await?.break_glass();
        match self {
            Self::Enable(wanted) => {
                let wish = Wish { reason: wanted.reason, duration: wanted.duration, access: wanted.access };
                if wish.duration.subsec_nanos() != 0 {
                    return Err(Failure::usage("a grant lasts whole seconds"));
                }
                let grant = glass.enable(&wish).await?;
                let note = format!(
                    "open for {}; next: bib admin break-glass connect",
                    format_millis(grant.remaining_seconds.saturating_mul(1_000))
                );
                context.output.one(&GrantRow::from(grant))?;
                context.output.note(&note);
                Ok(())
            }
            Self::Connect(connect) => connect.run(context, &glass).await,
            Self::Status => context.output.one(&GlassStatusRow::from(glass.status().await?)),
            Self::Disable { grant } => {
                let ended = glass.disable(&grant.unwrap_or_default()).await?;
                let note = format!("next: bib admin break-glass report {}", ended.grant_id);
                context.output.one(&GrantRow::from(ended))?;
                context.output.note(&note);
                Ok(())
            }
            Self::Sessions { grant } => {
                let mut list = context.output.list();
                let mut sessions = glass.sessions(&grant.unwrap_or_default());
                while let Some(session) = sessions.try_next().await? {
                    list.push(&GlassSessionRow::from(session))?;
                }
                list.finish("no sessions")?;
                Ok(())
            }
            Self::Show { session, cast } => {
                let mut pieces = glass.show(&session, if cast { "cast" } else { "jsonl" }).await?;
                while let Some(piece) = pieces.try_next().await? {
                    context.output.bytes(&piece.data)?;
                }
                context.output.flush()
            }
            Self::Review { grant, note } => {
                let reviewed = glass.review(&grant.unwrap_or_default(), &note).await?;
                context.output.one(&GrantRow::from(reviewed))
            }
            Self::Report { grant } => report::print(context, &glass.report(&grant.unwrap_or_default()).await?),
        }
    }
}

impl From<pb::BreakGlassGrant> for GrantRow {
    fn from(grant: pb::BreakGlassGrant) -> Self {
        Self {
            grant: grant.grant_id,
            state: grant.state,
            user: grant.user,
            reason: grant.reason,
            access: grant.access,
            key_name: grant.key_name,
            key: grant.key_fingerprint,
            created_at: grant.created_at,
            expires_at: grant.expires_at,
            remaining_ms: grant.remaining_seconds.saturating_mul(1_000),
            ended_at: grant.ended_at,
            end_reason: grant.end_reason,
            sessions: grant.sessions,
            statements: grant.statements,
            reviewed_at: grant.reviewed_at,
            reviewed_by: grant.reviewed_by,
            review: grant.review,
        }
    }
}

impl From<pb::GetBreakGlassStatusResponse> for GlassStatusRow {
    fn from(status: pb::GetBreakGlassStatusResponse) -> Self {
        let grant = status.grant.unwrap_or_default();
        Self {
            enabled: status.enabled,
            max_duration_ms: status.max_duration_seconds.saturating_mul(1_000),
            access: status.access,
            audit_level: status.audit_level,
            require_review: status.require_review,
            keys: status.keys.into_iter().map(|key| format!("{} {}", key.fingerprint, key.name)).collect(),
            grant: grant.grant_id,
            state: grant.state,
            user: grant.user,
            reason: grant.reason,
            expires_at: grant.expires_at,
            remaining_ms: grant.remaining_seconds.saturating_mul(1_000),
            unreviewed: status.unreviewed,
        }
    }
}

impl From<pb::BreakGlassSession> for GlassSessionRow {
    fn from(session: pb::BreakGlassSession) -> Self {
        Self {
            session: session.session_id,
            grant: session.grant_id,
            user: session.user,
            application: session.application,
            started_at: session.started_at,
            ended_at: session.ended_at,
            end_reason: session.end_reason,
            statements: session.statements,
            in_bytes: session.bytes_in,
            out_bytes: session.bytes_out,
            recording_sha256: session.recording_sha256,
        }
    }
}
