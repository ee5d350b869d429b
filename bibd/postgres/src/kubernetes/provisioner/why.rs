//! What a pod's own state says about why it is not up: a function of the object and of what was noted about it.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod};

use crate::kubernetes::names::{CONTAINER, INIT};
use crate::kubernetes::operations::Lines;

/// A server that ended so often while it was waited for does not come up by being waited for.
const HOPELESS_RESTARTS: i32 = 2;

const IMAGE_HINT: &str = "let the cluster's nodes fetch it: database.kubernetes.image, digest, registry_logins";
const PLACE_HINT: &str = "`kubectl describe pod` lists what each node lacks; see database.kubernetes";
const VOLUME_HINT: &str = "give the pod its volume back, or restore a backup; BIB never starts empty over a database \
                           that existed";
const SERVER_HINT: &str = "its log tells more: kubectl logs, with --previous for the one before";
const WAIT_HINT: &str = "`kubectl describe pod` tells more; a start that takes its time needs database.start_timeout";

/// Why it is not up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Why {
    /// In one sentence.
    pub(super) reason: String,
    /// What a person can do about it.
    pub(super) hint: &'static str,
    /// Whether waiting does not help.
    pub(super) is_final: bool,
    /// Whose log tells more.
    pub(super) log: Option<&'static str>,
}

impl Why {
    fn passing(reason: String, hint: &'static str) -> Self {
        Self { reason, hint, is_final: false, log: None }
    }
}

/// Which of a container's logs tells of its end: that of the one before, once it was begun again.
pub(super) fn lines_of(pod: Option<&Pod>, container: &str) -> Lines {
    let status = pod.and_then(|pod| container_of(pod, container));
    let runs = status.and_then(|status| status.state.as_ref()).is_some_and(|state| state.terminated.is_none());
    if runs && status.is_some_and(|status| status.restart_count > 0) { Lines::Previous } else { Lines::Last }
}

/// Why `pod` is not up, as far as it says. `warnings` were noted about it or about what makes it, the latest last.
pub(super) fn why(pod: Option<&Pod>, warnings: &[String]) -> Why {
    let noted = || warnings.last().map_or_else(String::new, |warning| format!(" ({warning})"));
    let Some(pod) = pod else {
        return Why::passing(format!("the cluster has made no pod{}", noted()), WAIT_HINT);
    };
    if pod.metadata.deletion_timestamp.is_some() {
        return Why::passing("it is being ended by the cluster".to_owned(), WAIT_HINT);
    }
    for name in [INIT, CONTAINER] {
        if let Some(why) = container_of(pod, name).and_then(|status| of_container(name, status)) {
            return why;
        }
    }
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let unplaced = conditions.into_iter().flatten().find(|one| one.type_ == "PodScheduled" && one.status == "False");
    if let Some(condition) = unplaced {
        let (reason, message) = (condition.reason.as_deref(), condition.message.as_deref());
        let text = format!("no node takes it: {}: {}", reason.unwrap_or("Unschedulable"), message.unwrap_or_default());
        return Why::passing(text, PLACE_HINT);
    }
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("unknown");
    let mut why = Why::passing(format!("it is {phase} and takes no connections{}", noted()), WAIT_HINT);
    why.log = container_of(pod, CONTAINER).is_some().then_some(CONTAINER);
    why
}

/// What keeps a container from running; nothing where it runs, or has not been tried.
fn of_container(name: &'static str, status: &ContainerStatus) -> Option<Why> {
    let state = status.state.as_ref()?;
    let ended = state.terminated.as_ref().or_else(|| last_end(status)).filter(|end| end.exit_code != 0);
    let is_init = name == INIT;
    if let Some(end) = ended.filter(|_| state.running.is_none()) {
        let said = last_words(end);
        let mut reason = if is_init { "it makes no database".to_owned() } else { "the server ended".to_owned() };
        reason.push_str(&format!(" (exit code {}", end.exit_code));
        // `Error` says nothing; `OOMKilled` does.
        if let Some(more) = end.reason.as_deref().filter(|reason| *reason != "Error") {
            reason.push_str(&format!(", {more}"));
        }
        reason.push(')');
        if !said.is_empty() {
            reason.push_str(&format!(": {said}"));
        }
        let is_final = is_init || status.restart_count >= HOPELESS_RESTARTS;
        let hint = if is_init && said.contains("volume") { VOLUME_HINT } else { SERVER_HINT };
        return Some(Why { reason, hint, is_final, log: Some(name) });
    }
    let waiting = state.waiting.as_ref()?;
    let why = waiting.reason.as_deref().unwrap_or_default();
    if why.is_empty() || why == "PodInitializing" || why == "ContainerCreating" {
        return None;
    }
    let message = waiting.message.as_deref().unwrap_or_default();
    let hint = if why.contains("Image") { IMAGE_HINT } else { WAIT_HINT };
    Some(Why::passing(format!("{why}: {message}"), hint))
}

/// The container's status, whichever kind it is of.
pub(super) fn container_of<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    all.into_iter().find(|one| one.name == name)
}

/// How the container ended before the one that runs or waits now.
pub(super) fn last_end(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.last_state.as_ref().and_then(|state| state.terminated.as_ref())
}

/// How the container ended that is no more.
pub(super) fn ended(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.state.as_ref().and_then(|state: &ContainerState| state.terminated.as_ref())
}

/// The last line of what it left behind.
pub(super) fn last_words(end: &ContainerStateTerminated) -> &str {
    end.message.as_deref().unwrap_or_default().trim().lines().last().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": "p-0" }, "status": status })).unwrap()
    }

    fn told(status: Value) -> (String, bool) {
        let why = why(Some(&pod(status)), &["FailedMount: no such volume".to_owned()]);
        assert!(!why.hint.is_empty());
        (why.reason, why.is_final)
    }

    #[test]
    fn each_reason_is_a_sentence() {
        let unplaced = json!({ "phase": "Pending", "conditions": [{ "type": "PodScheduled", "status": "False",
            "reason": "Unschedulable", "message": "0/3 nodes are available: 3 Insufficient memory." }] });
        let expected = "no node takes it: Unschedulable: 0/3 nodes are available: 3 Insufficient memory.";
        assert_eq!(told(unplaced), (expected.to_owned(), false));

        let status = |name: &str, state: Value, last: Value, restarts: i32| {
            json!({ "name": name, "image": "i", "imageID": "", "ready": false, "restartCount": restarts,
                    "state": state, "lastState": last })
        };
        let image = json!({ "waiting": { "reason": "ErrImagePull", "message": "manifest unknown" } });
        let image = json!({ "phase": "Pending", "initContainerStatuses": [status(INIT, image, json!({}), 0)] });
        assert_eq!(told(image), ("ErrImagePull: manifest unknown".to_owned(), false));

        let refused = json!({ "terminated": { "exitCode": 1, "reason": "Error",
                                              "message": "x\nthe volume is empty, expected cluster 7\n" } });
        let again = json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off" } });
        let expected = "it makes no database (exit code 1): the volume is empty, expected cluster 7";
        for (state, last) in [(refused.clone(), json!({})), (again.clone(), refused)] {
            let found = told(json!({ "initContainerStatuses": [status(INIT, state, last, 1)] }));
            assert_eq!(found, (expected.to_owned(), true));
        }

        let killed = json!({ "terminated": { "exitCode": 137, "reason": "OOMKilled" } });
        for (restarts, hopeless) in [(1, false), (2, true)] {
            let found =
                told(json!({ "containerStatuses": [status(CONTAINER, again.clone(), killed.clone(), restarts)] }));
            assert_eq!(found, ("the server ended (exit code 137, OOMKilled)".to_owned(), hopeless));
        }
        let creating = json!({ "waiting": { "reason": "ContainerCreating" } });
        let creating = json!({ "phase": "Pending", "containerStatuses": [status(CONTAINER, creating, json!({}), 0)] });
        let expected = "it is Pending and takes no connections (FailedMount: no such volume)";
        assert_eq!(told(creating), (expected.to_owned(), false));
        assert_eq!(why(None, &[]).reason, "the cluster has made no pod");
    }
}
