//! Cluster tier
