//! What the next node signs to accept a succession, to the byte: the golden succession without an acceptance is the offer
//! of the one with it.
#![allow(clippy::unwrap_used)]

use bib_core::record::{Body, Revision, Succession};

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)).unwrap()
}

#[test]
fn a_succession_is_accepted_as_it_was_offered() {
    let bytes = golden("record-succession-accepted.json");
    let Body::Succession(accepted) = Body::parse(&bytes).unwrap() else { panic!("another kind") };
    assert_eq!(accepted.acceptance, Some([6; 64]));
    assert_eq!(Body::from(accepted.clone()).to_bytes().unwrap(), bytes);
    let offer = accepted.offer_bytes().unwrap();
    assert_eq!(offer, golden("record-succession.json"));
    // Its revision is part of the offer: the epoch in it says from when on the next node signs.
    let later = Succession { revision: Revision { epoch: 9, ..accepted.revision }, ..accepted };
    assert_ne!(later.offer_bytes().unwrap(), offer);
}
