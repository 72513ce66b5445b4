//! The largest TCP segment that a backend's answer announces to a client, where the client's packets
//! come by a tunnel.

use anyhow::{Result, ensure};
use redirector::dataplane::pins::Hook;
use redirector_common::{Family, NodeConfig, Protocol, Reason, map_name::MapName};
use redirector_tests::{
    packet::{Flags, Packet, Transport},
    program::{Programs, functions},
    topology::FAMILIES,
};

use crate::{
    case::{Case, check_all},
    given::{CLIENT_PORT, Given},
    handover::{self, HERE, from_near, local, tunnelled},
    world::{self, CLIENT, LOCAL, NEAR, NODE, at},
};

const SYN_ACK: Transport = Transport::Tcp(Flags::SYN_ACK);

/// What fits into a tunnel over an interface with this MTU.
const fn fitting(family: Family, mtu: u16) -> u16 {
    match family {
        Family::V4 => mtu - 20 - 20 - 20,
        Family::V6 => mtu - 40 - 40 - 20,
    }
}

/// The option that announces segments of this size.
fn announcing(size: u16) -> Vec<u8> {
    let [high, low] = size.to_be_bytes();
    vec![2, 4, high, low]
}

fn answer(family: Family, options: &[u8]) -> Packet {
    Packet::new(SYN_ACK, local(family), at(CLIENT, family, CLIENT_PORT)).tcp_option_bytes(options)
}

fn given(family: Family) -> Given {
    Given::local(Protocol::Tcp, family)
}

/// The answer as the client gets it, with other options.
fn arriving(packet: &Packet, family: Family, options: &[u8]) -> Packet {
    packet.clone().coming_from(at(NODE, family, LOCAL)).tcp_option_bytes(options)
}

/// A row in which options become others.
fn row(name: &str, family: Family, options: &[u8], expected: &[u8]) -> Case {
    let packet = answer(family, options);
    Case::new(format!("{name} over {family:?}"), Hook::Egress, &packet)
        .given(given(family).by_tunnel())
        .delivers(Reason::LocalReply, &arriving(&packet, family, expected))
}

/// Options of a system's own, with the segment size at each place among them.
fn arrangements(size: &[u8]) -> Vec<(String, Vec<u8>)> {
    const NO_OPERATION: &[u8] = &[1];
    const WINDOW: &[u8] = &[3, 3, 7];
    const SELECTIVE: &[u8] = &[4, 2];
    const TIMESTAMPS: &[u8] = &[8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
    const COOKIE: &[u8] = &[34, 10, 1, 2, 3, 4, 5, 6, 7, 8];
    let orders: [&[&[u8]]; 9] = [
        &[size],
        &[size, SELECTIVE, TIMESTAMPS, NO_OPERATION, WINDOW],
        &[NO_OPERATION, size],
        &[NO_OPERATION, NO_OPERATION, NO_OPERATION, size],
        &[WINDOW, size, SELECTIVE],
        &[SELECTIVE, TIMESTAMPS, WINDOW, size],
        &[COOKIE, TIMESTAMPS, TIMESTAMPS, SELECTIVE, size, SELECTIVE, SELECTIVE],
        &[COOKIE, TIMESTAMPS, TIMESTAMPS, WINDOW, WINDOW, size],
        &[&[1; 36], size],
    ];
    let number = |order: &[&[u8]]| order.concat();
    (1..).zip(orders).map(|(i, order)| (format!("arrangement {i}"), number(order))).collect()
}

#[test]
fn wherever_it_stands() -> Result<()> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        let lowered = announcing(fitting(family, 1500));
        for size in [1460, 8960, 65_535, fitting(family, 1500) + 1] {
            let before = arrangements(&announcing(size));
            for ((name, before), (_, after)) in before.into_iter().zip(arrangements(&lowered)) {
                cases.push(row(&format!("{name} with {size}"), family, &before, &after));
            }
        }
    }
    check_all(cases)
}

#[test]
fn what_stays_as_it_is() -> Result<()> {
    let large: &[u8] = &[2, 4, 0xff, 0xff];
    let mut cases = Vec::new();
    for family in FAMILIES {
        for size in [0, 536, fitting(family, 1500)] {
            let small = announcing(size);
            cases.push(row("what fits", family, &small, &small));
        }
        let strange: [(&str, Vec<u8>); 9] = [
            ("nothing", vec![]),
            ("no size", vec![4, 2, 1, 1]),
            ("a size after the end", [&[0, 0, 0, 0], large].concat()),
            ("a length of zero", [&[8, 0, 1, 1], large].concat()),
            ("a length of one", [&[8, 1, 1, 1], large].concat()),
            ("a length beyond the end", [&[8, 41, 1, 1], large].concat()),
            ("a kind at the end, without its length", vec![1, 1, 1, 2]),
            ("a size that is too long", vec![2, 5, 0xff, 0xff, 0xff, 1, 1, 1]),
            ("a size that is cut", vec![1, 1, 2, 4]),
        ];
        for (name, options) in strange {
            cases.push(row(name, family, &options, &options));
        }
        // Only the answer to a SYN announces anything.
        for flags in [Flags::ACK, Flags::RST, Flags::SYN, Flags::FIN_ACK] {
            let packet = answer(family, large).flags(flags);
            cases.push(
                Case::new(format!("{flags:?} over {family:?}"), Hook::Egress, &packet)
                    .given(given(family).by_tunnel())
                    .delivers(Reason::LocalReply, &arriving(&packet, family, large)),
            );
        }
        let packet = answer(family, large);
        cases.push(
            Case::new(format!("not by a tunnel, over {family:?}"), Hook::Egress, &packet)
                .given(given(family))
                .delivers(Reason::LocalReply, &arriving(&packet, family, large)),
        );
    }
    check_all(cases)
}

/// The interface by which the answer leaves says what fits.
#[test]
fn by_a_narrow_interface() -> Result<()> {
    let rows = FAMILIES.map(|family| {
        let lowered = announcing(fitting(family, 1300));
        row("1460", family, &announcing(1460), &lowered).by("eth2")
    });
    check_all(rows.to_vec())
}

/// From the SYN in a tunnel to its answer, and without a tunnel, and where the node does not do it.
#[test]
fn who_came_by_a_tunnel_is_told() -> Result<()> {
    let node = world::build_node()?;
    node.enter(|| {
        let mut programs = Programs::load()?;
        world::fill_maps(&mut programs)?;
        handover::prepare(&mut programs)?;
        for family in FAMILIES {
            for function in functions(Hook::Xdp) {
                told(&mut programs, family, Some((Hook::Xdp, function)), true)?;
            }
            for clamps in [true, false] {
                told(&mut programs, family, None, clamps)?;
            }
        }
        Ok(())
    })
}

/// What `opening` takes out of the tunnel, or TC ingress where there is no XDP.
fn told(
    programs: &mut Programs,
    family: Family,
    opening: Option<(Hook, &str)>,
    clamps: bool,
) -> Result<()> {
    let ingress = (Hook::Ingress, functions(Hook::Ingress)[0]);
    let egress = (Hook::Egress, functions(Hook::Egress)[0]);
    let ifindex = world::ifindex("eth0")?;
    programs.change(MapName::Node, 0, |node: &mut NodeConfig| {
        node.flags = if clamps { NodeConfig::FLAG_CLAMP_MSS } else { 0 };
    })?;
    for by_tunnel in [false, true] {
        let name = format!("{family:?}, {opening:?}, clamps: {clamps}, by tunnel: {by_tunnel}");
        programs.clear_flows()?;
        let packet = from_near(Transport::Tcp(Flags::SYN), family, HERE);
        let mut bytes =
            if by_tunnel { tunnelled(&packet, family, NEAR, NODE) } else { packet.bytes() };
        if let Some(opening) = opening {
            bytes = programs.run(opening, ifindex, &bytes, 0)?.packet;
        }
        programs.run(ingress, ifindex, &bytes, 0)?;
        let reply = answer(family, &announcing(1460));
        let sent = programs.run(egress, ifindex, &reply.bytes(), 0)?.packet;
        let size = if by_tunnel && clamps { fitting(family, 1500) } else { 1460 };
        let expected =
            reply.coming_from(at(NEAR, family, HERE)).tcp_option_bytes(&announcing(size));
        ensure!(sent == expected.bytes(), "{name}: {sent:02x?}");
    }
    Ok(())
}
