//! What a `Cluster` of CloudNativePG says of itself: a function of the object. Names and words are those of the operator's
//! API `postgresql.cnpg.io/v1`, compared with its sources.

use serde_json::Value;

use super::manifests::HIBERNATION;
use crate::role::ADMIN;

/// From here on the operator does nothing by itself any more.
const UNRECOVERABLE: &str = "Cluster is in an unrecoverable state, needs manual intervention";

/// A `Cluster` as its operator sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Operated {
    /// Which object it is: one that is made anew under the same name is another one.
    pub(crate) uid: Option<String>,
    /// What the operator does, in its words; nothing where it has not looked at the object yet.
    pub(crate) phase: Option<String>,
    reason: String,
    /// The pod that writes.
    pub(crate) primary: Option<String>,
    /// Pods that are ready.
    ready: u64,
    /// Whether it is to have no pods.
    pub(crate) is_hibernated: bool,
    /// PostgreSQL's name of the cluster, as the instances say it.
    pub(crate) system_id: Option<u64>,
    /// Why the superuser cannot be made, if the operator says so.
    pub(crate) superuser: Option<String>,
}

impl Operated {
    /// Reads the object.
    pub(crate) fn of(cluster: &Value) -> Self {
        let status = &cluster["status"];
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let refused = status["managedRolesStatus"]["cannotReconcile"][ADMIN].as_array();
        let refused = refused.map(|all| all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("; "));
        Self {
            uid: text(&cluster["metadata"]["uid"]),
            phase: text(&status["phase"]),
            reason: text(&status["phaseReason"]).unwrap_or_default(),
            primary: text(&status["currentPrimary"]),
            ready: status["readyInstances"].as_u64().unwrap_or_default(),
            is_hibernated: cluster["metadata"]["annotations"][HIBERNATION] == "on",
            system_id: status["systemID"].as_str().and_then(|text| text.parse().ok()),
            superuser: refused.filter(|text| !text.is_empty()),
        }
    }

    /// Whether a pod writes and one is ready. What else the operator does meanwhile, such as making another one that
    /// follows, holds nobody up.
    pub(crate) fn is_up(&self) -> bool {
        self.primary.is_some() && self.ready > 0 && !self.is_hibernated
    }

    /// Whether waiting does not help.
    pub(crate) fn is_final(&self) -> bool {
        self.phase.as_deref() == Some(UNRECOVERABLE)
    }

    /// What the operator says, as part of a sentence.
    pub(crate) fn said(&self) -> String {
        let Some(phase) = &self.phase else { return "its operator has said nothing about it".to_owned() };
        let mut said = format!("its operator says \"{phase}\"");
        if !self.reason.is_empty() {
            said.push_str(": ");
            said.push_str(self.reason.trim_end_matches('.'));
        }
        if let Some(why) = &self.superuser {
            said.push_str(&format!("; it cannot make the role {ADMIN}: {why}"));
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_state_of_a_cluster_is_a_sentence() {
        let new = json!({ "metadata": { "annotations": { "cnpg.io/hibernation": "off" } } });
        let seen = Operated::of(&new);
        assert!(!seen.is_up() && !seen.is_final() && !seen.is_hibernated);
        assert_eq!(seen.said(), "its operator has said nothing about it");

        let mut healthy = json!({ "metadata": {}, "status": { "phase": "Cluster in healthy state", "currentPrimary": "p-2",
            "readyInstances": 3, "systemID": "7300000000000000001" } });
        let seen = Operated::of(&healthy);
        assert!(seen.is_up() && seen.primary.as_deref() == Some("p-2"));
        assert_eq!(
            (seen.system_id, seen.said()),
            (Some(7_300_000_000_000_000_001), "its operator says \"Cluster in healthy state\"".into())
        );
        // A status is as old as the operator's last look.
        healthy["metadata"]["annotations"] = json!({ "cnpg.io/hibernation": "on" });
        assert!(!Operated::of(&healthy).is_up());

        let lost =
            json!({ "status": { "phase": UNRECOVERABLE, "phaseReason": "no PersistentVolumeClaims (PVCs) exist." } });
        let seen = Operated::of(&lost);
        assert!(seen.is_final() && !seen.is_up());
        let expected = format!("its operator says \"{UNRECOVERABLE}\": no PersistentVolumeClaims (PVCs) exist");
        assert_eq!(seen.said(), expected);

        let refused = json!({ "status": { "phase": "Setting up primary",
            "managedRolesStatus": { "cannotReconcile": { "bibd_admin": ["wrong username", "x"] } } } });
        let expected =
            "its operator says \"Setting up primary\"; it cannot make the role bibd_admin: wrong username; x";
        assert_eq!(Operated::of(&refused).said(), expected);
    }
}
