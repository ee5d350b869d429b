//! `bib dataset cite`.

use bib_core::citation;
use clap::{Args, ValueEnum};

use super::check_version_reference;
use super::citable::citable;
use crate::context::Context;
use crate::errors::Result;

/// Prints how to cite a version; `-o` plays no part
#[derive(Debug, Args)]
pub(crate) struct Cite {
    /// topic/name[@VERSION]
    reference: String,
    /// text, bibtex or cff
    #[arg(long, value_enum, default_value = "text")]
    format: Style,
}

/// Forms of a citation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Style {
    Text,
    Bibtex,
    Cff,
}

impl Cite {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        check_version_reference(&self.reference)?;
        let version = context.client().await?.datasets().version(&self.reference).await?;
        let citable = citable(&version)?;
        context.output.text(&match self.format {
            Style::Text => citation::text(&citable),
            Style::Bibtex => citation::bibtex(&citable),
            Style::Cff => citation::cff(&citable),
        })
    }
}
