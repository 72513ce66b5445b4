//! Parsing against an independent parser, and against nonsense.

use proptest::prelude::*;
use redirector_common::packet::{Bytes, Packet};
use redirector_common::{Reason, Verdict};

use crate::packets::recipe;

proptest! {
    #[test]
    fn finds_what_was_put_in(recipe in recipe()) {
        let mut frame = recipe.build();
        let frame_len = frame.len();
        let packet = Packet::of(&Bytes::new(&mut frame)).unwrap();
        prop_assert_eq!(packet.tuple, recipe.tuple());
        prop_assert_eq!(packet.ttl, recipe.ttl);
        prop_assert_eq!(packet.vlan_tags, recipe.vlan_tags);
        prop_assert_eq!(usize::from(packet.network), 14 + 4 * usize::from(recipe.vlan_tags));
        prop_assert_eq!(usize::from(packet.network + packet.ip_len), frame_len);
    }

    /// Whatever comes, parsing ends, and what it refuses it passes.
    #[test]
    fn refuses_nonsense_quietly(mut frame in proptest::collection::vec(any::<u8>(), 0..128)) {
        if let Err(reason) = Packet::of(&Bytes::new(&mut frame)) {
            prop_assert_eq!(reason.verdict(), Verdict::Pass);
        }
    }

    /// A damaged packet either parses or passes; headers that were found lie inside of it.
    #[test]
    fn survives_damage(
        recipe in recipe(),
        damage in proptest::collection::vec((0usize..80, any::<u8>()), 1..4),
        cut in 0usize..100,
    ) {
        let mut frame = recipe.build();
        for (at, value) in damage {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(frame.len().saturating_sub(cut % 60));
        let len = frame.len();
        match Packet::of(&Bytes::new(&mut frame)) {
            Ok(packet) => prop_assert!(usize::from(packet.transport) + 8 <= len),
            Err(reason) => prop_assert_eq!(reason.verdict(), Verdict::Pass),
        }
    }
}

#[test]
fn refuses_mapped_addresses_on_the_wire() {
    let mut frame = crate::packets::Recipe {
        source: "[::ffff:192.0.2.1]:1000".parse().unwrap(),
        destination: "[2001:db8::1]:80".parse().unwrap(),
        protocol: redirector_common::Protocol::Tcp,
        ttl: 64,
        vlan_tags: 0,
        payload: vec![],
    }
    .build();
    assert_eq!(Packet::of(&Bytes::new(&mut frame)), Err(Reason::Malformed));
}
