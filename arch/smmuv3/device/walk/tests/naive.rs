//! A second walker, which shares nothing with the first but the numbers of the tables: it works on strings of
//! bits, from the figures of Arm ARM D8.2 to D8.4, and says no more than tests compare.

extern crate std;
use std::vec::Vec;

/// One stage, all of it numbers.
#[derive(Clone, Debug)]
pub(super) struct Stage {
    /// 12, 14 or 16.
    pub page: u32,
    /// DS.
    pub wide: bool,
    /// OAS is 52.
    pub huge: bool,
    pub input: u32,
    pub output: u32,
    pub base: u64,
    /// Stage 2: S2SL0 as a level.
    pub start: Option<i32>,
    /// Without HAD.
    pub hierarchy: bool,
}

/// What went wrong in a walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wrong<E> {
    Unmapped,
    TooLarge,
    NotAccessed,
    /// Of reading a descriptor.
    Other(E),
}

/// What a walk finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Found {
    pub output: u64,
    pub bits: u32,
    pub level: i32,
    pub descriptor: u64,
    /// Or of APTable, XNTable and PXNTable of all tables: bits 63:59 of descriptors.
    pub restrictions: u64,
}

impl Stage {
    /// The bits of the input that each level looks at, the highest first: (level, high, low), both included.
    fn fields(&self) -> Vec<(i32, u32, u32)> {
        let per_level = self.page - 3;
        let mut fields = Vec::new();
        let (mut level, mut low) = (3, self.page);
        loop {
            let last = match self.start {
                Some(start) => level == start,
                None => low + per_level >= self.input,
            };
            let high = if last { self.input - 1 } else { low + per_level - 1 };
            fields.insert(0, (level, high, low));
            if last {
                return fields;
            }
            level -= 1;
            low += per_level;
        }
    }

    fn address(&self, descriptor: u64) -> u64 {
        let mut address = 0;
        for bit in self.page..48 {
            address += descriptor & (1 << bit);
        }
        if self.page == 16 && self.huge {
            for bit in 0..4 {
                address += (descriptor >> (12 + bit) & 1) << (48 + bit);
            }
        }
        if self.wide {
            address += (descriptor >> 48 & 1) << 48;
            address += (descriptor >> 49 & 1) << 49;
            address += (descriptor >> 8 & 1) << 50;
            address += (descriptor >> 9 & 1) << 51;
        }
        address
    }

    fn is_block(&self, level: i32) -> bool {
        match self.page {
            12 => level == 1 || level == 2 || level == 0 && self.wide,
            14 => level == 2 || level == 1 && self.wide,
            _ => level == 2 || level == 1 && self.huge,
        }
    }

    /// Walks for the low bits of `input`, of which the others were looked at. `read` gets the address of each
    /// descriptor.
    pub(super) fn walk<E>(&self, input: u64, mut read: impl FnMut(u64) -> Result<u64, E>) -> Result<Found, Wrong<E>> {
        let mut table = self.base;
        let mut restrictions = 0;
        let mut is_first = true;
        for (level, high, low) in self.fields() {
            let mut index = 0;
            for bit in (low..=high).rev() {
                index = index * 2 + (input >> bit & 1);
            }
            if is_first {
                let mut bytes = 8_u64 << (high - low + 1);
                bytes = bytes.max(if self.output == 52 { 64 } else { 16 });
                table -= table % bytes;
                is_first = false;
            }
            let descriptor = read(table + index * 8).map_err(Wrong::Other)?;
            let next = self.address(descriptor);
            let is_table = match (descriptor % 4, level) {
                (3, 3) => false,
                (3, _) => true,
                (1, level) if self.is_block(level) => false,
                _ => return Err(Wrong::Unmapped),
            };
            let size = 1_u64 << low;
            let named = if is_table { next } else { next - next % size };
            if u128::from(named) >= 1_u128 << self.output {
                return Err(Wrong::TooLarge);
            }
            if is_table {
                table = named;
                if self.hierarchy {
                    restrictions |= descriptor >> 59;
                }
                continue;
            }
            if descriptor & 0x400 == 0 {
                return Err(Wrong::NotAccessed);
            }
            return Ok(Found { output: named + input % size, bits: low, level, descriptor, restrictions });
        }
        panic!("the last level has no tables");
    }
}

/// R, W and X of stage 1 at EL1, for the privileged or not (the table of Arm ARM D8.4.1), without WXN and PAN.
pub(super) fn stage1_permits(found: &Found, privileged: bool) -> [bool; 3] {
    let bit = |at: u32| found.descriptor >> at & 1 == 1;
    let restricted = |at: u32| found.restrictions >> (at - 59) & 1 == 1;
    let read_only = bit(7) || restricted(62);
    let user_data = bit(6) && !restricted(61);
    if privileged {
        let writable_by_user = user_data && !read_only;
        [true, !read_only, !(bit(53) || restricted(59) || writable_by_user)]
    } else {
        [user_data, user_data && !read_only, !(bit(54) || restricted(60))]
    }
}

/// R, W and X of stage 2, with XNX.
pub(super) fn stage2_permits(found: &Found, privileged: bool) -> [bool; 3] {
    let bit = |at: u32| found.descriptor >> at & 1 == 1;
    let execute = match (bit(54), bit(53)) {
        (false, false) => true,
        (false, true) => !privileged,
        (true, false) => false,
        (true, true) => privileged,
    };
    [bit(6), bit(7), execute]
}
