//! Rewriting against packets that were built anew.

use proptest::prelude::*;
use redirector_common::packet::{
    Bytes, Packet,
    checksum::{fold, is_partial},
    rewrite,
};

use crate::packets::{Recipe, recipe_and_ends};

fn translate(frame: &mut [u8], to: &Recipe, decrement_ttl: bool) {
    let mut bytes = Bytes::new(frame);
    let packet = Packet::of(&bytes).unwrap();
    rewrite(&mut bytes, &packet, &to.tuple(), decrement_ttl).unwrap();
}

proptest! {
    #[test]
    fn equals_a_packet_built_anew((recipe, source, destination) in recipe_and_ends()) {
        let translated = Recipe { source, destination, ttl: recipe.ttl - 1, ..recipe.clone() };
        let mut frame = recipe.build();
        translate(&mut frame, &translated, true);
        prop_assert_eq!(frame, translated.build());
    }

    #[test]
    fn there_and_back_is_identity((recipe, source, destination) in recipe_and_ends()) {
        let translated = Recipe { source, destination, ..recipe.clone() };
        let mut frame = recipe.build();
        translate(&mut frame, &translated, false);
        translate(&mut frame, &recipe, false);
        prop_assert_eq!(frame, recipe.build());
    }

    /// Known from the whole checksum: what it has more than the header and the payload.
    #[test]
    fn checksums_left_to_the_card_are_seen((recipe, _, _) in recipe_and_ends()) {
        let mut frame = recipe.build();
        let packet = Packet::of(&Bytes::new(&mut frame)).unwrap();
        let transport = usize::from(packet.transport);
        let at = transport + match recipe.protocol {
            redirector_common::Protocol::Tcp => 16,
            redirector_common::Protocol::Udp => 6,
        };
        let end = usize::from(packet.network + packet.ip_len);
        let whole = u16::from_ne_bytes([frame[at], frame[at + 1]]);
        frame[at..at + 2].fill(0);
        let words = frame[transport..end].chunks(2).map(|word| {
            u64::from(u16::from_ne_bytes([word[0], word.get(1).copied().unwrap_or(0)]))
        });
        let pseudo = fold(u64::from(!whole) + u64::from(!fold(words.sum())));
        prop_assert_eq!(is_partial(&packet), whole == pseudo);
        frame[at..at + 2].copy_from_slice(&pseudo.to_ne_bytes());
        prop_assert!(is_partial(&Packet::of(&Bytes::new(&mut frame)).unwrap()));
    }

    #[test]
    fn zero_udp_checksum_stays_zero((recipe, source, destination) in recipe_and_ends()) {
        let recipe =
            Recipe { protocol: redirector_common::Protocol::Udp, ..recipe };
        let mut frame = recipe.build();
        let packet = Packet::of(&Bytes::new(&mut frame)).unwrap();
        let checksum = usize::from(packet.transport) + 6;
        frame[checksum..checksum + 2].fill(0);
        translate(&mut frame, &Recipe { source, destination, ..recipe }, true);
        prop_assert_eq!(&frame[checksum..checksum + 2], &[0, 0]);
    }
}
