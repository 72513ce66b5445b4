//! IPv6 extension headers.

/// An IPv6 extension header: its number, and its bytes, of which the first is filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    pub(crate) number: u8,
    pub(crate) bytes: Vec<u8>,
}

impl Extension {
    /// Hop-by-hop options: padding only.
    #[must_use]
    pub fn hop_by_hop() -> Self {
        Self { number: 0, bytes: vec![0, 0, 1, 4, 0, 0, 0, 0] }
    }

    /// Destination options: padding only, of `8 * units` bytes.
    #[must_use]
    pub fn destination_options(units: u8) -> Self {
        let len = usize::from(units) * 8;
        let mut bytes = vec![0, units - 1, 1, units * 8 - 4];
        bytes.resize(len, 0);
        Self { number: 60, bytes }
    }

    /// A routing header (of an unassigned type, without addresses).
    #[must_use]
    pub fn routing(segments_left: u8) -> Self {
        Self { number: 43, bytes: vec![0, 0, 253, segments_left, 0, 0, 0, 0] }
    }

    /// A fragment header; the offset in units of eight bytes.
    #[must_use]
    pub fn fragment(offset: u16, more: bool) -> Self {
        let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
        Self { number: 44, bytes: vec![0, 0, high, low, 1, 2, 3, 4] }
    }

    /// An authentication header (RFC 4302), which nobody but its end points may change under.
    #[must_use]
    pub fn authentication() -> Self {
        Self {
            number: 51,
            bytes: vec![0, 4, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7],
        }
    }
}
