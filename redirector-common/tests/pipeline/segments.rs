//! The largest segment that an answer to a SYN announces, against packets that were built anew.

use etherparse::PacketBuilder;
use proptest::prelude::*;
use redirector_common::Family;
use redirector_common::packet::{Bytes, Packet, TcpFlags, mss};

/// An answer to a SYN with these options.
fn answer(family: Family, options: &[u8]) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let ip = match family {
        Family::V4 => ethernet.ipv4([192, 0, 2, 1], [198, 51, 100, 9], 64),
        Family::V6 => ethernet.ipv6([0x20; 16], [0x21; 16], 64),
    };
    let tcp = ip.tcp(80, 40000, 1, 1024).syn().ack(2).options_raw(options).unwrap();
    let mut frame = Vec::new();
    tcp.write(&mut frame, &[]).unwrap();
    frame
}

fn lower(frame: &mut [u8], limit: u16) {
    let mut bytes = Bytes::new(frame);
    let packet = Packet::of(&bytes).unwrap();
    assert!(packet.flags.answers());
    mss::lower(&mut bytes, &packet, &mut 77, limit);
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

/// An option that is none of ours.
fn other() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(vec![1]),
        (3u8.., proptest::collection::vec(any::<u8>(), 0..8)).prop_map(|(kind, data)| {
            let len = u8::try_from(data.len() + 2).unwrap();
            [vec![kind, len], data].concat()
        }),
    ]
}

/// Options in any order, with room for one more.
fn others() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(other(), 0..8).prop_map(|options| {
        let mut all = Vec::new();
        for option in options {
            if all.len() + option.len() <= 36 {
                all.extend(option);
            }
        }
        all
    })
}

proptest! {
    #[test]
    fn equals_a_packet_built_anew(
        family in family(),
        before in others(),
        after in others(),
        size: u16,
        limit: u16,
    ) {
        let with = |size: u16| {
            let mut options = before.clone();
            options.extend([2, 4]);
            options.extend(size.to_be_bytes());
            options.extend(&after[..after.len().min(36 - before.len())]);
            answer(family, &options)
        };
        let mut frame = with(size);
        lower(&mut frame, limit);
        prop_assert_eq!(frame, with(size.min(limit)));
    }

    /// Whatever the options are, nothing but one size and the checksum changes, and that stays right.
    #[test]
    fn survives_nonsense(
        family in family(),
        options in proptest::collection::vec(0u8..12, 0..=40),
        limit: u16,
    ) {
        let before = answer(family, &options);
        let mut frame = before.clone();
        lower(&mut frame, limit);
        let start = frame.len() - options.len().next_multiple_of(4);
        prop_assert_eq!(&frame[..start - 4], &before[..start - 4]);
        let changed = (start..frame.len()).filter(|&at| frame[at] != before[at]);
        prop_assert!(changed.clone().max().unwrap_or(0) <= changed.min().unwrap_or(0) + 1);
        prop_assert_eq!(&answer(family, &frame[start..]), &frame);
    }
}

#[test]
fn what_fits_into_a_tunnel() {
    for (family, mtu, limit) in [
        (Family::V4, 1500, Some(1440)),
        (Family::V6, 1500, Some(1400)),
        (Family::V6, 1280, Some(1180)),
        (Family::V4, 61, Some(1)),
        (Family::V4, 60, None),
        (Family::V6, 0, None),
        (Family::V4, 1 << 20, Some(u16::MAX)),
    ] {
        assert_eq!(mss::limit(family, mtu), limit, "{family:?}, {mtu}");
    }
}

#[test]
fn what_answers_a_syn() {
    for (flags, answers) in
        [(0x12, true), (0x1a, true), (0x02, false), (0x16, false), (0x13, false)]
    {
        assert_eq!(TcpFlags(flags).answers(), answers, "{flags:#x}");
    }
}
