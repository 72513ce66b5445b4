//! Rewriting against packets that were built anew.

use proptest::prelude::*;
use redirector_common::packet::{Bytes, Packet, rewrite};

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
