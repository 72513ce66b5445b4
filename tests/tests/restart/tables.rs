//! What stands in the maps is taken over as it is, and put right where it is wrong.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use redirector::dataplane::maps::Maps;
use redirector::dataplane::pinned::Pinned;
use redirector::dataplane::pins::Pins;
use redirector_common::service::{MAGLEV_LINE, MaglevLine};
use redirector_common::{BackendId, Origin, Service, ServiceId};
use redirector_tests::agent::Lab;

/// Tables of several lines, one of them at the very start of the map.
const CONFIG: &str = "
services:
  - name: web
    frontends:
      - {port: 81, protocol: TCP}
    backends:
      - {address: 198.18.2.2, port: 8080}
      - {address: 198.18.2.2, port: 8081}
      - {address: 198.18.2.2, port: 8082}
  - name: dns
    frontends:
      - {port: 54, protocol: UDP}
    backends:
      - {address: 198.18.2.2, port: 5353}
      - {address: 198.18.2.2, port: 5354}
";

/// Services, and the lines of their tables.
#[derive(Debug, PartialEq, Eq)]
struct Tables {
    services: BTreeMap<ServiceId, Service>,
    lines: BTreeMap<u32, MaglevLine>,
}

impl Tables {
    fn read(lab: &Lab) -> Result<Self> {
        let maps = Pinned::open(Pins::new(lab.bpffs.pins()))?;
        Ok(Self { services: maps.services()?, lines: maps.maglev()? })
    }

    /// The entries of a service's table.
    fn entries(&self, service: &Service) -> Vec<BackendId> {
        let (offset, size) = service.table(Origin::Outside);
        let lines = self.lines.range(offset / MAGLEV_LINE..);
        lines.flat_map(|(_, line)| line.entries).take(size as usize).collect()
    }
}

#[test]
fn taken_over_and_put_right() -> Result<()> {
    Lab::run_with(CONFIG, |lab| {
        let before = Tables::read(lab)?;
        ensure!(before.lines.len() > 20, "{} lines of tables", before.lines.len());
        lab.kill()?;
        lab.start(&[])?;
        ensure!(Tables::read(lab)? == before, "tables that were right have moved");

        lab.kill()?;
        let (wrong, line) = before.lines.iter().nth(10).context("no line")?;
        let mut rotated = *line;
        rotated.entries.rotate_left(1);
        ensure!(rotated != *line, "a line of one backend alone");
        let mut maps = Maps::open(&Pins::new(lab.bpffs.pins()))?;
        maps.services.maglev.set_lines(&[(*wrong, rotated)])?;
        lab.start(&[])?;
        let after = Tables::read(lab)?;
        for (id, service) in &before.services {
            let found = after.services.get(id).with_context(|| format!("service {id} went"))?;
            ensure!(after.entries(found) == before.entries(service), "service {id}: other entries");
            let (offset, size) = service.table(Origin::Outside);
            let is_right = !(offset..offset + size).contains(&(wrong * MAGLEV_LINE));
            ensure!(!is_right || found == service, "service {id} was right and has changed");
        }
        Ok(())
    })
}
