//! Restart tier: the agent comes and goes with traffic running, and nothing is lost. Needs root
//! and the program: see `redirector_tests::cli::program`.

mod addresses;
mod changes;
mod detach;
mod load;
mod resize;
mod restarts;
mod tables;
