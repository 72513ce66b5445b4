//! The API server's worst day.

use std::{thread, time::Duration};

use anyhow::Result;
use redirector_tests::{
    apiserver::{Failure, Order, Pace, Requests},
    cluster::Cluster,
};

use crate::chaos_objects::Dice;

const KINDS: [Option<&str>; 5] =
    [None, Some("services"), Some("endpointslices"), Some("nodes"), Some("pods")];

const FAILURES: [Failure; 7] = [
    Failure::Gone,
    Failure::Unauthorized,
    Failure::Forbidden,
    Failure::TooMany,
    Failure::Unavailable,
    Failure::Cut,
    Failure::CutHalfway,
];

/// Does one bad thing.
pub(crate) fn disturb(cluster: &mut Cluster, dice: &mut Dice) -> Result<()> {
    let kind = *dice.pick(&KINDS);
    let faults = cluster.api.faults();
    match dice.below(12) {
        0..=3 => {
            let orders = [Order::Cut, Order::Expire, Order::End, Order::Bookmark];
            faults.order(*dice.pick(&orders), kind);
        }
        4..=6 => {
            let requests = dice.pick(&[Requests::ALL, Requests::LISTS, Requests::WATCHES]);
            faults.fail(*requests, *dice.pick(&FAILURES), dice.below(3) + 1);
        }
        7 => cluster.api.store().compact(),
        8 => faults.set_streaming_lists(dice.one_in(2)),
        9 => faults.slow(Pace { bytes: 200, pause: Duration::from_millis(1) }),
        10 => faults.heal(),
        _ => {
            cluster.api.stop();
            // For as long as it takes a server to restart.
            let away = u64::try_from(dice.below(300))?;
            thread::sleep(Duration::from_millis(away));
            cluster.api.start(Some(&cluster.net.router))?;
        }
    }
    Ok(())
}
