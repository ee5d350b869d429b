//! What the engine says about the running container, against C.5 of the security design: what was asked for is one
//! thing, what the engine made of it another.

use bollard::models::ContainerInspectResponse;

use crate::checklist::ContainerItem;

use super::spec::Spec;

/// What every release of Podman and Docker leaves a container that nothing was taken from.
const USUAL_RIGHTS: [&str; 11] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// The items of C.5 that concern a container of Docker or Podman.
pub(crate) fn judge(found: &ContainerInspectResponse, spec: &Spec, digest: bool, limits: bool) -> Vec<ContainerItem> {
    let host = found.host_config.clone().unwrap_or_default();
    let config = found.config.clone().unwrap_or_default();
    let mut items = Vec::new();
    let same = found.image.as_ref().is_some_and(|image| bare(image) == bare(&spec.image));
    let mut item = |item, title, expected: &'static str, parts: &[(bool, String)]| {
        let problems = parts.iter().filter(|(good, _)| !good).map(|(_, problem)| problem.clone()).collect();
        items.push(ContainerItem { item, title, expected, problems, warn: item == "C.5-46" && same });
    };
    // An image that was only named is worth a warning; another one than the configuration's is not.
    item(
        "C.5-46",
        "image by digest",
        "the image that the configured digest names",
        &[
            (same, format!("it runs {}, not {}", shown(&found.image), spec.image)),
            (digest, "database.container.digest is not set: the name decides".to_owned()),
        ],
    );
    let user = format!("{}:{}", spec.account.uid, spec.account.gid);
    item(
        "C.5-47",
        "not root",
        "the owner of the data directory",
        &[(config.user.as_ref() == Some(&user), format!("User is {}", shown(&config.user)))],
    );
    let dropped = host.cap_drop.clone().unwrap_or_default();
    let is_dropped = |right: &str| dropped.iter().any(|name| bare_right(name).eq_ignore_ascii_case(right));
    // Podman spells out what ALL was, and shows a right that was given as one that is missing there.
    let all = is_dropped("ALL") || USUAL_RIGHTS.iter().all(|right| is_dropped(right));
    let added = host.cap_add.clone().unwrap_or_default();
    let pid = found.state.as_ref().filter(|state| state.running == Some(true)).and_then(|state| state.pid);
    let held = pid.and_then(rights_of).filter(|rights| !rights.is_empty());
    item(
        "C.5-48",
        "no capabilities",
        "CapDrop=ALL, no CapAdd",
        &[
            (all, format!("CapDrop is {dropped:?}")),
            (added.is_empty(), format!("CapAdd is {added:?}")),
            (held.is_none(), format!("the kernel lets it have {}", held.unwrap_or_default())),
        ],
    );
    let options = host.security_opt.clone().unwrap_or_default();
    let no_new = options.iter().any(|option| option.starts_with("no-new-privileges") && !option.ends_with("false"));
    item("C.5-49", "no new privileges", "no-new-privileges", &[(no_new, format!("SecurityOpt is {options:?}"))]);
    let tmpfs = host.tmpfs.clone().unwrap_or_default();
    let confined = |path: &str| {
        let flags: Vec<&str> = tmpfs.get(path).map(|flags| flags.split(',').collect()).unwrap_or_default();
        ["noexec", "nosuid", "nodev"].iter().all(|flag| flags.contains(flag))
            && flags.iter().any(|flag| flag.starts_with("size="))
    };
    item(
        "C.5-50",
        "nothing of the image written",
        "read-only root, tmpfs noexec,nosuid,nodev with a size",
        &[
            (host.readonly_rootfs == Some(true), "the root file system can be written".to_owned()),
            (["/tmp", "/run/postgresql"].iter().all(|path| confined(path)), format!("Tmpfs is {tmpfs:?}")),
        ],
    );
    let open = options.iter().any(|option| option.contains("unconfined") || option.contains("disable"));
    item(
        "C.5-51",
        "seccomp and AppArmor",
        "the engine's defaults, not privileged",
        &[
            (!open, format!("SecurityOpt is {options:?}")),
            (host.privileged != Some(true), "it is privileged".to_owned()),
            (found.app_armor_profile.as_deref() != Some("unconfined"), "AppArmor does not confine it".to_owned()),
        ],
    );
    let wanted = spec.body().host_config.unwrap_or_default();
    let ulimits = host.ulimits.clone().unwrap_or_default();
    let core = ulimits.iter().any(|limit| {
        limit.name.as_deref().is_some_and(|name| name.to_lowercase().ends_with("core")) && limit.hard == Some(0)
    });
    item(
        "C.5-52",
        "limits",
        "pids, memory and swap, processors, shm, files, no core dumps: as configured",
        &[
            (host.pids_limit == wanted.pids_limit, format!("PidsLimit is {:?}", host.pids_limit)),
            (host.memory == wanted.memory, format!("Memory is {:?}", host.memory)),
            (host.memory_swap == wanted.memory_swap, format!("MemorySwap is {:?}", host.memory_swap)),
            (host.nano_cpus == wanted.nano_cpus, format!("NanoCpus is {:?}", host.nano_cpus)),
            (host.shm_size == wanted.shm_size, format!("ShmSize is {:?}", host.shm_size)),
            (core, format!("Ulimits are {ulimits:?}")),
            (limits, "an engine without root on control groups of version 1 ignores them".to_owned()),
        ],
    );
    let network = host.network_mode.clone().unwrap_or_default();
    let ports = host.port_bindings.clone().unwrap_or_default();
    let common = pid.map(namespaces_of_ours).unwrap_or_default();
    let shared = |mode: &Option<String>| mode.as_deref().is_some_and(|mode| mode == "host");
    item(
        "C.5-53",
        "nothing shared, no network",
        "network none, own pid and ipc, no ports",
        &[
            (network == "none", format!("NetworkMode is {network}")),
            (ports.is_empty(), "ports are published".to_owned()),
            (!shared(&host.pid_mode) && !shared(&host.ipc_mode), "pid or ipc of the host".to_owned()),
            (common.is_empty(), format!("the kernel shows it in the host's own {}", common.join(", "))),
        ],
    );
    let text = format!("{:?} {:?} {:?} {:?}", config.env, config.cmd, config.entrypoint, config.labels);
    let secret = ["SCRAM-SHA-256$", "PASSWORD=", "PGPASS"].iter().find(|word| text.contains(*word));
    item(
        "C.5-54",
        "no secret in the container's description",
        "no password in environment, command or labels",
        &[(secret.is_none(), format!("there is {}", secret.unwrap_or(&"")))],
    );
    let test = config.healthcheck.and_then(|check| check.test).unwrap_or_default();
    let patient = config.stop_timeout.is_none_or(|seconds| seconds >= 60);
    item(
        "C.5-55",
        "health and stop",
        "pg_isready; SIGINT, at least 60 s",
        &[
            (test.iter().any(|word| word.ends_with("pg_isready")), format!("the check is {test:?}")),
            (
                matches!(config.stop_signal.as_deref(), Some("SIGINT" | "2")),
                format!("StopSignal is {}", shown(&config.stop_signal)),
            ),
            (patient, format!("StopTimeout is {:?}", config.stop_timeout)),
        ],
    );
    items
}

/// The sets of capabilities of a process that are not empty, as the kernel shows them; `None` when it is gone.
fn rights_of(pid: i64) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let sets = status.lines().filter(|line| line.starts_with("Cap"));
    let held = sets.filter(|line| !line.ends_with("\t0000000000000000"));
    Some(held.collect::<Vec<_>>().join(", ").replace('\t', " "))
}

/// Namespaces that a process shares with us; those that may not be looked at are passed over. Podman does not tell of a
/// shared one of ipc.
fn namespaces_of_ours(pid: i64) -> Vec<&'static str> {
    let of = |process: &str, name: &str| std::fs::read_link(format!("/proc/{process}/ns/{name}")).ok();
    let shared = |name: &&str| of("self", name).is_some_and(|ours| of(&pid.to_string(), name) == Some(ours));
    ["ipc", "net", "pid"].into_iter().filter(shared).collect()
}

fn bare_right(name: &str) -> &str {
    name.strip_prefix("CAP_").unwrap_or(name)
}

fn shown(value: &Option<String>) -> &str {
    value.as_deref().unwrap_or("nothing")
}

/// Podman names ids without their algorithm.
fn bare(id: &str) -> &str {
    id.strip_prefix("sha256:").unwrap_or(id)
}
