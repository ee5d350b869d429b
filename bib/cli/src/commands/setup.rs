//! `bib setup`: from nothing to "you are ada on node X" in one go.

use bib_client::Target;
use clap::Args;

use super::connect::{NodeRow, greet};
use super::login::{WhoRow, sign_in};
use crate::context::Context;
use crate::discover::{FoundRow, discover};
use crate::errors::{Failure, Result};
use crate::output::record;
use crate::trusting::FirstUseArgs;

/// Finds a node, trusts it, logs in and remembers it
///
/// The node is that of `--node`, else this machine's, else one that tells the local network of itself: the one with
/// `--fingerprint`, or the one you choose.
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
            Err(failure) if context.node.is_none() && context.config.given("connection.default_node").is_none() => {
                self.find_node(&context, failure).await?
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

    /// A node of the local network. It is trusted no more for having told of itself.
    async fn find_node(&self, context: &Context, reason: Failure) -> Result<Target> {
        context.output.note("No node runs on this machine; listening for nodes of the local network.");
        let mut found = discover().await?;
        if let Some(fingerprint) = self.first_use.fingerprint {
            found.retain(|node| node.ca_fingerprint == fingerprint.to_string());
        }
        match (found.as_slice(), context.asker.is_interactive()) {
            // Whoever answers, of whoever calls: that would be nobody's choice.
            ([only], false) if !self.first_use.accept_new => context.parse_target(&only.address),
            ([], false) => Err(reason),
            (several, false) => {
                let addresses: Vec<&str> = several.iter().map(|node| node.address.as_str()).collect();
                Err(Failure::usage(format!("nobody said which node: {}", addresses.join(", ")))
                    .with_hint("name one with `--node`, or say which with `--fingerprint`"))
            }
            (nodes, true) => ask_for_node(context, nodes),
        }
    }
}

fn ask_for_node(context: &Context, nodes: &[FoundRow]) -> Result<Target> {
    for (number, node) in (1..).zip(nodes) {
        context.output.say(&format!("  {number}  {}  {}", node.address, node.node));
    }
    let chosen = |text: &str| {
        let number = text.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
        number.and_then(|index| nodes.get(index)).map_or_else(|| text.to_owned(), |node| node.address.clone())
    };
    let question =
        if nodes.is_empty() { "Address of your node (HOST:PORT)" } else { "Number or HOST:PORT of your node" };
    let check = |text: &str| {
        context
            .parse_target(&chosen(text))
            .map(|_| ())
            .map_err(|_| "write a number of the list, or HOST:PORT".to_owned())
    };
    let answer = context.asker.ask(question, check)?;
    context.parse_target(&chosen(&answer))
}
