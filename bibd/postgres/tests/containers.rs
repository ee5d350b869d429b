//! What only a container has: its walls, its engine, its image, and that a choice once made stays.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bibd_postgres::choose::choose;
use bibd_postgres::{Choice, Error, GroupRole, Health, Randomness, Settings, Started, Stop, Wanted};
use rand::SeedableRng as _;
use serde_json::Value;
use support::{Ground, MemoryStore, TestServer, machine_has, test_image, text};

on_every_engine!(
    docker_inspect_shows_every_flag,
    nobody_else_gets_in,
    other_limits_replace_the_container_and_keep_the_data,
    what_is_wrong_with_engine_or_image_is_said_and_nothing_is_made,
    a_choice_once_made_stays,
);

fn inspect(ground: Ground, name: &str) -> Value {
    let (good, said) = ground.engine(&["inspect", name]);
    assert!(good, "{said}");
    serde_json::from_str::<Value>(&said).unwrap()[0].clone()
}

async fn docker_inspect_shows_every_flag(ground: Ground) {
    let mut server = TestServer::on(ground);
    server.settings.container.limits.memory_bytes = 768 << 20;
    server.settings.container.limits.cpus = 1;
    server.settings.container.limits.pids = 200;
    server.settings.container.limits.open_files = 4096;
    server.another_daemon();
    server.postgres.provision().await.unwrap();
    server.postgres.start().await.unwrap();
    let (seen, account) = (inspect(ground, &server.container()), server.account().await);
    let (host, config) = (&seen["HostConfig"], &seen["Config"]);
    // 46: the bytes, not a name.
    assert_eq!(seen["Image"], inspect(ground, &test_image())["Id"]);
    if ground == Ground::Docker {
        // Podman shows the name there, whatever it was told.
        assert_eq!(config["Image"], seen["Image"]);
    }
    // 47, 48, 49.
    assert_eq!(config["User"], format!("{}:{}", account.uid, account.gid));
    assert_ne!(account.uid, 0);
    // Podman lists what it makes of "ALL".
    let dropped = host["CapDrop"].as_array().unwrap();
    assert!(if ground == Ground::Docker { *dropped == ["ALL"] } else { dropped.len() >= 14 }, "{dropped:?}");
    assert!(host["CapAdd"].as_array().is_none_or(Vec::is_empty), "{}", host["CapAdd"]);
    assert_eq!(host["SecurityOpt"], serde_json::json!(["no-new-privileges"]));
    // As the kernel has it: no right to be had in any way, and system calls are filtered.
    let status = std::fs::read_to_string(format!("/proc/{}/status", seen["State"]["Pid"])).unwrap();
    for line in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|set| format!("{set}:\t0000000000000000\n")) {
        assert!(status.contains(&line), "{line}{status}");
    }
    assert!(status.contains("NoNewPrivs:\t1\n") && status.contains("Seccomp:\t2\n"), "{status}");
    // 50.
    assert_eq!(host["ReadonlyRootfs"], true);
    for place in ["/tmp", "/run/postgresql"] {
        let options = host["Tmpfs"][place].as_str().unwrap();
        assert!(options.starts_with("rw,noexec,nosuid,nodev,size=67108864"), "{options}");
    }
    // 51, 53.
    assert_eq!(host["Privileged"], false);
    assert_eq!(host["NetworkMode"], "none");
    // Podman calls its own so, which nobody shares who may not ask the engine.
    assert!(["private", "shareable"].contains(&host["IpcMode"].as_str().unwrap()), "{}", host["IpcMode"]);
    assert!(["", "private"].contains(&host["PidMode"].as_str().unwrap()), "{}", host["PidMode"]);
    assert!(host["PortBindings"].as_object().is_none_or(serde_json::Map::is_empty));
    // 52.
    for (name, value) in [
        ("Memory", 768 << 20),
        ("MemorySwap", 768 << 20),
        ("NanoCpus", 1_000_000_000),
        ("PidsLimit", 200),
        ("ShmSize", 256 << 20),
        ("OomScoreAdj", 0),
    ] {
        assert_eq!(host[name], value, "{name}");
    }
    let ulimits = host["Ulimits"].as_array().unwrap();
    for (name, value) in [("core", 0), ("nofile", 4096), ("nproc", 4096)] {
        let is_set = |limit: &Value| {
            let called = limit["Name"].as_str().unwrap().to_lowercase();
            called.strip_prefix("rlimit_").unwrap_or(&called) == name
                && limit["Hard"] == value
                && limit["Soft"] == value
        };
        assert!(ulimits.iter().any(is_set), "{name}: {ulimits:?}");
    }
    // 54.
    let described = format!("{seen}");
    for password in server.store.passwords() {
        assert!(!described.contains(&password));
    }
    assert!(!described.contains("SCRAM-SHA-256"), "{described}");
    // 55.
    assert!(["SIGINT", "2"].contains(&config["StopSignal"].as_str().unwrap()), "{}", config["StopSignal"]);
    assert_eq!(config["StopTimeout"], 60);
    assert!(config["Healthcheck"]["Test"][1].as_str().unwrap().ends_with("/pg_isready"), "{config}");
    // The check itself works, without a password: this is what Docker would run.
    let check: Vec<&str> =
        config["Healthcheck"]["Test"].as_array().unwrap()[1..].iter().map(|w| w.as_str().unwrap()).collect();
    let container = server.container();
    let (good, said) = ground.engine(&[&["exec", container.as_str()], check.as_slice()].concat());
    assert!(good, "{said}");
    // Nothing else is mounted than data, log, spool, socket and the list of users; the engine keeps no log and restarts nothing.
    let mut mounted: Vec<&str> =
        seen["Mounts"].as_array().unwrap().iter().map(|m| m["Destination"].as_str().unwrap()).collect();
    mounted.sort_unstable();
    let layout = server.layout();
    let mut expected =
        [&layout.data, &layout.log, &layout.spool, &layout.socket_dir].map(|path| path.to_str().unwrap()).to_vec();
    expected.push("/etc/passwd");
    expected.sort_unstable();
    assert_eq!(mounted, expected);
    assert_eq!(
        (&host["LogConfig"]["Type"], &host["RestartPolicy"]["Name"]),
        (&Value::from("none"), &Value::from("no"))
    );
    let left = ground.engine(&["ps", "--all", "--quiet", "--filter", &format!("name={container}-tool")]);
    assert_eq!(left, (true, String::new()), "the tools' container is gone");
}

async fn nobody_else_gets_in(ground: Ground) {
    let server = TestServer::started_on(ground).await;
    let container = server.container();
    let inside = |command: &str| ground.engine(&["exec", &container, "sh", "-c", command]);
    // One interface, loopback, and nobody who listens there.
    let (_, interfaces) = inside("cd /sys/class/net && echo *");
    assert_eq!(interfaces, "lo");
    let (_, listening) = inside("cat /proc/net/tcp /proc/net/tcp6 | grep -c ' 0A '");
    assert_eq!(listening, "0");
    // The root file system takes nothing, and what can be written cannot be run, in /tmp.
    assert!(!inside("touch /etc/x || touch /usr/x || touch /var/lib/x").0);
    let (good, said) = inside("cp /bin/true /tmp/t && /tmp/t");
    assert!(!good && said.contains("ermission denied"), "{said}");
    let (_, status) = inside("cat /proc/1/status");
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} in {status}");
    }
    // Another user of the machine, where this test may become one: not even with the password.
    if rustix::process::geteuid().is_root() {
        let socket = server.layout().socket();
        let other = server.account().await.uid + 4711;
        let mut probe = std::process::Command::new("python3");
        std::os::unix::process::CommandExt::uid(&mut probe, other);
        let code = "import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])";
        let output = probe.args(["-c", code]).arg(&socket).current_dir("/").output().unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).contains("PermissionError"), "{output:?}");
    }
    assert_eq!(text(&mut server.connect(GroupRole::Query).await, "SELECT 'in'").await, "in");
}

async fn other_limits_replace_the_container_and_keep_the_data(ground: Ground) {
    let mut server = TestServer::started_on(ground).await;
    let former = inspect(ground, &server.container())["Id"].clone();
    server.settings.container.limits.memory_bytes = 1 << 30;
    // Where there is no SELinux it changes nothing but the notation.
    server.settings.container.relabel = true;
    server.another_daemon();
    assert!(!server.postgres.provision().await.unwrap().created);
    assert_eq!(server.postgres.start().await.unwrap(), Started::Spawned);
    let seen = inspect(ground, &server.container());
    assert_ne!(seen["Id"], former);
    assert_eq!(seen["HostConfig"]["Memory"], 1 << 30);
    let data = server.layout().data.display().to_string();
    let binds = seen["HostConfig"]["Binds"].as_array().unwrap();
    assert!(binds.iter().any(|bind| bind.as_str().unwrap().starts_with(&format!("{data}:{data}:"))), "{binds:?}");
    server.connect(GroupRole::Service).await;
    // Removed by hand while it was stopped: made anew.
    server.postgres.stop(Stop::Clean).await.unwrap();
    assert!(ground.engine(&["rm", &server.container()]).0);
    assert_eq!(server.postgres.start().await.unwrap(), Started::Spawned);
    // A container of that name that belongs to somebody else is left alone.
    server.postgres.stop(Stop::Clean).await.unwrap();
    assert!(ground.engine(&["rm", &server.container()]).0);
    let (good, said) = ground.engine(&["create", "--name", &server.container(), &test_image(), "/bin/true"]);
    assert!(good, "{said}");
    let refused = server.postgres.start().await.unwrap_err();
    assert!(matches!(refused, Error::ForeignContainer { .. }) && refused.hint().is_some(), "{refused}");
}

async fn what_is_wrong_with_engine_or_image_is_said_and_nothing_is_made(ground: Ground) {
    let mut server = TestServer::on(ground);
    let refused = async |server: &mut TestServer, change: &dyn Fn(&mut Settings)| {
        let usual = server.settings.clone();
        change(&mut server.settings);
        server.another_daemon();
        let error =
            tokio::time::timeout(Duration::from_secs(300), server.postgres.provision()).await.expect("it hangs");
        let error = error.unwrap_err();
        assert!(error.hint().is_some(), "{error}");
        let layout = server.layout();
        assert!(!layout.provisioner.exists() && !layout.data.exists() && !layout.data_new.exists(), "{error}");
        let left = ground.engine(&["ps", "--all", "--quiet", "--filter", &format!("name={}", server.container())]);
        assert_eq!(left, (true, String::new()), "{error}");
        server.settings = usual;
        error
    };
    let socket = server.here.path().join("engine.sock");
    let error = refused(&mut server, &|settings| settings.container.socket = Some(socket.clone())).await;
    assert!(error.to_string().contains("there is no such socket"), "{error}");
    let listens = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let error = refused(&mut server, &|settings| settings.container.socket = Some(socket.clone())).await;
    assert!(error.to_string().contains("does not answer within 20 s"), "{error}");
    drop(listens);
    let digest = format!("sha256:{}", "0".repeat(64));
    let error = refused(&mut server, &|settings| settings.container.digest = Some(digest.clone())).await;
    assert!(matches!(error, Error::OtherDigest { .. }), "{error}");
    let error = refused(&mut server, &|settings| {
        settings.container.image = "127.0.0.1:9/nobody/nothing:1".to_owned();
    })
    .await;
    assert!(matches!(error, Error::ImageAbsent { .. }), "{error}");

    // An image that is empty, one with a shell and nothing else.
    let name = server.container().to_lowercase();
    let here = server.here.path().to_owned();
    let made = |tag: &str, files: &[&str]| {
        let tar = here.join("image.tar");
        let mut pack = std::process::Command::new("tar");
        assert!(pack.arg("-chf").arg(&tar).arg("-C").arg("/").args(files).status().unwrap().success());
        let (good, said) = ground.engine(&["import", tar.to_str().unwrap(), tag]);
        assert!(good, "{said}");
        tag.to_owned()
    };
    let (empty, bare) = (format!("{name}:empty"), format!("{name}:bare"));
    made(&empty, &["etc/hostname"]);
    let error = refused(&mut server, &|settings| settings.container.image = empty.clone()).await;
    assert!(matches!(error, Error::ImageUnusable { .. }) && error.to_string().contains("/bin/sh"), "{error}");
    let libraries = std::process::Command::new("ldd").arg("/bin/sh").output().unwrap();
    let libraries = String::from_utf8(libraries.stdout).unwrap();
    let mut files: Vec<&str> = libraries.split_whitespace().filter_map(|word| word.strip_prefix('/')).collect();
    files.push("bin/sh");
    made(&bare, &files);
    let error = refused(&mut server, &|settings| settings.container.image = bare.clone()).await;
    assert!(error.to_string().contains("there is no `postgres` with `initdb` in it"), "{error}");
    for tag in [empty, bare] {
        assert!(ground.engine(&["rmi", &tag]).0);
    }
    // And with everything as it should be, it works in the same place.
    server.settings.container.digest = Some(inspect(ground, &test_image())["Id"].as_str().unwrap().to_owned());
    server.another_daemon();
    server.postgres.provision().await.unwrap();
}

async fn a_choice_once_made_stays(ground: Ground) {
    if !machine_has(Ground::Process).await {
        return;
    }
    let pick = async |settings: &Settings, wanted: Wanted| {
        let random = Randomness::new(rand::rngs::StdRng::seed_from_u64(3));
        choose(wanted, settings.clone(), Arc::new(MemoryStore::default()), random).await
    };
    for (made, other) in [(Choice::Container, Choice::Process), (Choice::Process, Choice::Container)] {
        let mut server = TestServer::started_on(if made == Choice::Process { Ground::Process } else { ground }).await;
        server.settings.container.socket = Some(ground.socket());
        assert_eq!(pick(&server.settings, Wanted::Auto).await.unwrap().choice(), made);
        assert_eq!(pick(&server.settings, Wanted::Exactly(made)).await.unwrap().choice(), made);
        let refused = pick(&server.settings, Wanted::Exactly(other)).await.err().unwrap();
        assert!(matches!(refused, Error::OtherProvisioner { .. }) && refused.hint().is_some(), "{refused}");
        server.postgres.stop(Stop::Clean).await.unwrap();
        // Nor does the other one by itself.
        server.choice = other;
        server.another_daemon();
        for refused in [
            server.postgres.provision().await.map(drop).unwrap_err(),
            server.postgres.start().await.map(drop).unwrap_err(),
        ] {
            assert!(matches!(refused, Error::OtherProvisioner { .. }), "{refused}");
        }
        // The engine is gone, the binaries are gone: still the same choice, which cannot be started.
        server.choice = made;
        server.settings.container.socket = Some(server.here.path().join("gone.sock"));
        server.settings.bin_dir = Some(server.here.path().join("gone"));
        let same = pick(&server.settings, Wanted::Auto).await.unwrap();
        assert_eq!(same.choice(), made);
        let refused = same.start().await.unwrap_err();
        assert!(matches!(refused, Error::NoEngine { .. } | Error::NoBinaries { .. }), "{refused}");
        assert_eq!(same.health().await, Health::Stopped);
    }
    // Nothing made yet: a container where the engine has the image, else a process.
    let mut server = TestServer::on(ground);
    assert_eq!(pick(&server.settings, Wanted::Auto).await.unwrap().choice(), Choice::Container);
    server.settings.container.socket = Some(server.here.path().join("gone.sock"));
    assert_eq!(pick(&server.settings, Wanted::Auto).await.unwrap().choice(), Choice::Process);
}
