//! What must be refused, found out or healed: probing, hostile pages, damage, quotas, withdrawn bytes.
#![allow(clippy::unwrap_used)]

#[path = "support/publish.rs"]
mod publish;
mod support;

use bib_core::Hash;
use bib_core::access::NodeRole;
use bib_core::content::{Block, ContentRoot};
use bib_core::layout::{Extent, FileLayout, LayoutBuilder};
use bibd::errors::ErrorCode;
use bibd::services::base::Quotas;
use bibd::services::commit::Committed;
use bibd::services::in_place::PlacedFile;
use bibd_catalog::pages::PageKind;
use bytes::Bytes;
use futures::stream;
use publish::{describe, folder};
use support::Lab;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let block = |i: u64| *Hash::of(&[seed.to_le_bytes(), i.to_le_bytes()].concat()).as_bytes();
    (0..).flat_map(block).take(bytes).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_knows_a_private_chunks_hash_can_neither_confirm_nor_fetch_it() {
    let Some(lab) = Lab::start().await else { return };
    let ada = lab.person("ada", NodeRole::Writer).await;
    let eve = lab.person("eve", NodeRole::Writer).await;
    let secret = noise(1, 400_000);
    let private = lab.publish(&ada, "private/d", &folder(&[("secret", &secret)])).await.unwrap();
    let described = describe(&folder(&[("secret", &secret)]));
    let hashes: Vec<Hash> = described.chunks.keys().copied().collect();

    // She is told that everything is missing, for chunks that are here and for those that are nowhere.
    let begun = lab.begin(&eve, "eve/d").await.unwrap();
    let session = begun.upload.id;
    let mut asked = hashes.clone();
    asked.push(Hash::of(b"nowhere"));
    let missing = lab.data.uploads.missing_chunks(&eve.call, session, &asked).await.unwrap();
    assert_eq!(missing.len(), asked.len());
    let roots: Vec<Hash> = described.pages.iter().map(|(_, block)| block.hash).collect();
    let missing = lab.data.uploads.missing_pages(&eve.call, session, &roots).await.unwrap();
    assert_eq!(missing.len(), roots.len());

    // A commit that names it without having sent it is asked to send it, as if it were nowhere.
    lab.send_pages(&eve, session, &described.pages).await.unwrap();
    let statement = lab.statement(&eve, &begun, &described, Vec::new());
    let wanted = lab.signed(&eve, session, &statement, described.layout_root.hash);
    match lab.data.commits.commit(&eve.call, wanted.clone()).await.unwrap() {
        Committed::Resend(chunks) => assert_eq!(chunks.len(), hashes.len()),
        Committed::Version { .. } => panic!("the layout names chunks that she never sent"),
    }
    // Nor does a commit read a page that she did not send.
    let other = lab.begin(&eve, "eve/d").await.unwrap();
    let error =
        lab.data.commits.commit(&eve.call, lab.signed(&eve, other.upload.id, &statement, described.layout_root.hash));
    assert_eq!(error.await.unwrap_err().code(), ErrorCode::INVALID);

    // The version is not there for her, by name or hash; nor are its pages and chunks by way of a version of hers.
    for reference in ["private/d".to_owned(), private.version().hash.to_string()] {
        assert_eq!(lab.download(&eve, &reference).await.unwrap_err().code(), ErrorCode::NOT_FOUND);
    }
    lab.publish(&eve, "eve/d", &folder(&[("mine", b"mine")])).await.unwrap();
    assert_eq!(lab.chunk(&eve, "eve/d", hashes[0]).await.unwrap_err().code(), ErrorCode::NOT_FOUND);
    assert_eq!(lab.pages(&eve, "eve/d", vec![roots[0]]).await.unwrap_err().code(), ErrorCode::NOT_FOUND);

    // Who has the bytes may publish them: deduplicated behind the answer.
    let before = lab.number("SELECT count(*) FROM bib.chunks").await;
    let sent = lab.publish(&eve, "eve/own", &folder(&[("secret", &secret)])).await.unwrap();
    assert_eq!((sent.created(), sent.chunks_sent), (true, hashes.len()));
    assert_eq!(lab.number("SELECT count(*) FROM bib.chunks").await, before);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_pages_layouts_chunks_and_statements_are_refused() {
    let Some(lab) = Lab::start().await else { return };
    let ada = lab.person("ada", NodeRole::Writer).await;
    let good = describe(&folder(&[("a", b"aaaa"), ("b", b"bbbb")]));
    let begun = lab.begin(&ada, "t/d").await.unwrap();
    let session = begun.upload.id;
    lab.stage(&ada, session, &good).await.unwrap();

    // Pages: cut off, of another hash, of another kind, out of order.
    let page = good.pages.iter().find(|(kind, _)| *kind == PageKind::ContentPage).unwrap().1.clone();
    let cut = Block::new(page.bytes[..page.bytes.len() - 1].to_vec());
    let lied = Block { hash: Hash::of(b"other"), bytes: page.bytes.clone() };
    let mut lines: Vec<&[u8]> = page.bytes.split_inclusive(|b| *b == b'\n').collect();
    lines.reverse();
    let reversed = Block::new(lines.concat());
    for (kind, block) in [
        (PageKind::ContentPage, cut),
        (PageKind::ContentPage, lied),
        (PageKind::LayoutPage, page.clone()),
        (PageKind::ContentPage, reversed),
        (PageKind::LayoutRoot, Block::new(b"{}".to_vec())),
    ] {
        let error = lab.send_pages(&ada, session, &[(kind, block)]).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::INVALID);
    }

    // Chunks: other bytes than the hash says.
    let lie = [(Hash::of(b"promised"), Bytes::from_static(b"delivered"))];
    assert_eq!(lab.send_chunks(&ada, session, lie).await.unwrap_err().code(), ErrorCode::INVALID);

    // Layouts: an extent past the end of its chunk, one with too few bytes, one of another content.
    let chunk = Hash::of(b"aaaa");
    let layout = |a: Extent| {
        let mut builder = LayoutBuilder::new();
        let b = Extent { chunk: Hash::of(b"bbbb"), offset: 0, length: 4 };
        let file = |bytes: &[u8], extent| FileLayout { sha256: Hash::of(bytes), extents: vec![extent] };
        let pages = builder.page(page.hash, &[file(b"aaaa", a), file(b"bbbb", b)]).unwrap();
        let root = builder.finish(&[]).unwrap().root;
        let mut sent: Vec<_> = pages.into_iter().map(|block| (PageKind::LayoutPage, block)).collect();
        sent.push((PageKind::LayoutRoot, root.clone()));
        (sent, root.hash)
    };
    let past_the_end = layout(Extent { chunk, offset: 2, length: 4 });
    let too_few = layout(Extent { chunk, offset: 0, length: 3 });
    let other = describe(&folder(&[("c", b"c")]));
    for (pages, root) in [past_the_end, too_few, (other.pages.clone(), other.layout_root.hash)] {
        lab.send_pages(&ada, session, &pages).await.unwrap();
        let statement = lab.statement(&ada, &begun, &good, Vec::new());
        let error = lab.data.commits.commit(&ada.call, lab.signed(&ada, session, &statement, root)).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::INVALID, "{error}");
    }

    // Contents: a page that ends before the rule ends it, a page that is missing.
    let (one, two) = (describe(&folder(&[("a", b"1")])), describe(&folder(&[("b", b"2")])));
    let pages: Vec<Block> = [&one, &two]
        .map(|part| part.pages.iter().find(|(kind, _)| *kind == PageKind::ContentPage).unwrap().1.clone())
        .to_vec();
    let mut builder = LayoutBuilder::new();
    for (page, bytes) in pages.iter().zip([b"1", b"2"]) {
        let extents = vec![Extent { chunk: Hash::of(bytes), offset: 0, length: 1 }];
        builder.page(page.hash, &[FileLayout { sha256: Hash::of(bytes), extents }]).unwrap();
    }
    let forged = publish::Described {
        content_root: ContentRoot::Pages(pages.iter().map(|page| page.hash).collect()).to_block(),
        layout_root: builder.finish(&[]).unwrap().root,
        pages: Vec::new(),
        chunks: one.chunks.into_iter().chain(two.chunks).collect(),
    };
    let mut sent: Vec<_> = one.pages.into_iter().chain(two.pages).collect();
    sent.push((PageKind::ContentRoot, forged.content_root.clone()));
    sent.push((PageKind::LayoutRoot, forged.layout_root.clone()));
    lab.send_pages(&ada, session, &sent).await.unwrap();
    lab.send_chunks(&ada, session, forged.chunks.clone()).await.unwrap();
    let statement = lab.statement(&ada, &begun, &forged, Vec::new());
    let wanted = lab.signed(&ada, session, &statement, forged.layout_root.hash);
    let error = lab.data.commits.commit(&ada.call, wanted).await.unwrap_err();
    assert!(error.to_string().contains("ends before the rule ends it"), "{error}");

    // Statements: another's key, another's signature, another content.
    let eve = lab.person("eve", NodeRole::Writer).await;
    let mut wanted = lab.signed(&ada, session, &lab.statement(&eve, &begun, &good, Vec::new()), good.layout_root.hash);
    let code = async |wanted| lab.data.commits.commit(&ada.call, wanted).await.unwrap_err().code();
    assert_eq!(code(wanted.clone()).await, ErrorCode::STATEMENT_REFUSED);
    let own = lab.statement(&ada, &begun, &good, Vec::new());
    wanted = lab.signed(&eve, session, &own, good.layout_root.hash);
    assert_eq!(code(wanted).await, ErrorCode::STATEMENT_REFUSED);
    let mut wanted = lab.signed(&ada, session, &own, good.layout_root.hash);
    wanted.content_root = forged.content_root.hash;
    assert_eq!(code(wanted).await, ErrorCode::STATEMENT_REFUSED);
    assert_eq!(lab.number("SELECT count(*) FROM bib.versions").await, 0);

    // And the good one passes still.
    let wanted = lab.signed(&ada, session, &own, good.layout_root.hash);
    assert!(matches!(
        lab.data.commits.commit(&ada.call, wanted).await.unwrap(),
        Committed::Version { created: true, .. }
    ));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_chunk_is_quarantined_noted_and_healed_by_the_next_publish() {
    let Some(lab) = Lab::start().await else { return };
    let ada = lab.person("ada", NodeRole::Writer).await;
    let files = folder(&[("data", &noise(1, 500_000)), ("fine", b"fine")]);
    lab.publish(&ada, "t/d", &files).await.unwrap();
    let chunk = Hash::of(bib_core::chunk::chunks(&files["data"]).next().unwrap());
    let name = chunk.to_string();
    let path = lab.path("store/blobs").join(&name[..2]).join(&name[2..4]).join(&name);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&path, &bytes).unwrap();

    let error = lab.chunk(&ada, "t/d", chunk).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::INTEGRITY);
    assert!(!path.exists());
    assert!(lab.metrics.render().contains("bibd_chunks_damaged_total 1"));
    assert_eq!(lab.number("SELECT count(*) FROM bib.audit_entry WHERE action = 'chunk.damaged'").await, 1);
    Box::pin(lab.data.verify.round(&CancellationToken::new())).await.unwrap();
    assert_eq!(lab.number("SELECT count(*) FROM bib.versions WHERE state = 'damaged'").await, 1);

    // The same folder again: no version, but the chunk is asked for, and whole from then on.
    let again = lab.publish(&ada, "t/d", &files).await.unwrap();
    assert_eq!((again.created(), again.chunks_sent), (false, 1));
    assert_eq!(lab.download(&ada, "t/d").await.unwrap(), files);
    let (sender, mut told) = mpsc::channel(64);
    lab.data.verify.verify(&ada.call, "t/d", sender).await.unwrap();
    let mut last = None;
    while let Some(word) = told.recv().await {
        last = Some(word.unwrap());
    }
    let last = last.unwrap();
    assert!(last.finished && last.done.files == 2 && last.damaged.is_empty());
    assert_eq!(lab.number("SELECT count(*) FROM bib.versions WHERE state = 'verified'").await, 1);

    // The scrubber finds a file that went away, and one that nobody knows.
    let admin = lab.person("root", NodeRole::Admin).await;
    std::fs::remove_file(&path).unwrap();
    let orphan = bibd_blobs::Incoming::raw(Hash::of(b"orphan"), Bytes::from_static(b"orphan"));
    lab.base.blobs.put_many(vec![orphan]).await.unwrap();
    let (sender, mut told) = mpsc::channel(64);
    lab.data.scrub.scrub(&admin.call, false, sender).await.unwrap();
    let mut found = Vec::new();
    while let Some(word) = told.recv().await {
        found.extend(word.unwrap().finding.map(|finding| (finding.kind, finding.chunk)));
    }
    found.sort_unstable();
    assert_eq!(found, [("missing", chunk), ("orphan", Hash::of(b"orphan"))]);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_hold_and_withdrawn_bytes_are_gone_at_once() {
    let quotas = Quotas { staging_bytes: Some(1_000_000), storage_bytes: Some(1_500_000) };
    let Some(lab) = Lab::start_with(quotas).await else { return };
    let ada = lab.person("ada", NodeRole::Writer).await;
    let error = lab.publish(&ada, "t/large", &folder(&[("x", &noise(1, 1_200_000))])).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::QUOTA_EXCEEDED);
    assert_eq!(lab.number("SELECT count(*) FROM bib.versions").await, 0);
    let admin = lab.person("root", NodeRole::Admin).await;
    lab.advance(std::time::Duration::from_secs(25 * 60 * 60));
    lab.data.collector.collect(&admin.call, false).await.unwrap();

    let shared = noise(2, 300_000);
    let first = folder(&[("shared", &shared), ("own", &noise(3, 300_000))]);
    let first_version = lab.publish(&ada, "t/d", &first).await.unwrap().version().clone();
    let second = folder(&[("shared", &shared), ("other", &noise(4, 300_000))]);
    lab.publish(&ada, "t/d", &second).await.unwrap();
    let reference = first_version.hash.to_string();
    let named = lab.data.collector.named_chunks(&ada.call, &reference).await.unwrap();
    let mut session = lab.base.db.read().await.unwrap();
    let verb = bib_core::access::Verb::DatasetWithdraw;
    let found = bibd::services::reference::version(&lab.base, &ada.call, &mut session, &reference, verb).await.unwrap();
    drop(session);
    lab.datasets.withdraw(&ada.call, &found.seen, &found.version, "a name in it").await.unwrap();
    lab.data.collector.purge(&ada.call, named).await.unwrap();

    assert_eq!(lab.download(&ada, &reference).await.unwrap_err().code(), ErrorCode::WITHDRAWN);
    for part in bib_core::chunk::chunks(&first["own"]) {
        assert!(!lab.base.blobs.exists(&Hash::of(part)).await.unwrap());
    }
    assert_eq!(lab.download(&ada, "t/d").await.unwrap(), second);

    // The first version was charged 600 KB, the second 300 KB, and the first was given back with its bytes.
    let more = folder(&[("x", &noise(5, 700_000))]);
    lab.publish(&ada, "t/more", &more).await.unwrap();
    let again = folder(&[("x", &noise(6, 700_000))]);
    let error = lab.publish(&ada, "t/again", &again).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::QUOTA_EXCEEDED);
    lab.datasets.delete(&ada.call, "t/more").await.unwrap();
    lab.publish(&ada, "t/again", &again).await.unwrap();
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_has_every_file_and_in_place_files_are_guarded() {
    let Some(lab) = Lab::start().await else { return };
    let ada = lab.person("ada", NodeRole::Writer).await;
    let files = folder(&[("a", b"aaaa")]);
    let version = lab.publish(&ada, "t/d", &files).await.unwrap().version().clone();
    let (sender, mut pieces) = mpsc::channel(64);
    lab.data.prove.prove(&ada.call, "t/d", sender).await.unwrap();
    let mut bundle = std::collections::BTreeMap::<String, Vec<u8>>::new();
    while let Some(piece) = pieces.recv().await {
        let piece = piece.unwrap();
        bundle.entry(piece.name).or_default().extend_from_slice(&piece.data);
    }
    let page = format!("content/{}", describe(&files).pages[0].1.hash);
    let expected = [
        "README.txt",
        "allowed_signers",
        "audit.json",
        &page,
        "content/root.json",
        "node.pub",
        "person.record.json",
        "person.record.sig",
        "statement.json",
        "statement.sig",
        "version.record.json",
        "version.record.sig",
    ];
    let names: Vec<&str> = bundle.keys().map(String::as_str).collect();
    assert_eq!(names, expected);
    assert_eq!(Hash::of(&bundle["statement.json"]), version.hash);
    assert_eq!(Hash::of(&bundle["content/root.json"]), version.content);
    let proof = bibd_audit::proof::EntryProof::from_bytes(&bundle["audit.json"]).unwrap();
    assert!(proof.body.contains(&format!("version:{}", version.hash)));
    proof.verify(lab.base.peer.public_key()).unwrap();

    // A file of the caller's own, read where it lies.
    let path = lab.path("table.csv");
    let bytes = noise(9, 600_000);
    std::fs::write(&path, &bytes).unwrap();
    let described = describe(&folder(&[("table.csv", &bytes)]));
    let begun = lab.begin(&ada, "t/placed").await.unwrap();
    let session = begun.upload.id;
    let mut offset = 0;
    let mut extents = Vec::new();
    for part in bib_core::chunk::chunks(&bytes) {
        let length = u32::try_from(part.len()).unwrap();
        extents.push(bibd::services::in_place::Extent { chunk: Hash::of(part), offset, length });
        offset += u64::from(length);
    }
    let link = lab.path("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let put = async |path: std::path::PathBuf, extents| {
        let file = PlacedFile { path, extents };
        lab.data.in_place.put(&ada.call, session, stream::iter([Ok(file)])).await
    };
    for bad in [link, lab.path("store"), "/dev/zero".into(), "relative".into(), lab.path("../x"), lab.path("absent")] {
        assert_eq!(put(bad, extents.clone()).await.unwrap_err().code(), ErrorCode::INVALID);
    }
    let mut wrong = extents.clone();
    wrong[0].chunk = Hash::of(b"other");
    assert_eq!(put(path.clone(), wrong).await.unwrap_err().code(), ErrorCode::INVALID);
    assert_eq!(put(path.clone(), extents.clone()).await.unwrap(), (1, extents.len() as u64));
    lab.send_pages(&ada, session, &described.pages).await.unwrap();
    let statement = lab.statement(&ada, &begun, &described, Vec::new());
    let wanted = lab.signed(&ada, session, &statement, described.layout_root.hash);
    assert!(matches!(
        lab.data.commits.commit(&ada.call, wanted).await.unwrap(),
        Committed::Version { created: true, .. }
    ));
    assert_eq!(lab.download(&ada, "t/placed").await.unwrap()["table.csv"], bytes);

    // An edit of the same length, with the time set back.
    let before = std::fs::metadata(&path).unwrap().modified().unwrap();
    let mut edited = bytes.clone();
    edited[5] ^= 1;
    std::fs::write(&path, &edited).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(before).unwrap();
    assert_eq!(lab.download(&ada, "t/placed").await.unwrap_err().code(), ErrorCode::INTEGRITY);
    lab.stop().await;
}
