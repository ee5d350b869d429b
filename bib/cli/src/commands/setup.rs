//! `bib setup`: from nothing to "you are ada on node X" in one go.

use bib_client::Target;
use clap::Args;

use super::connect::{NodeRow, greet};
use super::login::{WhoRow, sign_in};
use crate::context::Context;
use crate::errors::{Failure, Result};
use crate::output::record;
use crate::trusting::FirstUseArgs;

/// Finds a node, trusts it, logs in and remembers it
///
/// The node is that of `--node`, else this machine's, else the answer to a question.
#[derive(Debug, Args)]
pub(crate) struct Setup {
    #[command(flatten)]
    first_use: FirstUseArgs,
}

record! {
    /// What is set up.
    SetupRow { node: String = Text, address: String = Text, user: String = Text, role: String = Text, via: String = Text, config: String = Text }
}

impl Setup {
    /// Runs the command.
    pub(crate) async fn run(self, mut context: Context) -> Result<()> {
        let target = match context.target() {
            Ok(target) => target,
            Err(failure) if context.node.is_none() && context.asker.is_interactive() => {
                ask_for_node(&context, failure)?
            }
            Err(failure) => return Err(failure),
        };
        let client = context.client_of(target.clone(), &self.first_use).await?;
        let node = greet(&client).await?;
        if matches!(target, Target::Tls { .. }) {
            if !client.is_logged_in() {
                sign_in(&context, &client).await?;
            }
            context.config.store("connection.default_node", &target.address())?;
        }
        let who = WhoRow::from(client.auth().who_am_i().await?);
        let NodeRow { node, address, .. } = node;
        let config = context.config.path().display().to_string();
        context.output.one(&SetupRow { node, address, user: who.user, role: who.role, via: who.via, config })?;
        context.output.note("next: bib dataset publish FOLDER topic/name -m \"first version\" --license CC-BY-4.0");
        Ok(())
    }
}

fn ask_for_node(context: &Context, reason: Failure) -> Result<Target> {
    if !context.config.text("connection.default_node").is_empty() {
        return Err(reason);
    }
    context.output.say("No node runs on this machine.");
    let check = |text: &str| context.parse_target(text).map(|_| ()).map_err(|_| "write HOST:PORT".to_owned());
    let address = context.asker.ask("Address of your node (HOST:PORT)", check)?;
    context.parse_target(&address)
}
