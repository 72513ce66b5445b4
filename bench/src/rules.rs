//! Rule sets with the shape of kube-proxy's, for node ports with traffic policy Cluster.
//!
//! As its documentation and its own tests show them: in nftables verdict maps lead from port to
//! service and random numbers to endpoints; in iptables a rule for each cluster address and each
//! node port is walked through, and endpoints are drawn with falling probability. Both mark what
//! came in by a node port, and masquerade what is marked.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use redirector_common::{Family, Protocol};
use redirector_tests::namespace::{Namespace, run};

/// Which of kube-proxy's modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Mode {
    Nftables,
    Iptables,
}

/// Services of one family.
#[derive(Clone, Debug)]
pub(crate) struct Services {
    pub(crate) protocol: Protocol,
    /// The address of the node that clients hit.
    pub(crate) node: IpAddr,
    /// Node port of the first service; the others follow.
    pub(crate) first_port: u16,
    /// Endpoints of each service.
    pub(crate) endpoints: Vec<Vec<SocketAddr>>,
}

impl Services {
    fn family(&self) -> Family {
        if self.node.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    fn protocol(&self) -> &'static str {
        match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }

    fn node_port(&self, service: usize) -> usize {
        usize::from(self.first_port) + service
    }

    fn cluster_address(&self, service: usize) -> IpAddr {
        let number = service as u32 + 1;
        match self.family() {
            Family::V4 => {
                IpAddr::V4(Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 0).to_bits() + number))
            }
            Family::V6 => {
                let first = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0).to_bits();
                IpAddr::V6(Ipv6Addr::from_bits(first + u128::from(number)))
            }
        }
    }

    /// Loads the rules on a host, which they replace.
    pub(crate) fn load(&self, mode: Mode, host: &Namespace) -> Result<()> {
        let (program, rules) = match mode {
            Mode::Nftables => ("nft", self.nftables()),
            Mode::Iptables => (self.restore(), self.iptables()),
        };
        let mut command = host.command(program);
        if mode == Mode::Nftables {
            command.args(["-f", "-"]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A refusal is told by what it prints.
            let _ = stdin.write_all(rules.as_bytes());
        }
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        let first: Vec<&str> = said.lines().take(4).collect();
        ensure!(output.status.success(), "{program}: {}: {}", output.status, first.join("; "));
        Ok(())
    }

    /// Walking through rules in the kernel's own format is faster than through those that are
    /// translated to nftables: the peer is to be as fast as it can be.
    fn restore(&self) -> &'static str {
        let (legacy, any) = match self.family() {
            Family::V4 => ("iptables-legacy-restore", "iptables-restore"),
            Family::V6 => ("ip6tables-legacy-restore", "ip6tables-restore"),
        };
        if run(legacy, ["--version"]).is_ok() { legacy } else { any }
    }

    /// For `nft -f`.
    pub(crate) fn nftables(&self) -> String {
        let (ip, address) = match self.family() {
            Family::V4 => ("ip", "ipv4_addr"),
            Family::V6 => ("ip6", "ipv6_addr"),
        };
        let protocol = self.protocol();
        let numbers = 0..self.endpoints.len();
        let list = |element: &dyn Fn(usize) -> String| {
            numbers.clone().map(element).collect::<Vec<_>>().join(", ")
        };
        let name = |service: usize| format!("{service:08}-bench/web-{service}/{protocol}/http");
        let cluster_ips = list(&|service| self.cluster_address(service).to_string());
        let service_ips = list(&|service| {
            let address = self.cluster_address(service);
            format!("{address} . {protocol} . 80 : goto service-{}", name(service))
        });
        let node_ports = list(&|service| {
            let port = self.node_port(service);
            format!("{protocol} . {port} : goto external-{}", name(service))
        });
        let node = self.node;
        let mut rules = format!(
            "table {ip} kube-proxy {{
 set cluster-ips {{ type {address}; elements = {{ {cluster_ips} }} }}
 set nodeport-ips {{ type {address}; elements = {{ {node} }} }}
 map firewall-ips {{ type {address} . inet_proto . inet_service : verdict; }}
 map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}
 map no-endpoint-services {{ type {address} . inet_proto . inet_service : verdict; }}
 map service-ips {{ type {address} . inet_proto . inet_service : verdict; elements = {{ {service_ips} }} }}
 map service-nodeports {{ type inet_proto . inet_service : verdict; elements = {{ {node_ports} }} }}
 chain cluster-ips-check {{ {ip} daddr @cluster-ips reject; }}
 chain firewall-check {{ {ip} daddr . meta l4proto . th dport vmap @firewall-ips; }}
 chain nodeport-endpoints-check {{ {ip} daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }}
 chain service-endpoints-check {{ {ip} daddr . meta l4proto . th dport vmap @no-endpoint-services; }}
 chain mark-for-masquerade {{ meta mark set meta mark or 0x4000; }}
 chain masquerading {{
  meta mark and 0x4000 == 0 return
  meta mark set meta mark xor 0x4000
  masquerade fully-random
 }}
 chain services {{
  {ip} daddr . meta l4proto . th dport vmap @service-ips
  {ip} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
 }}
 chain filter-prerouting-pre-dnat {{ type filter hook prerouting priority -110; ct state new jump firewall-check; }}
 chain filter-output-pre-dnat {{ type filter hook output priority -110; ct state new jump firewall-check; }}
 chain filter-input {{ type filter hook input priority 0; ct state new jump nodeport-endpoints-check; ct state new jump service-endpoints-check; }}
 chain filter-forward {{ type filter hook forward priority 0; ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }}
 chain filter-output {{ type filter hook output priority 0; ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }}
 chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}
 chain nat-output {{ type nat hook output priority -100; jump services; }}
 chain nat-postrouting {{ type nat hook postrouting priority 100; jump masquerading; }}
"
        );
        for (service, endpoints) in self.endpoints.iter().enumerate() {
            let name = name(service);
            let cluster = self.cluster_address(service);
            let endpoint = |to: &SocketAddr| {
                format!("endpoint-{name}__{}/{}", chain_address(to.ip()), to.port())
            };
            let drawn: Vec<String> = endpoints
                .iter()
                .enumerate()
                .map(|(i, to)| format!("{i} : goto {}", endpoint(to)))
                .collect();
            for to in endpoints {
                let _ = writeln!(
                    rules,
                    " chain {} {{ {ip} saddr {} jump mark-for-masquerade; meta l4proto {protocol} dnat to {to}; }}",
                    endpoint(to),
                    to.ip(),
                );
            }
            let _ = writeln!(
                rules,
                " chain service-{name} {{ {ip} daddr {cluster} {protocol} dport 80 {ip} saddr != {} jump mark-for-masquerade; numgen random mod {} vmap {{ {} }}; }}
 chain external-{name} {{ jump mark-for-masquerade; goto service-{name}; }}",
                self.pods(),
                endpoints.len(),
                drawn.join(", "),
            );
        }
        rules + "}\n"
    }

    /// For `iptables-restore` or `ip6tables-restore`.
    pub(crate) fn iptables(&self) -> String {
        let protocol = self.protocol();
        let mut chains = String::new();
        let mut rules = String::new();
        for (service, endpoints) in self.endpoints.iter().enumerate() {
            let cluster = self.cluster_address(service);
            let comment = format!("-m comment --comment bench/web-{service}:http");
            let _ = writeln!(
                chains,
                ":KUBE-EXT-{service:016} - [0:0]\n:KUBE-SVC-{service:016} - [0:0]"
            );
            let _ = writeln!(
                rules,
                "-A KUBE-SERVICES {comment} -p {protocol} -m {protocol} -d {cluster} --dport 80 -j KUBE-SVC-{service:016}
-A KUBE-NODEPORTS {comment} -p {protocol} -m {protocol} --dport {} -j KUBE-EXT-{service:016}
-A KUBE-EXT-{service:016} {comment} -j KUBE-MARK-MASQ
-A KUBE-EXT-{service:016} -j KUBE-SVC-{service:016}
-A KUBE-SVC-{service:016} {comment} -p {protocol} -m {protocol} -d {cluster} --dport 80 ! -s {} -j KUBE-MARK-MASQ",
                self.node_port(service),
                self.pods(),
            );
            for (i, to) in endpoints.iter().enumerate() {
                let left = endpoints.len() - i;
                let chance = if left == 1 {
                    String::new()
                } else {
                    format!("-m statistic --mode random --probability {:.10} ", 1.0 / left as f64)
                };
                let chain = format!("KUBE-SEP-{service:08}{i:08}");
                let _ = writeln!(chains, ":{chain} - [0:0]");
                let _ = writeln!(
                    rules,
                    "-A KUBE-SVC-{service:016} {comment} {chance}-j {chain}
-A {chain} {comment} -s {} -j KUBE-MARK-MASQ
-A {chain} {comment} -p {protocol} -m {protocol} -j DNAT --to-destination {to}",
                    to.ip(),
                );
            }
        }
        let new = "-m conntrack --ctstate NEW";
        format!(
            "*filter
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT {new} -j KUBE-PROXY-FIREWALL
-A INPUT -j KUBE-NODEPORTS
-A INPUT {new} -j KUBE-EXTERNAL-SERVICES
-A FORWARD {new} -j KUBE-PROXY-FIREWALL
-A FORWARD -j KUBE-FORWARD
-A FORWARD {new} -j KUBE-SERVICES
-A FORWARD {new} -j KUBE-EXTERNAL-SERVICES
-A OUTPUT {new} -j KUBE-PROXY-FIREWALL
-A OUTPUT {new} -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
{chains}-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
{rules}-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
COMMIT
"
        )
    }

    /// The pods' network, from which nothing comes here.
    fn pods(&self) -> &'static str {
        match self.family() {
            Family::V4 => "10.244.0.0/16",
            Family::V6 => "fd00:10:244::/56",
        }
    }
}

/// In the name of a chain, a colon would end it.
fn chain_address(address: IpAddr) -> String {
    address.to_string().replace(':', ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services(node: IpAddr, endpoint: IpAddr) -> Services {
        let endpoints = |count| (0..count).map(|i| SocketAddr::new(endpoint, 8080 + i)).collect();
        Services {
            protocol: Protocol::Udp,
            node,
            first_port: 30_000,
            endpoints: vec![endpoints(3), endpoints(1)],
        }
    }

    fn v4() -> Services {
        services(Ipv4Addr::new(192, 0, 2, 1).into(), Ipv4Addr::new(10, 0, 0, 1).into())
    }

    #[test]
    fn each_endpoint_is_drawn_equally() {
        let rules = v4().iptables();
        let chances: Vec<&str> = rules
            .split("--probability ")
            .skip(1)
            .filter_map(|rest| rest.split(' ').next())
            .collect();
        // The last one takes what is left, and so does the only one of the second service.
        assert_eq!(chances, ["0.3333333333", "0.5000000000"]);
    }

    #[test]
    fn node_ports_come_last_and_lead_to_their_service() {
        let rules = v4().iptables();
        let lines: Vec<&str> = rules.lines().filter(|line| line.starts_with("-A")).collect();
        let last = "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS";
        assert_eq!(lines.last(), Some(&last));
        assert!(
            lines.iter().any(|line| line.contains("--dport 30001 -j KUBE-EXT-0000000000000001"))
        );
    }

    #[test]
    fn verdict_maps_have_an_element_for_each_service() {
        let rules = v4().nftables();
        assert!(rules.contains("udp . 30000 : goto external-00000000-bench/web-0/udp/http"));
        assert!(rules.contains("udp . 30001 : goto external-00000001-bench/web-1/udp/http"));
        assert!(rules.contains("numgen random mod 3 vmap { 0 : goto endpoint-00000000-"));
        assert!(rules.contains("dnat to 10.0.0.1:8082;"));
    }

    #[test]
    fn names_of_chains_have_no_colons() {
        let six = services(Ipv6Addr::LOCALHOST.into(), Ipv6Addr::UNSPECIFIED.into());
        let rules = six.nftables();
        let names = rules.split_whitespace().filter(|word| word.starts_with("endpoint-"));
        assert!(names.into_iter().all(|name| !name.contains(':')));
        assert!(rules.contains("dnat to [::]:8080;"));
    }
}
