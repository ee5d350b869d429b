//! Operator mode: a `Cluster` of CloudNativePG, which makes pods, volumes, failover and its own budget out of it.
//!
//! The operator keeps some settings for itself and refuses an object that names them: those are left out here, and the
//! rest of ours is given. Its own superuser `postgres` has no password and is let in from nowhere outside of the pod;
//! bibd's is made beside it, from a Secret that holds a verifier.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{ByteString, api::core::v1::LocalObjectReference, api::core::v1::ResourceRequirements};
use serde::Serialize;

use crate::kubernetes::names::{VERIFIER, labels};
use crate::kubernetes::settings::KubernetesSettings;
use crate::role::{ADMIN, DATABASE, OWNER};
use crate::tcp::{CA_FILE, CERTIFICATE_FILE, KEY_FILE};

use super::{Content, pod};

/// The operator's API.
pub(crate) const GROUP: &str = "postgresql.cnpg.io";
/// The replica's certificate and its key, for the operator's role of that name.
pub const REPLICATION_CERTIFICATE: &str = "replication.crt";
/// Its key.
pub const REPLICATION_KEY: &str = "replication.key";
/// With this annotation a `Cluster` has no pods, and keeps its volumes: `on`.
pub(crate) const HIBERNATION: &str = "cnpg.io/hibernation";
/// The key of the superuser's verifier in its Secret.
pub(crate) const PASSWORD: &str = "password";
/// The operator puts its own program, the server's socket and a spool into the volume for what is temporary, on the
/// node's disk: a pod that needs more is evicted.
const MANAGER_BYTES: u64 = 1 << 30;
/// With this label the operator notices that a Secret changed.
const RELOAD: &str = "cnpg.io/reload";

/// Settings that the operator sets itself; it refuses a `Cluster` that names one (its `FixedConfigurationParameters`,
/// of release 1.28).
pub const KEPT_BY_OPERATOR: [&str; 70] = [
    "allow_alter_system",
    "allow_system_table_mods",
    "archive_cleanup_command",
    "archive_command",
    "archive_mode",
    "bonjour",
    "bonjour_name",
    "cluster_name",
    "config_file",
    "data_directory",
    "data_sync_retry",
    "event_source",
    "external_pid_file",
    "hba_file",
    "hot_standby",
    "ident_file",
    "jit_provider",
    "listen_addresses",
    "log_destination",
    "log_directory",
    "log_file_mode",
    "log_filename",
    "log_rotation_age",
    "log_rotation_size",
    "log_truncate_on_rotation",
    "logging_collector",
    "pg_failover_slots.primary_dsn",
    "pg_failover_slots.standby_slot_names",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restart_after_crash",
    "restore_command",
    "shared_preload_libraries",
    "ssl",
    "ssl_ca_file",
    "ssl_cert_file",
    "ssl_crl_file",
    "ssl_dh_params_file",
    "ssl_ecdh_curve",
    "ssl_key_file",
    "ssl_passphrase_command",
    "ssl_passphrase_command_supports_reload",
    "ssl_prefer_server_ciphers",
    "stats_temp_directory",
    "synchronized_standby_slots",
    "synchronous_standby_names",
    "syslog_facility",
    "syslog_ident",
    "syslog_sequence_numbers",
    "syslog_split_messages",
    "temp_tablespaces",
    "unix_socket_directories",
    "unix_socket_group",
    "unix_socket_permissions",
    // Not refused, but needed by the operator as it sets them.
    "max_replication_slots",
    "max_wal_senders",
    "wal_keep_size",
    "wal_level",
];

/// The object.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Cluster {
    api_version: &'static str,
    kind: &'static str,
    metadata: ObjectMeta,
    spec: ClusterSpec,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct ClusterSpec {
    instances: u32,
    image_name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    image_pull_secrets: Vec<LocalObjectReference>,
    enable_superuser_access: bool,
    #[serde(rename = "enablePDB")]
    enable_pdb: bool,
    primary_update_strategy: &'static str,
    stop_delay: u64,
    smart_shutdown_timeout: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority_class_name: Option<String>,
    seccomp_profile: k8s_openapi::api::core::v1::SeccompProfile,
    resources: ResourceRequirements,
    affinity: ClusterAffinity,
    storage: Storage,
    ephemeral_volumes_size_limit: Ephemeral,
    certificates: Certificates,
    bootstrap: Bootstrap,
    managed: Managed,
    postgresql: Postgresql,
    inherited_metadata: Inherited,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct ClusterAffinity {
    enable_pod_anti_affinity: bool,
    topology_key: &'static str,
    pod_anti_affinity_type: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    node_selector: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tolerations: Vec<Toleration>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Storage {
    size: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    storage_class: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ephemeral {
    shm: String,
    temporary_data: String,
}

#[derive(Debug, Clone, Serialize)]
struct Certificates {
    #[serde(rename = "serverCASecret")]
    server_ca: String,
    #[serde(rename = "serverTLSSecret")]
    server_tls: String,
    #[serde(rename = "clientCASecret")]
    client_ca: String,
    #[serde(rename = "replicationTLSSecret")]
    replication_tls: String,
}

#[derive(Debug, Clone, Serialize)]
struct Bootstrap {
    initdb: Initdb,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Initdb {
    database: &'static str,
    owner: &'static str,
    data_checksums: bool,
    encoding: &'static str,
    locale_collate: &'static str,
    #[serde(rename = "localeCType")]
    locale_ctype: &'static str,
}

#[derive(Debug, Clone, Serialize)]
struct Managed {
    roles: Vec<ManagedRole>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct ManagedRole {
    name: &'static str,
    ensure: &'static str,
    login: bool,
    superuser: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    password_secret: Option<LocalObjectReference>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    disable_password: bool,
}

#[derive(Debug, Clone, Serialize)]
struct Postgresql {
    parameters: BTreeMap<String, String>,
    #[serde(rename = "pg_hba")]
    hba: Vec<String>,
    #[serde(rename = "enableAlterSystem")]
    enable_alter_system: bool,
}

#[derive(Debug, Clone, Serialize)]
struct Inherited {
    labels: BTreeMap<String, String>,
}

/// The name of the Secret with the superuser's verifier.
pub(crate) fn admin_secret(settings: &KubernetesSettings) -> String {
    let [.., admin] = secret_names(settings);
    admin
}

/// The names of the Secrets, in the order of [`secrets`].
pub(super) fn secret_names(settings: &KubernetesSettings) -> [String; 5] {
    ["server-ca", "server-tls", "client-ca", "replication-tls", "admin"].map(|part| format!("{}-{part}", settings.name))
}

/// The Secrets that the operator reads; each with its content, once there is one.
pub(super) fn secrets(settings: &KubernetesSettings, content: &Content) -> Vec<Secret> {
    let [server_ca, server_tls, client_ca, replication_tls, admin] = secret_names(settings);
    let key = |name: &'static str, from: &str| content.secrets.get(from).map(|bytes| (name, bytes.clone()));
    let secret = |name: String, kind: &str, data: Vec<Option<(&str, Vec<u8>)>>| {
        let data: BTreeMap<String, ByteString> =
            data.into_iter().flatten().map(|(name, bytes)| (name.to_owned(), ByteString(bytes))).collect();
        let mut metadata = settings.meta(&name);
        metadata.labels.get_or_insert_default().extend(labels(&[(RELOAD, "")]));
        Secret { metadata, type_: Some(kind.to_owned()), data: (!data.is_empty()).then_some(data), ..Secret::default() }
    };
    let user = (!content.secrets.is_empty()).then(|| ("username", ADMIN.as_bytes().to_vec()));
    vec![
        secret(server_ca, "Opaque", vec![key("ca.crt", CA_FILE)]),
        secret(server_tls, "Opaque", vec![key("tls.crt", CERTIFICATE_FILE), key("tls.key", KEY_FILE)]),
        secret(client_ca, "Opaque", vec![key("ca.crt", CA_FILE)]),
        secret(
            replication_tls,
            "Opaque",
            vec![key("tls.crt", REPLICATION_CERTIFICATE), key("tls.key", REPLICATION_KEY)],
        ),
        secret(admin, "Opaque", vec![user, key(PASSWORD, VERIFIER)]),
    ]
}

/// The `Cluster` of `settings`. The instances follow `running`: a stopped one is hibernated, its volumes stay.
pub(super) fn cluster(settings: &KubernetesSettings, content: &Content) -> Cluster {
    let [server_ca, server_tls, client_ca, replication_tls, admin] = secret_names(settings);
    let stop_s = settings.stop_deadline.as_secs();
    let mut metadata = settings.meta(&settings.name);
    let hibernation = if content.running { "off" } else { "on" };
    metadata.annotations = Some(labels(&[(HIBERNATION, hibernation)]));
    metadata.uid = content.uid.clone();
    let parameters = content.settings.iter();
    let role = |name, password_secret: Option<LocalObjectReference>| ManagedRole {
        name,
        ensure: "present",
        login: password_secret.is_some(),
        superuser: password_secret.is_some(),
        disable_password: password_secret.is_none(),
        password_secret,
    };
    Cluster {
        api_version: "postgresql.cnpg.io/v1",
        kind: "Cluster",
        metadata,
        spec: ClusterSpec {
            instances: settings.instances,
            image_name: settings.pinned_image(),
            image_pull_secrets: pod::pull_secrets(settings),
            enable_superuser_access: false,
            enable_pdb: true,
            primary_update_strategy: "unsupervised",
            stop_delay: stop_s + 60,
            smart_shutdown_timeout: stop_s.min(15),
            priority_class_name: settings.priority_class.clone(),
            seccomp_profile: pod::default_seccomp(),
            resources: pod::resources(settings),
            affinity: ClusterAffinity {
                enable_pod_anti_affinity: true,
                topology_key: "kubernetes.io/hostname",
                pod_anti_affinity_type: "preferred",
                node_selector: settings.node_selector.clone(),
                tolerations: pod::tolerations(settings),
            },
            storage: Storage {
                size: pod::bytes(settings.storage_bytes).0,
                storage_class: settings.storage_class.clone(),
            },
            ephemeral_volumes_size_limit: Ephemeral {
                shm: pod::bytes(settings.limits.shm_bytes).0,
                temporary_data: pod::bytes(settings.limits.tmpfs_bytes + MANAGER_BYTES).0,
            },
            // The server's names are in its certificate, which is ours: the operator refuses to be told of them too.
            certificates: Certificates { server_ca, server_tls, client_ca, replication_tls },
            bootstrap: Bootstrap {
                initdb: Initdb {
                    database: DATABASE,
                    owner: OWNER,
                    data_checksums: true,
                    encoding: "UTF8",
                    locale_collate: "C",
                    locale_ctype: "C",
                },
            },
            // The operator makes the owner with a login and a password: it closes it itself, before we come.
            managed: Managed {
                roles: vec![role(ADMIN, Some(LocalObjectReference { name: admin })), role(OWNER, None)],
            },
            postgresql: Postgresql {
                parameters: parameters
                    .filter(|(name, _)| !KEPT_BY_OPERATOR.contains(&name.as_str()))
                    .cloned()
                    .collect(),
                hba: hba(&content.hba),
                enable_alter_system: false,
            },
            inherited_metadata: Inherited { labels: settings.labels() },
        },
    }
}

/// Our lines for those who come over the network; the operator's own for its pods stand before them, and nothing that
/// it adds after them is reached.
fn hba(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| line.starts_with("hostssl"))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    lines.extend(["host all all all reject", "host replication all all reject"].map(str::to_owned));
    lines
}
