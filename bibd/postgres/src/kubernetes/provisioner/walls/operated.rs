//! The same where an operator makes the pods. What it keeps is said to be its own; what it was told, and what its pods are
//! to be seen as, is checked.

use serde_json::Value;

use super::{CLOSED, Findings, UNSEEN_PORTS, holds, of_container};
use crate::checklist::Facts;
use crate::config::{CONF, HBA};
use crate::error::Error;
use crate::kubernetes::manifests::Manifest;
use crate::kubernetes::provisioner::KubernetesPostgres;

const UNSEEN: &str = "not checked: nobody but the operator enters its pods and writes the files there";
const VERIFIER_STAYS: &str =
    "the operator reads the superuser's verifier from a Secret for as long as there is the database";
/// What of a `Cluster` decides who comes in, as whom, into what.
const DECISIVE: [&str; 6] =
    ["postgresql", "certificates", "managed", "enableSuperuserAccess", "imageName", "seccompProfile"];

impl KubernetesPostgres {
    pub(super) async fn look_at_operated_walls(&self) -> Result<Facts, Error> {
        self.record()?.ok_or(Error::NotProvisioned)?;
        let pod = self.look().await?;
        let name = self.name_of(pod.as_ref());
        let pod = serde_json::to_value(pod).unwrap_or_default();
        let live = self.live_objects(None).await?;
        let mut findings = Findings::default();
        findings.unseen("C.1-6", "configuration private", UNSEEN);
        findings.unseen("C.1-7", "files for nobody else", UNSEEN);
        findings.unseen("C.1-8", "nothing strange in PGDATA", UNSEEN);
        findings.unseen("C.1-9", "password file gone", VERIFIER_STAYS);
        findings.unseen("C.2-11", "no other TCP", UNSEEN_PORTS);
        self.of_log(&name, &mut findings).await?;
        of_container(&pod, false, &mut findings);
        findings.none("C.5-54", "no secret outside", self.secrets_in(&pod)?, "nothing secret in the pod's object");
        of_operator(&live, &mut findings);
        self.of_network(&pod, &mut findings).await;
        Ok(Facts::told(self.config(), differences(&live), Vec::new(), findings.0).of_operator())
    }
}

/// Which of the server's files are made from something else than the operator was to be told.
fn differences(live: &[(Manifest, Value)]) -> Vec<String> {
    let Some((wanted, found)) = live.iter().find(|(manifest, _)| manifest.kind() == "Cluster") else {
        return Vec::new();
    };
    let differs = |name: &str| {
        let place = format!("/spec/postgresql/{name}");
        let [is, wanted] = [found, wanted.value()].map(|object| object.pointer(&place).unwrap_or(&Value::Null));
        !holds(is, wanted)
    };
    let files = [("parameters", CONF), ("pg_hba", HBA)];
    files.into_iter().filter(|(name, _)| differs(name)).map(|(_, file)| file.to_owned()).collect()
}

/// C.5-56: what the operator and the network were told.
fn of_operator(live: &[(Manifest, Value)], findings: &mut Findings) {
    let mut problems = Vec::new();
    for (wanted, found) in live {
        let differs = |field: &str| !holds(&found["spec"][field], &wanted.value()["spec"][field]);
        let fields: Vec<&str> = match wanted.kind() {
            "NetworkPolicy" if !holds(&found["spec"], &wanted.value()["spec"]) => vec!["spec"],
            "Cluster" => DECISIVE.into_iter().filter(|field| differs(field)).collect(),
            _ => Vec::new(),
        };
        if !fields.is_empty() {
            let (kind, name) = (wanted.kind(), wanted.name());
            problems.push(format!("{kind} `{name}` is not the generated one ({})", fields.join(", ")));
        }
    }
    let expected = "default deny but for bibd, the operator and its own; the Cluster as it was applied. The budget, the \
                    pods' token and the key's files are the operator's";
    findings.none(CLOSED.0, CLOSED.1, problems, expected);
}
