//! What bibd itself may do, and that the database's pod may do nothing.
//!
//! Kubernetes cannot limit `create` to a name: what may be created in the namespace may be created under any name, and
//! who may create a StatefulSet runs what it likes there. So bibd gets a namespace in which nothing else lies.

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::kubernetes::names::labels;
use crate::kubernetes::settings::{KubernetesSettings, Mode};

const RBAC: &str = "rbac.authorization.k8s.io";

/// The pod's account: it has no rights, and no token of it is in the pod.
pub(super) fn account(settings: &KubernetesSettings) -> ServiceAccount {
    ServiceAccount {
        metadata: settings.meta(&settings.name),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// bibd's account. Its pod asks for the token by itself.
pub(super) fn own_account(settings: &KubernetesSettings) -> ServiceAccount {
    ServiceAccount {
        metadata: own_meta(settings, settings.service_account.clone()),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// What bibd may do, in its namespace alone.
pub(super) fn role(settings: &KubernetesSettings) -> Role {
    let name = &settings.name;
    let outside = settings.outside_service();
    let rule = |group: &str, resources: &[&str], names: &[&str], verbs: &[&str]| PolicyRule {
        api_groups: Some(vec![group.to_owned()]),
        resources: Some(owned(resources)),
        resource_names: (!names.is_empty()).then(|| owned(names)),
        verbs: owned(verbs),
        non_resource_urls: None,
    };
    let own = ["get", "patch", "delete"];
    let watched = ["get", "list", "watch", "patch", "delete"];
    let mut rules = vec![
        rule("networking.k8s.io", &["networkpolicies"], &[], &["create"]),
        rule("networking.k8s.io", &["networkpolicies"], &[name], &own),
        // Why a pod does not come up.
        rule("", &["events"], &[], &["list"]),
    ];
    let mut services = Vec::new();
    if !settings.outside.is_empty() {
        services.push(outside.as_str());
    }
    match settings.mode {
        Mode::StatefulSet => {
            services.push(name);
            let (pod, claim) = (settings.pod(), settings.claim());
            rules.extend([
                rule("", &["configmaps", "secrets", "serviceaccounts"], &[], &["create"]),
                rule("", &["configmaps", "secrets", "serviceaccounts"], &[name], &own),
                rule("policy", &["poddisruptionbudgets"], &[], &["create"]),
                rule("policy", &["poddisruptionbudgets"], &[name], &own),
                rule("apps", &["statefulsets"], &[], &["create"]),
                rule("apps", &["statefulsets"], &[name], &watched),
                // One that hangs is ended at once.
                rule("", &["pods"], &[&pod], &["get", "list", "watch", "delete"]),
                rule("", &["pods/log"], &[&pod], &["get"]),
                rule("", &["persistentvolumeclaims"], &[&claim], &["get", "delete"]),
            ]);
        }
        Mode::Operator => {
            let secrets = super::operator::secret_names(settings);
            let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
            rules.extend([
                rule("", &["secrets"], &[], &["create"]),
                rule("", &["secrets"], &secrets, &own),
                rule(super::operator::GROUP, &["clusters"], &[], &["create"]),
                rule(super::operator::GROUP, &["clusters"], &[name], &watched),
                // Their names count on with each failover. Volumes go with their `Cluster`.
                rule("", &["pods"], &[], &["get", "list"]),
                rule("", &["pods/log"], &[], &["get"]),
                rule("", &["persistentvolumeclaims"], &[], &["list"]),
            ]);
        }
    }
    if !services.is_empty() {
        rules.push(rule("", &["services"], &[], &["create"]));
        rules.push(rule("", &["services"], &services, &own));
    }
    Role { metadata: own_meta(settings, role_name(settings)), rules: Some(rules) }
}

/// Gives bibd's account that role.
pub(super) fn binding(settings: &KubernetesSettings) -> RoleBinding {
    RoleBinding {
        metadata: own_meta(settings, role_name(settings)),
        role_ref: RoleRef { api_group: RBAC.to_owned(), kind: "Role".to_owned(), name: role_name(settings) },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: settings.service_account.clone(),
            namespace: Some(settings.namespace.clone()),
            api_group: None,
        }]),
    }
}

/// The head of an object that a person applies, not bibd.
pub(super) fn own_meta(settings: &KubernetesSettings, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(settings.namespace.clone()),
        labels: Some(labels(&[("app.kubernetes.io/name", "bibd"), ("app.kubernetes.io/part-of", "bib")])),
        ..ObjectMeta::default()
    }
}

fn role_name(settings: &KubernetesSettings) -> String {
    format!("{}-{}", settings.service_account, settings.name)
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
