//! Fixtures of the integration tests: namespaces, packet builders, servers and clients.
