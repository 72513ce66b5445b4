//! Who watches what.

use redirector_common::{Reason, Watch};

use crate::cli::map::record::{Record, record};

/// What somebody wants to be told; nothing where nobody watches.
pub(super) fn records(watch: &Watch) -> Vec<Record> {
    if watch.until == 0 {
        return Vec::new();
    }
    let wanted = |reason: &&Reason| watch.wants(**reason as u32);
    let reasons: Vec<_> = Reason::ALL.iter().filter(wanted).map(|it| it.name()).collect();
    vec![record! {
        "until": watch.until,
        "sample": watch.sample,
        "snap": watch.snap,
        "reasons": reasons,
    }]
}
