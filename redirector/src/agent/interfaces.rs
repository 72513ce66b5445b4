//! Which interfaces the agent works on, and what the data path has to know of all of them. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use redirector_common::node::{MAX_IFINDEX, MAX_SLOTS, MAX_SNAT_ADDRESSES};
use redirector_common::{Address, Family, Interface as Entry, SnatAddressKey};

use crate::config::SnatAddresses;
use crate::dataplane::netlink::{Host, Interface};
use crate::model::desired::{NodeAddresses, Side, is_link_local};

/// Counter slots by interface name. A slot stays with its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Slots {
    taken: BTreeMap<String, u16>,
}

impl Slots {
    /// With what an earlier agent gave.
    pub(super) fn new(earlier: impl Iterator<Item = (String, u16)>) -> Self {
        let mut slots = Self::default();
        for (name, slot) in earlier {
            let is_free = slots.taken.values().all(|taken| *taken != slot);
            if is_free && (1..MAX_SLOTS).contains(&u32::from(slot)) {
                slots.taken.insert(name, slot);
            }
        }
        slots
    }

    /// The slot of an interface; 0, which others share, when there is none left.
    pub(super) fn of(&mut self, name: &str) -> u16 {
        if let Some(slot) = self.taken.get(name) {
            return *slot;
        }
        let used: BTreeSet<u16> = self.taken.values().copied().collect();
        let free = (1..MAX_SLOTS)
            .filter_map(|slot| u16::try_from(slot).ok())
            .find(|slot| !used.contains(slot));
        if let Some(slot) = free {
            self.taken.insert(name.to_owned(), slot);
        }
        free.unwrap_or(0)
    }
}

/// The names of the interfaces to work on: those asked for, else every one with a default route
/// now, and those of before that still exist: a default route that is gone for a moment must not
/// interrupt anyone.
pub(super) fn choose(host: &Host, asked: Option<&[String]>, before: &[String]) -> Vec<String> {
    if let Some(asked) = asked {
        let mut seen = BTreeSet::new();
        return asked.iter().filter(|name| seen.insert(*name)).cloned().collect();
    }
    let external: Vec<String> = host.external().map(|interface| interface.name.clone()).collect();
    let mut chosen: Vec<String> =
        before.iter().filter(|name| host.find(name).is_some()).cloned().collect();
    for name in external {
        if !chosen.contains(&name) {
            chosen.push(name);
        }
    }
    chosen
}

/// The node's addresses, for the model.
pub(super) fn addresses(host: &Host, chosen: &[String]) -> NodeAddresses {
    let side = |index: u32| {
        let interface = host.interfaces.iter().find(|interface| interface.index == index)?;
        if chosen.contains(&interface.name) {
            Some(Side::Outside)
        } else {
            interface.leads_inside.then_some(Side::Inside)
        }
    };
    let sides = host.direct_routes.iter().filter_map(|(net, index)| Some((*net, side(*index)?)));
    let sides = sides.collect();
    let chosen = chosen.iter().filter_map(|name| host.find(name));
    NodeAddresses {
        chosen: chosen
            .flat_map(|interface| &interface.addresses)
            .filter(|address| address.is_global)
            .map(|address| address.address)
            .collect(),
        // Every pod's link has one of these, and nobody beyond it can use it.
        host: host.addresses().into_iter().filter(|it| !is_link_local(*it)).collect(),
        has_kube_proxy: false,
        sides,
        nodes: BTreeMap::new(),
    }
}

/// Contents of the `INTERFACES` map, given what it was. `transmits` says whether XDP may send out of
/// an interface.
///
/// An address stays the first of its interface: the kernel puts those of IPv6 that come later before
/// it. `lends`: an interface without one is lent the node's at once, and else only where it is
/// already: one that has just come gets its addresses one by one, and a flow keeps the source that
/// it began with.
pub(super) fn entries(
    host: &Host,
    chosen: &BTreeMap<String, u16>,
    before: &BTreeMap<u32, Entry>,
    lends: bool,
    transmits: impl Fn(&Interface) -> bool,
) -> BTreeMap<u32, Entry> {
    let earlier = |interface: &Interface, family| {
        before.get(&interface.index).map(|entry| entry.source(family))
    };
    let own = |interface: &Interface, family: Family| {
        let earlier = earlier(interface, family).filter(|it| {
            let mut usable =
                interface.addresses.iter().filter(|own| own.is_global && own.is_lasting);
            usable.any(|own| Address::from(own.address) == *it)
        });
        earlier.or_else(|| interface.primary(family == Family::V4).map(Address::from))
    };
    let of_node = |family| {
        let mut all = host.interfaces.iter();
        all.find_map(|interface| {
            chosen.get(&interface.name)?;
            own(interface, family)
        })
    };
    let (v4, v6) = (of_node(Family::V4), of_node(Family::V6));
    let source = |interface: &Interface, family: Family| {
        let node = match family {
            Family::V4 => v4,
            Family::V6 => v6,
        };
        let lent = node.filter(|address| lends || earlier(interface, family) == Some(*address));
        own(interface, family).or(lent).unwrap_or(Address::UNSPECIFIED)
    };
    let own_slot = |interface: &Interface| chosen.get(&interface.name).copied();
    let slot = |interface: &Interface| {
        let bond = || host.interfaces.iter().find(|it| Some(it.index) == interface.bond);
        own_slot(interface).or_else(|| own_slot(bond()?)).unwrap_or(0)
    };
    host.interfaces
        .iter()
        .filter(|interface| interface.index < MAX_IFINDEX)
        .map(|interface| {
            let entry = Entry::new(
                slot(interface),
                source(interface, Family::V4),
                source(interface, Family::V6),
                transmits(interface),
            );
            (interface.index, entry)
        })
        .collect()
}

/// Contents of the `SNAT_ADDRESSES` map, given that of `INTERFACES`: what `wish` allows of the other
/// addresses that an interface has itself. Not those that only seem to be this host's for a
/// while, as services say (`is_named`) or the kernel does.
pub(super) fn snat_addresses(
    host: &Host,
    entries: &BTreeMap<u32, Entry>,
    wish: &SnatAddresses,
    is_named: impl Fn(IpAddr) -> bool,
) -> BTreeMap<SnatAddressKey, Address> {
    let mut all = BTreeMap::new();
    for interface in &host.interfaces {
        for family in [Family::V4, Family::V6] {
            let entry = entries.get(&interface.index);
            let first = entry.map_or(Address::UNSPECIFIED, |entry| entry.source(family));
            if !interface.addresses.iter().any(|own| Address::from(own.address) == first) {
                // There is none, or it is lent.
                continue;
            }
            let mut further: Vec<(usize, Address)> = interface
                .addresses
                .iter()
                .filter(|own| own.is_global && own.is_lasting && !stays_on_link(own.address))
                .filter(|own| !is_named(own.address))
                .filter_map(|own| Some((place(wish, own.address)?, Address::from(own.address))))
                .filter(|(_, address)| address.family() == family && *address != first)
                .collect();
            further.sort_by_key(|(place, _)| *place);
            let mut seen = BTreeSet::new();
            further.retain(|(_, address)| seen.insert(*address));
            let further = (1..MAX_SNAT_ADDRESSES).zip(further);
            all.extend(further.map(|(position, (_, address))| {
                (SnatAddressKey::new(interface.index, family, position), address)
            }));
        }
    }
    all
}

/// Where an address stands among those that may be used, if it may; several may stand at one place.
fn place(wish: &SnatAddresses, address: IpAddr) -> Option<usize> {
    match wish {
        SnatAddresses::Primary => None,
        SnatAddresses::All => Some(0),
        SnatAddresses::In(networks) => {
            networks.iter().position(|network| network.contains(&address))
        }
    }
}

/// Whether nobody beyond the link could answer `address`. Unlike [`is_link_local`] of both families:
/// programs do serve at such addresses of IPv4.
fn stays_on_link(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(_) => is_link_local(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::netlink::InterfaceAddress;

    fn interface(index: u32, name: &str, addresses: &[(&str, bool)]) -> Interface {
        Interface {
            index,
            name: name.to_owned(),
            is_ethernet: true,
            is_loopback: name == "lo",
            is_veth: false,
            bond: None,
            leads_inside: name == "cni0",
            xdp: None,
            addresses: addresses
                .iter()
                .map(|(address, is_global)| InterfaceAddress {
                    address: address.parse().expect("an address"),
                    is_global: *is_global,
                    is_lasting: true,
                })
                .collect(),
        }
    }

    fn host() -> Host {
        Host {
            interfaces: vec![
                interface(1, "lo", &[("127.0.0.1", false)]),
                interface(2, "eth0", &[("192.0.2.1", true), ("fe80::1", false)]),
                interface(3, "eth1", &[("10.0.0.1", true), ("2001:db8::1", true)]),
            ],
            default_routes: BTreeSet::from([1, 2]),
            direct_routes: BTreeSet::new(),
        }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_default_is_every_interface_with_a_default_route() {
        assert_eq!(choose(&host(), None, &[]), names(&["eth0"]));
        assert_eq!(choose(&host(), None, &names(&["eth1", "gone"])), names(&["eth1", "eth0"]));
        let asked = names(&["eth1", "gone", "eth1"]);
        assert_eq!(choose(&host(), Some(&asked), &[]), names(&["eth1", "gone"]));
    }

    #[test]
    fn only_global_addresses_are_published() {
        let addresses = addresses(&host(), &names(&["eth0", "gone"]));
        assert_eq!(addresses.chosen, ["192.0.2.1".parse::<IpAddr>().expect("an address")]);
        assert_eq!(addresses.host.len(), 4);
    }

    #[test]
    fn networks_are_inside_or_outside_by_their_interface() {
        let mut host = host();
        host.interfaces.push(interface(4, "cni0", &[("10.1.0.1", true)]));
        let network = |text: &str| text.parse::<ipnet::IpNet>().expect("a network");
        host.direct_routes = BTreeSet::from([
            (network("192.0.2.0/24"), 2),
            (network("10.0.0.0/24"), 3),
            (network("10.1.0.0/24"), 4),
            (network("10.9.0.0/24"), 99),
        ]);
        let sides = addresses(&host, &names(&["eth0"])).sides;
        let expected = [("192.0.2.0/24", Side::Outside), ("10.1.0.0/24", Side::Inside)];
        assert_eq!(sides, expected.map(|(text, side)| (network(text), side)).into());
        let sides = addresses(&host, &names(&["eth0", "cni0"])).sides;
        assert_eq!(sides[&network("10.1.0.0/24")], Side::Outside);
    }

    #[test]
    fn an_interface_without_an_address_lends_the_nodes() {
        let chosen = BTreeMap::from([("eth0".to_owned(), 1), ("eth1".to_owned(), 2)]);
        let none = BTreeMap::new();
        let cautious = entries(&host(), &chosen, &none, false, |_| false);
        assert!(cautious[&2].ipv6.is_unspecified());
        let entries = entries(&host(), &chosen, &none, true, |interface| interface.index == 3);
        let again = super::entries(&host(), &chosen, &entries, false, |i| i.index == 3);
        assert_eq!(again, entries);
        let v4 = |index: u32| IpAddr::from(entries[&index].source(Family::V4)).to_string();
        let v6 = |index: u32| IpAddr::from(entries[&index].source(Family::V6)).to_string();
        assert_eq!((v4(1).as_str(), v4(3).as_str()), ("192.0.2.1", "10.0.0.1"));
        assert_eq!((v6(1).as_str(), v6(2).as_str()), ("2001:db8::1", "2001:db8::1"));
        assert_eq!((entries[&1].slot, entries[&3].slot), (0, 2));
        assert!(entries[&3].xdp_transmit() && !entries[&2].xdp_transmit());
    }

    #[test]
    fn further_addresses_are_the_interfaces_own_and_lasting() {
        let mut host = host();
        let eth0 = &mut host.interfaces[1];
        let mut add = |address: &str, is_global, is_lasting| {
            let address = address.parse().expect("an address");
            eth0.addresses.push(InterfaceAddress { address, is_global, is_lasting });
        };
        for last in 2..=11 {
            add(&format!("192.0.2.{last}"), true, true);
        }
        add("203.0.113.1", true, true);
        add("203.0.113.1", true, true);
        add("169.254.1.1", true, true);
        add("2001:db8::5", true, true);
        add("2001:db8::6", true, false);
        add("2001:db8::7", true, true);
        let chosen = BTreeMap::from([("eth0".to_owned(), 1), ("eth1".to_owned(), 2)]);
        let known = entries(&host, &chosen, &BTreeMap::new(), true, |_| false);
        let of = |wish: &SnatAddresses, index: u32, family| {
            let is_named = |address: IpAddr| address.to_string() == "192.0.2.3";
            let all = snat_addresses(&host, &known, wish, is_named);
            let at = |position| all.get(&SnatAddressKey::new(index, family, position));
            assert_eq!(at(0), None);
            (1..)
                .map_while(at)
                .map(|address| IpAddr::from(*address).to_string())
                .collect::<Vec<_>>()
        };
        let (v4, v6) = (Family::V4, Family::V6);
        let all = SnatAddresses::All;
        let expected = [2, 4, 5, 6, 7, 8, 9].map(|last| format!("192.0.2.{last}"));
        assert_eq!(of(&all, 2, v4), expected, "no more than there is room for");
        assert_eq!(of(&all, 2, v6), ["2001:db8::7"]);
        assert_eq!(of(&all, 1, v4), [""; 0], "lent, with what is lent");
        assert_eq!(of(&all, 3, v4), [""; 0]);
        assert_eq!(of(&SnatAddresses::Primary, 2, v4), [""; 0]);
        let networks = ["203.0.113.0/24", "192.0.2.1/32", "192.0.2.2/31", "2001:db8:1::/64"];
        let networks = networks.map(|text| text.parse().expect("a network"));
        let some = SnatAddresses::In(networks.into());
        assert_eq!(of(&some, 2, v4), ["203.0.113.1", "192.0.2.2"]);
        assert_eq!(of(&some, 2, v6), [""; 0]);
    }

    #[test]
    fn the_first_address_stays_so_for_as_long_as_it_lasts() {
        let mut host = host();
        let chosen = BTreeMap::from([("eth1".to_owned(), 1)]);
        let first = |host: &Host, before: &BTreeMap<u32, Entry>| {
            let entries = entries(host, &chosen, before, true, |_| false);
            (IpAddr::from(entries[&3].source(Family::V6)).to_string(), entries)
        };
        let (address, before) = first(&host, &BTreeMap::new());
        assert_eq!(address, "2001:db8::1");
        let newer = InterfaceAddress {
            address: "2001:db8::2".parse().expect("an address"),
            is_global: true,
            is_lasting: true,
        };
        host.interfaces[2].addresses.insert(0, newer);
        assert_eq!(first(&host, &before).0, "2001:db8::1");
        host.interfaces[2].addresses[2].is_lasting = false;
        assert_eq!(first(&host, &before).0, "2001:db8::2");
        host.interfaces[2].addresses[0].is_lasting = false;
        assert_eq!(first(&host, &BTreeMap::new()).0, "2001:db8::2", "for want of a better one");
    }

    #[test]
    fn a_bonds_members_count_for_it() {
        let mut host = host();
        host.interfaces.push(Interface { bond: Some(2), ..interface(4, "port0", &[]) });
        host.interfaces.push(Interface { bond: Some(3), ..interface(5, "port1", &[]) });
        let chosen = BTreeMap::from([("eth0".to_owned(), 1)]);
        let entries = entries(&host, &chosen, &BTreeMap::new(), true, |_| false);
        assert_eq!((entries[&4].slot, entries[&5].slot), (1, 0));
    }

    #[test]
    fn slots_stay_with_their_names() {
        let earlier = [("eth0", 5), ("eth1", 5), ("eth2", 0), ("eth3", 64)];
        let mut slots = Slots::new(earlier.iter().map(|(name, slot)| ((*name).to_owned(), *slot)));
        assert_eq!((slots.of("eth0"), slots.of("eth1"), slots.of("eth2")), (5, 1, 2));
        for i in 0..61 {
            slots.of(&i.to_string());
        }
        assert_eq!(slots.of("one more"), 0);
    }
}
