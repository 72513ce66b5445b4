//! The pure packet code.
