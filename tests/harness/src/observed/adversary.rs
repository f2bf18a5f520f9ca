//! Who chooses, among the values that a device may see, the one that it does see.

/// A way to choose. Each is deterministic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Adversary {
    /// What was stored last: whatever could be late is not.
    Newest,
    /// What was stored first: whatever may be late is.
    Stalest,
    /// Some words are always seen at once and others as late as they may be, by a number.
    Mixed(u64),
    /// Every read anew, by a number.
    Random(u64),
}

impl Adversary {
    /// The one of this number: the first two are [`Stalest`](Self::Stalest) and
    /// [`Newest`](Self::Newest), the others mix.
    pub const fn from_seed(seed: u64) -> Self {
        match seed {
            0 => Self::Stalest,
            1 => Self::Newest,
            seed if seed.is_multiple_of(2) => Self::Mixed(seed),
            seed => Self::Random(seed),
        }
    }

    /// One of `0..=last`, the versions of the word at `address` from the oldest on. `read` counts the
    /// reads.
    pub(super) fn choose(self, address: u64, read: u64, last: usize) -> usize {
        match self {
            _ if last == 0 => 0,
            Self::Newest => last,
            Self::Stalest => 0,
            Self::Mixed(seed) if mix(seed ^ address) & 1 == 0 => 0,
            Self::Mixed(_) => last,
            Self::Random(seed) => (mix(seed ^ mix(read)) % (last as u64 + 1)) as usize,
        }
    }
}

/// The finaliser of splitmix64: spreads every bit over all.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}
