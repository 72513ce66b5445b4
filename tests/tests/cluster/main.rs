//! Cluster tier: agents on nodes of a cluster, against an API server. Most tests carry the name of
//! the test of Kubernetes (`test/e2e/network`) whose behaviour they show. Needs root and the
//! program: see `redirector_tests::cli::program`.

mod services;
