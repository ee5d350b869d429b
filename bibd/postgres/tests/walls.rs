//! What `bib admin db audit` says of a container with one hole in its walls: exactly that item, on either engine.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::BTreeSet;

use bibd_postgres::checklist::{self, Expected, Status};
use bibd_postgres::{GroupRole, Stop};
use support::{Ground, TestServer, test_image};

on_every_engine!(names_what_a_hole_in_the_walls_breaks);

/// `docker create` with these words makes a container as ours is; each has the items that are lost without it.
const WALLS: &[(&[&str], &str)] = &[
    (&["--cap-drop=ALL"], "C.5-48"),
    (&["--security-opt=no-new-privileges"], "C.5-49"),
    (&["--read-only"], "C.5-50"),
    (&["--tmpfs=/tmp:rw,noexec,nosuid,nodev,size=67108864"], "C.5-50"),
    (&["--tmpfs=/run/postgresql:rw,noexec,nosuid,nodev,size=67108864"], "C.5-50"),
    (&["--memory=2147483648", "--memory-swap=2147483648"], "C.5-52"),
    (&["--pids-limit=512"], "C.5-52"),
    (&["--shm-size=268435456"], "C.5-52"),
    (&["--ulimit=core=0:0"], "C.5-52"),
    (&["--network=none"], "C.5-53"),
    (&["--stop-signal=SIGINT"], "C.5-55"),
    (&["--health-cmd=/usr/lib/postgresql/15/bin/pg_isready"], "C.5-55"),
];

/// Words that open a hole in a container that is as ours is.
const HOLES: &[(&[&str], &str)] = &[
    (&["--cap-add=CHOWN"], "C.5-48"),
    (&["--security-opt=seccomp=unconfined"], "C.5-51"),
    (&["--privileged"], "C.5-51"),
    (&["--pid=host"], "C.5-53"),
    (&["--ipc=host"], "C.5-53"),
    (&["--env=POSTGRES_PASSWORD=x"], "C.5-54"),
    (&["--label=verifier=SCRAM-SHA-256$15000:x"], "C.5-54"),
    (&["--stop-timeout=5"], "C.5-55"),
];

async fn names_what_a_hole_in_the_walls_breaks(ground: Ground) {
    let server = TestServer::started_on(ground).await;
    let (name, account) = (server.container(), server.account().await);
    let identity = |image: &str| {
        let (good, id) = ground.engine(&["image", "inspect", "--format", "{{.Id}}", image]);
        assert!(good, "{id}");
        id
    };
    let image = identity(&test_image());
    let cpus = std::thread::available_parallelism().unwrap();
    // The server goes on in its container, which has another name meanwhile: what is judged is the one of its name.
    let (good, said) = ground.engine(&["rename", &name, &format!("{name}-away")]);
    assert!(good, "{said}");
    let judge = async |words: &[String], image: &str, command: &[&str]| -> BTreeSet<String> {
        let mut create: Vec<&str> = vec!["create", "--name", &name];
        create.extend(words.iter().map(String::as_str));
        create.push(image);
        create.extend(command);
        let (good, said) = ground.engine(&create);
        assert!(good, "{create:?}: {said}");
        if command != ["/bin/true"] {
            let (good, said) = ground.engine(&["start", &name]);
            assert!(good, "{create:?}: {said}");
        }
        let facts = server.postgres.facts().await.unwrap();
        let mut monitor = server.connect(GroupRole::Monitor).await;
        let findings = checklist::audit(&mut monitor, &facts, &Expected::default()).await.unwrap();
        if command != ["/bin/true"] {
            // Podman would wait for an end that this one is not made for.
            assert!(ground.engine(&["kill", &name]).0);
        }
        assert!(ground.engine(&["rm", "--force", &name]).0);
        let walls = findings.iter().filter(|finding| finding.item.starts_with("C.5-"));
        walls.filter(|finding| finding.status == Status::Fail).map(|finding| finding.item.to_owned()).collect()
    };
    let judged = async |words: &[String], image: &str| judge(words, image, &["/bin/true"]).await;
    let home = server.layout().home.display().to_string();
    let mut own = vec![
        format!("--label=bib.node={}", server.settings.container.node),
        format!("--label=bib.home={home}"),
        format!("--cpus={cpus}"),
        "--ulimit=nofile=4096:4096".to_owned(),
        "--ulimit=nproc=4096:4096".to_owned(),
        // Docker's command line leaves it out, which Podman takes for none.
        "--stop-timeout=60".to_owned(),
    ];
    let user = format!("--user={}:{}", account.uid, account.gid);
    let all = |without: usize| -> Vec<String> {
        let kept = WALLS.iter().enumerate().filter(|(index, _)| *index != without).flat_map(|(_, (words, _))| *words);
        own.iter().cloned().chain([user.clone()]).chain(kept.map(|word| (*word).to_owned())).collect()
    };
    let whole = all(usize::MAX);
    assert_eq!(judged(&whole, &image).await, BTreeSet::new(), "{whole:?}");
    for (index, (words, item)) in WALLS.iter().enumerate() {
        assert_eq!(judged(&all(index), &image).await, BTreeSet::from([(*item).to_owned()]), "without {words:?}");
    }
    for (words, item) in HOLES {
        // Podman refuses a size for memory that is the machine's own.
        let fits = |word: &&String| words != &["--ipc=host"] || !word.starts_with("--shm-size");
        let whole = whole.iter().filter(fits).cloned();
        let words: Vec<String> = whole.chain(words.iter().map(|word| (*word).to_owned())).collect();
        // Running: some holes are seen only in what the kernel says of the process.
        let named = judge(&words, &image, &["/bin/sleep", "60"]).await;
        // Some holes are several at once: a privileged container is not filtered either, and Docker turns the security
        // module's labels off for who shares the machine's processes.
        let several = ["--privileged", "--pid=host", "--ipc=host"].iter().any(|hole| words.iter().any(|w| w == hole));
        assert!(named.contains(*item) && (named.len() == 1 || several), "{words:?}: {named:?}");
    }
    // As root, and from another image.
    own.push("--user=0:0".to_owned());
    let root: Vec<String> =
        own.iter().cloned().chain(WALLS.iter().flat_map(|(words, _)| *words).map(|w| (*w).to_owned())).collect();
    assert_eq!(judged(&root, &image).await, BTreeSet::from(["C.5-47".to_owned()]));
    let tag = format!("{}:other", name.to_lowercase());
    let tar = server.here.path().join("image.tar");
    let packed = std::process::Command::new("tar").arg("-chf").arg(&tar).args(["-C", "/", "etc/hostname"]).status();
    assert!(packed.unwrap().success());
    assert!(ground.engine(&["import", tar.to_str().unwrap(), &tag]).0);
    assert_eq!(judged(&whole, &identity(&tag)).await, BTreeSet::from(["C.5-46".to_owned()]));
    assert!(ground.engine(&["rmi", &tag]).0);
    assert!(ground.engine(&["rename", &format!("{name}-away"), &name]).0);
    server.postgres.stop(Stop::Clean).await.unwrap();
}
