//! Who reaches the database: a Service that gives the pod its name, and a policy that lets in bibd alone.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::kubernetes::names::{labels, matching};
use crate::kubernetes::settings::{KubernetesSettings, Mode};
use crate::settings::PORT;

/// Where the operator asks an instance for its state.
const STATUS_PORT: u16 = 8000;
/// The label that every namespace has by itself.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// The pod's name in the cluster's DNS; no address of its own.
pub(super) fn headless(settings: &KubernetesSettings) -> Service {
    Service {
        metadata: settings.meta(&settings.name),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            selector: Some(settings.selector()),
            ports: Some(vec![port()]),
            // bibd looks for the pod before it is ready, and says itself what it waits for.
            publish_not_ready_addresses: Some(true),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// A port of the nodes, for a bibd outside of the cluster.
pub(super) fn outside(settings: &KubernetesSettings) -> Service {
    let selector = match settings.mode {
        Mode::StatefulSet => settings.selector(),
        Mode::Operator => labels(&[("cnpg.io/cluster", &settings.name), ("cnpg.io/instanceRole", "primary")]),
    };
    Service {
        metadata: settings.meta(&settings.outside_service()),
        spec: Some(ServiceSpec {
            type_: Some("NodePort".to_owned()),
            selector: Some(selector),
            ports: Some(vec![port()]),
            // The policy looks at the address that somebody really comes from.
            external_traffic_policy: Some("Local".to_owned()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn port() -> ServicePort {
    ServicePort {
        name: Some("postgres".to_owned()),
        port: i32::from(PORT),
        target_port: Some(IntOrString::Int(i32::from(PORT))),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    }
}

/// Nobody in but bibd, to one port; nothing out.
pub(super) fn policy(settings: &KubernetesSettings) -> NetworkPolicy {
    let mut clients = vec![pods(&settings.clients)];
    clients.extend(settings.outside.iter().map(|range| NetworkPolicyPeer {
        ip_block: Some(IPBlock { cidr: range.clone(), except: None }),
        ..NetworkPolicyPeer::default()
    }));
    let mut ingress = vec![allow(clients, &[PORT])];
    let mut egress = Vec::new();
    if settings.mode == Mode::Operator {
        // Instances follow one another; the operator asks them; each asks Kubernetes what it is to be.
        let instances = pods(&settings.selector());
        ingress.push(allow(vec![instances.clone()], &[PORT, STATUS_PORT]));
        let operator = NetworkPolicyPeer {
            namespace_selector: Some(matching(&BTreeMap::from([(
                NAMESPACE_NAME.to_owned(),
                settings.operator_namespace.clone(),
            )]))),
            ..NetworkPolicyPeer::default()
        };
        ingress.push(allow(vec![operator], &[PORT, STATUS_PORT]));
        let out = |to, ports: Vec<NetworkPolicyPort>| NetworkPolicyEgressRule { to, ports: Some(ports) };
        egress = vec![
            out(Some(vec![instances]), [PORT, STATUS_PORT].map(|number| on("TCP", number)).to_vec()),
            // The API server is no pod and has no label: its ports at any address, and names.
            out(None, vec![on("TCP", 443), on("TCP", 6443), on("UDP", 53), on("TCP", 53)]),
        ];
    }
    NetworkPolicy {
        metadata: settings.meta(&settings.name),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(matching(&settings.selector())),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(ingress),
            egress: Some(egress),
        }),
    }
}

fn pods(labels: &BTreeMap<String, String>) -> NetworkPolicyPeer {
    NetworkPolicyPeer { pod_selector: Some(matching(labels)), ..NetworkPolicyPeer::default() }
}

fn allow(from: Vec<NetworkPolicyPeer>, ports: &[u16]) -> NetworkPolicyIngressRule {
    let ports = ports.iter().map(|number| on("TCP", *number)).collect();
    NetworkPolicyIngressRule { from: Some(from), ports: Some(ports) }
}

fn on(protocol: &str, number: u16) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: Some(protocol.to_owned()),
        port: Some(IntOrString::Int(i32::from(number))),
        end_port: None,
    }
}
