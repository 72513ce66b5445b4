//! Everything that a scene of single packets takes: programs, tables, sockets.

use std::net::{IpAddr, SocketAddr, TcpListener};

use anyhow::{Context as _, Result, ensure};
use aya::programs::ProgramFd;
use redirector_common::{Family, Protocol};

use crate::floor::{Floor, Kind};
use crate::frame::Frame;
use crate::harness::{Harness, Hook, Packets};
use crate::layout::{Listener, Target};
use crate::node::{self, NODE, NODE_INSIDE};
use crate::ours::{BACKEND_PORT, FAMILIES, Ours, SNAT_FIRST, backend_address};
use crate::packet::{Family4, Subject};
use crate::sampling::uninterrupted;
use crate::scene::{Case, Scene};
use crate::steer::{self, Attached, Sockets};

/// Packets in a sample that come in by an interface, at least.
const LIVE: u32 = 1 << 14;
/// Packets in a sample, at least.
const PACKETS: u32 = 1 << 18;

/// Everything loaded and filled for a scene.
pub(crate) struct Stage {
    scene: Scene,
    harness: Harness,
    /// Others, to be attached.
    floors: Harness,
    /// With all flows; one for those to this host; one without any.
    remote: Ours,
    local: Ours,
    handed_over: Ours,
    fresh: Ours,
    /// The socket that is looked up.
    _listener: TcpListener,
    _sockets: Option<Sockets>,
}

impl Stage {
    pub(crate) fn set(scene: &Scene) -> Result<Self> {
        let mut harness = Harness::load(scene.flows)?;
        harness.set_target(target()?)?;
        let (listener, address) = listen()?;
        harness.set_listener(address)?;
        let mut floors = Harness::load(1)?;
        floors.set_listener(address)?;
        steer::prepare()?;
        // Two halves in each family; the smallest table is the agent's own.
        let halves = (scene.flows * 5).max(262_144);
        let mut remote = Ours::load(halves, scene.services)?;
        let mut local = Ours::load(halves, 1)?;
        let mut handed_over = Ours::load((scene.flows * 9).max(halves), scene.services)?;
        for family in FAMILIES {
            scene.add_flows(&mut remote, family)?;
            scene.add_flows_handed_over(&mut handed_over, family)?;
            if scene.has(Case::LocalEstablished) {
                scene.add_local_flows(&mut local, family)?;
            }
        }
        let fresh = Ours::load(halves, scene.services)?;
        let sockets = scene.has(Case::SteerSyn).then(|| scene.open_sockets()).transpose()?;
        let mut stage = Self {
            scene: *scene,
            harness,
            floors,
            remote,
            local,
            handed_over,
            fresh,
            _listener: listener,
            _sockets: sockets,
        };
        let packets = stage.floor_packets(Floor::ParseTx, Family::V4)?;
        let fill = stage.harness.named("f_fill")?;
        stage.harness.run(&fill, &packets, scene.flows)?;
        let cache = stage.harness.program(Floor::Cache)?;
        ensure!(stage.harness.take_misses()? == 0, "the floors' tables took not all flows");
        stage.harness.run(&cache, &packets, scene.flows)?;
        stage.harness.take_misses()?;
        Ok(stage)
    }

    /// Forgets the flows that were recorded.
    pub(crate) fn spoil(&mut self) -> Result<()> {
        self.remote.clear_flows().map(drop)
    }

    /// After checks: a flow that is looked at alone may be one that a cache had thrown out.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.harness.take_misses().map(drop)
    }

    /// What is run by turns.
    pub(crate) fn subjects(&self) -> Vec<Subject> {
        let mut subjects = vec![Subject::Alone(Hook::Xdp), Subject::Alone(Hook::Tc)];
        for &floor in Floor::ALL {
            for family in FAMILIES {
                // The transport makes no difference to floors: with UDP, only what is needed.
                let wanted = self.scene.protocol == Protocol::Tcp || floor.is_compared();
                // One insert takes no time that could be measured.
                let wanted = wanted && (self.scene.flows > 1 || !floor.inserts());
                let wanted = wanted
                    && (floor != Floor::SkcConnection || self.scene.has(Case::SteerEstablished));
                if wanted && (family == Family::V4 || floor.takes_ipv6()) {
                    subjects.push(Subject::Floor(floor, family.into()));
                }
            }
        }
        for case in Case::ALL {
            if self.scene.has(case) {
                subjects.extend(FAMILIES.map(|family| Subject::Ours(case, family.into())));
            }
        }
        if self.scene.has(Case::SteerSyn) {
            for family in FAMILIES {
                subjects.push(Subject::Live(Floor::ReturnTc, family.into()));
            }
            subjects.push(Subject::Live(Floor::SkcLookup, Family4::V4));
        }
        subjects
    }

    /// Floors see TCP.
    fn floor_packets(&self, floor: Floor, family: Family) -> Result<Packets> {
        let scene = Scene { protocol: Protocol::Tcp, ..self.scene };
        let case = match floor.hook() {
            Hook::Xdp => Case::Established,
            Hook::Tc if floor == Floor::SkcConnection => Case::SteerEstablished,
            Hook::Tc => Case::LocalEstablished,
        };
        scene.packets(case, family)
    }

    fn ours(&mut self, case: Case) -> &mut Ours {
        match case {
            Case::Established | Case::Reply | Case::NotOurs => &mut self.remote,
            Case::New => &mut self.fresh,
            Case::DsrLayer2 | Case::DsrTunnel => &mut self.handed_over,
            Case::LocalEstablished | Case::SteerEstablished | Case::SteerSyn => &mut self.local,
        }
    }

    fn packets(&self, subject: Subject) -> Result<Packets> {
        match subject {
            Subject::Alone(hook) => {
                let floor = if hook == Hook::Xdp { Floor::Return } else { Floor::ReturnTc };
                self.floor_packets(floor, Family::V4)
            }
            Subject::Floor(floor, family) => self.floor_packets(floor, family.into()),
            Subject::Live(_, family) => self.scene.packets(Case::SteerSyn, family.into()),
            Subject::Ours(case, family) => self.scene.packets(case, family.into()),
        }
    }

    fn program(&mut self, subject: Subject) -> Result<Option<ProgramFd>> {
        Ok(match subject {
            Subject::Alone(_) | Subject::Live(..) | Subject::Ours(Case::SteerSyn, _) => None,
            Subject::Floor(floor, _) => Some(self.harness.program(floor)?),
            Subject::Ours(case, _) => Some(self.ours(case).program(case.hook())?),
        })
    }

    /// Runs one packet and looks at what came out.
    pub(crate) fn check(&mut self, subject: Subject) -> Result<()> {
        let packets = self.packets(subject)?;
        let Some(program) = self.program(subject)? else {
            return match subject {
                Subject::Ours(Case::SteerSyn, _) => self.sample_live(subject, 1).map(drop),
                Subject::Alone(_) | Subject::Floor(..) | Subject::Live(..) | Subject::Ours(..) => {
                    Ok(())
                }
            };
        };
        let ran = self.harness.run(&program, &packets, 1)?;
        match subject {
            Subject::Alone(_) | Subject::Live(..) => Ok(()),
            Subject::Floor(floor, _) => {
                let sent = packets.of_flow(packets.first_flow());
                let more = if floor != Floor::Grow {
                    0
                } else if sent.source.is_ipv4() {
                    20
                } else {
                    40
                };
                let found = ran.packet.get(more..).context("the packet is short")?;
                expected(floor, sent).check(found)?;
                ensure!(ran.verdict == verdict(floor), "verdict {}", ran.verdict);
                if floor.inserts() { self.remove(&packets, 1) } else { Ok(()) }
            }
            Subject::Ours(case, family) => {
                let scene = self.scene;
                let ours = self.ours(case);
                scene.check(case, family.into(), ours, &ran)?;
                if matches!(case, Case::New) {
                    ours.clear_flows()?;
                }
                Ok(())
            }
        }
    }

    /// Nanoseconds a packet, over many packets.
    pub(crate) fn sample(&mut self, subject: Subject) -> Result<f64> {
        uninterrupted(self, |stage| stage.sample_once(subject), |stage| stage.tidy(subject))
    }

    /// Forgets what half a sample has left behind.
    fn tidy(&mut self, subject: Subject) -> Result<()> {
        self.fresh.clear_flows()?;
        if let Subject::Floor(floor, _) = subject
            && floor.inserts()
        {
            let (remove, packets) = (self.harness.named("f_remove")?, self.packets(subject)?);
            // Not all are there; and if this, too, is broken off, the sample will say so.
            let _ = self.harness.run(&remove, &packets, self.scene.flows);
        }
        self.harness.take_misses().map(drop)
    }

    fn sample_once(&mut self, subject: Subject) -> Result<f64> {
        let packets = self.packets(subject)?;
        let all = PACKETS.max(self.scene.flows);
        if matches!(subject, Subject::Live(..) | Subject::Ours(Case::SteerSyn, _)) {
            return self.sample_live(subject, LIVE.max(self.scene.flows));
        }
        let Some(program) = self.program(subject)? else {
            let name = match packets.hook {
                Hook::Xdp => Floor::Return.program(),
                Hook::Tc => Floor::ReturnTc.program(),
            };
            return Ok(self.harness.run_alone(name, &packets, all)?.ns);
        };
        match subject {
            Subject::Floor(floor, _) if floor.inserts() => self.sample_inserts(&program, &packets),
            Subject::Alone(_) | Subject::Live(..) | Subject::Floor(..) => {
                self.warm_up(&program, &packets)?;
                let counted = self.harness.counted()?;
                let ran = self.harness.run(&program, &packets, all)?;
                if let Subject::Floor(floor, _) = subject {
                    let misses = self.harness.take_misses()?;
                    // The last flow may be one for which there was no room.
                    let right = ran.verdict == verdict(floor) || misses > 0;
                    ensure!(right, "verdict {}", ran.verdict);
                    let tolerated = floor.tolerated_misses(self.scene.flows) * f64::from(all);
                    ensure!(misses as f64 <= tolerated, "{misses} look-ups of {all} failed");
                    let counts = self.harness.counted()? - counted;
                    let expected = u64::from(floor.counts()) * u64::from(all);
                    ensure!(counts + misses >= expected, "counted {counts} of {expected}");
                }
                Ok(ran.ns)
            }
            Subject::Ours(Case::New, _) => self.sample_new(&program, &packets),
            Subject::Ours(case, _) => {
                self.warm_up(&program, &packets)?;
                let before = counted(self.ours(case), case)?;
                let ran = self.harness.run(&program, &packets, all)?;
                ensure!(ran.verdict == case.verdict(), "verdict {}", ran.verdict);
                let after = counted(self.ours(case), case)?;
                let expected = if case.reason().is_some() { u64::from(all) } else { 0 };
                ensure!(after - before == expected, "counted {} of {expected}", after - before);
                Ok(ran.ns)
            }
        }
    }

    /// Packets that come in by an interface and open connections.
    fn sample_live(&mut self, subject: Subject, count: u32) -> Result<f64> {
        let packets = self.packets(subject)?;
        let Subject::Ours(case, _) = subject else {
            let Subject::Live(floor, _) = subject else {
                anyhow::bail!("{subject:?} has no live packets");
            };
            // Nothing is borrowed twice: one floor is measured by packets of another instance.
            let attached = Attached::new(self.floors.classifier(floor)?)?;
            let ns = steer::time(&mut self.harness, &attached, &packets, count)?;
            drop(attached);
            let misses = self.floors.take_misses()?;
            ensure!(misses == 0, "{misses} look-ups of {count} failed");
            return Ok(ns);
        };
        let (cookies, before) = (steer::cookies()?, counted(&self.local, case)?);
        let attached = Attached::new(self.local.ingress()?)?;
        let ns = steer::time(&mut self.harness, &attached, &packets, count)?;
        drop(attached);
        let handed_over = counted(&self.local, case)? - before;
        ensure!(handed_over == u64::from(count), "{handed_over} of {count} were handed over");
        let answered = steer::cookies()? - cookies;
        ensure!(answered == u64::from(count), "the listener answered {answered} of {count}");
        Ok(ns)
    }

    /// One packet of each flow, not measured: a program finds processor and tables as its own
    /// traffic leaves them, not as those that had their turn meanwhile did.
    fn warm_up(&mut self, program: &ProgramFd, packets: &Packets) -> Result<()> {
        self.harness.run(program, packets, self.scene.flows)?;
        self.harness.take_misses()?;
        Ok(())
    }

    /// Takes out again what a floor inserted.
    fn remove(&mut self, packets: &Packets, flows: u32) -> Result<()> {
        let remove = self.harness.named("f_remove")?;
        self.harness.run(&remove, packets, flows)?;
        let misses = self.harness.take_misses()?;
        ensure!(misses == 0, "{misses} inserts or removals of {flows} failed");
        Ok(())
    }

    /// As [`Self::sample_new`], for floors.
    fn sample_inserts(&mut self, program: &ProgramFd, packets: &Packets) -> Result<f64> {
        let flows = self.scene.flows;
        let passes = (16384 / flows).clamp(1, 16);
        let mut sum = 0.0;
        for _ in 0..passes {
            sum += self.harness.run(program, packets, flows)?.ns;
            self.remove(packets, flows)?;
        }
        Ok(sum / f64::from(passes))
    }

    /// Every flow once, into an empty table; several times where flows are few.
    fn sample_new(&mut self, program: &ProgramFd, packets: &Packets) -> Result<f64> {
        let flows = self.scene.flows;
        let passes = (16384 / flows).clamp(1, 16);
        let mut sum = 0.0;
        for _ in 0..passes {
            let before = counted(&self.fresh, Case::New)?;
            sum += self.harness.run(program, packets, flows)?.ns;
            let opened = counted(&self.fresh, Case::New)? - before;
            ensure!(opened == u64::from(flows), "{opened} of {flows} flows were opened");
            let halves = self.fresh.clear_flows()?;
            ensure!(halves == 2 * flows as usize, "{halves} halves of {flows} flows");
        }
        Ok(sum / f64::from(passes))
    }
}

fn counted(ours: &Ours, case: Case) -> Result<u64> {
    case.reason().map_or(Ok(0), |reason| ours.counted(reason))
}

/// What floors translate to.
fn target() -> Result<Target> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) =
        (NODE_INSIDE.of(Family::V4), backend_address(Family::V4, 0))
    else {
        anyhow::bail!("floors translate IPv4 only");
    };
    let [a, b] = SNAT_FIRST.to_be_bytes();
    let [c, d] = BACKEND_PORT.to_be_bytes();
    Ok(Target {
        source: u32::from_ne_bytes(source.octets()),
        destination: u32::from_ne_bytes(destination.octets()),
        ports: u32::from_ne_bytes([a, b, c, d]),
        ifindex: node::ifindex("eth1")?,
    })
}

/// Opens the socket that a floor looks up.
fn listen() -> Result<(TcpListener, Listener)> {
    let IpAddr::V4(address) = NODE.of(Family::V4) else {
        anyhow::bail!("the node has no IPv4 address");
    };
    let listener = TcpListener::bind((address, 0)).context("cannot listen on the node")?;
    let port = listener.local_addr()?.port().to_be();
    let address = u32::from_ne_bytes(address.octets());
    Ok((listener, Listener { address, port, reserved: 0 }))
}

/// What a floor makes of a packet.
fn expected(floor: Floor, sent: Frame) -> Frame {
    let [destination, source] = sent.link;
    let back = Frame { link: [source, destination], ..sent };
    let translated = Frame {
        source: SocketAddr::new(NODE_INSIDE.of(Family::V4), SNAT_FIRST),
        destination: SocketAddr::new(backend_address(Family::V4, 0), BACKEND_PORT),
        ttl: sent.ttl - 1,
        ..back
    };
    match floor.kind() {
        Kind::Pass | Kind::Grow => sent,
        Kind::Back | Kind::Redirect => back,
        Kind::Translate | Kind::Forward => translated,
        Kind::ForwardRouted => Frame { link: [[0, 1, 2, 3, 4, 5]; 2], ..translated },
    }
}

fn verdict(floor: Floor) -> u32 {
    match (floor.kind(), floor.hook()) {
        (Kind::Pass | Kind::Grow, Hook::Xdp) => 2,
        (_, Hook::Tc) => 0,
        (Kind::Back | Kind::Translate, Hook::Xdp) => 3,
        (Kind::Redirect | Kind::Forward | Kind::ForwardRouted, Hook::Xdp) => 4,
    }
}
