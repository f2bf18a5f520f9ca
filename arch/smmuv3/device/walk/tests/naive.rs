//! A second walker, which shares nothing with the first but the numbers of tables and registers: it takes bits
//! one by one, from the figures of SMMU 5.2 and 5.4 and of Arm ARM D8.2 to D8.4. Structures must be valid, and the
//! stream one of NS-EL1.

extern crate std;
use std::vec::Vec;

/// What is done with an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wants {
    Read,
    Write,
    Execute,
    Atomic,
}

/// A fault: the number of its event, S2, CLASS, and the address that is not that of the request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Problem {
    pub event: u8,
    pub second: bool,
    pub class: u8,
    pub address: u64,
    /// An atomic operation may write, and not read.
    pub lacks_read: bool,
}

const UNREADABLE: u8 = 0x0b;
const UNMAPPED: u8 = 0x10;
const TOO_LARGE: u8 = 0x11;
const NOT_ACCESSED: u8 = 0x12;
const FORBIDDEN: u8 = 0x13;
const FETCH: u8 = 0;
const TABLE: u8 = 1;
const INPUT: u8 = 2;

impl Problem {
    const fn first(event: u8) -> Self {
        Self { event, second: false, class: INPUT, address: 0, lacks_read: false }
    }
}

/// A stream in a unit with these registers, and what is in memory.
pub(super) struct Naive<R> {
    pub idr3: u32,
    pub idr5: u32,
    pub ste: [u64; 8],
    pub cd: Option<[u64; 8]>,
    pub memory: R,
}

/// The tables of one stage.
struct Tables {
    /// 12, 14 or 16.
    page: u32,
    /// DS counts.
    wide: bool,
    /// OAS is 52.
    huge: bool,
    input: u32,
    output: u32,
    base: u64,
    /// Stage 2: where it starts.
    start: Option<i32>,
    no_flags: bool,
    swapped: bool,
}

struct Found {
    output: u64,
    bits: u32,
    descriptor: u64,
    /// Any of bits 63:59 of the tables above, moved down.
    restrictions: u64,
}

fn bit(word: u64, at: u32) -> bool {
    word >> at & 1 == 1
}

fn bits(word: u64, high: u32, low: u32) -> u64 {
    (low..=high).rev().fold(0, |value, at| value * 2 + u64::from(bit(word, at)))
}

/// Bits of an address by OAS, IPS or S2PS.
fn size(code: u64) -> u32 {
    [32, 36, 40, 42, 44, 48, 52, 52][code as usize]
}

impl Tables {
    /// The bits of the input that each level looks at, the highest first: level, high, low, both included.
    fn fields(&self) -> Vec<(i32, u32, u32)> {
        let each = self.page - 3;
        let mut fields = Vec::new();
        let (mut level, mut low) = (3, self.page);
        loop {
            let is_first = match self.start {
                Some(start) => level == start,
                None => low + each >= self.input,
            };
            let high = if is_first { self.input - 1 } else { low + each - 1 };
            fields.insert(0, (level, high, low));
            if is_first {
                return fields;
            }
            level -= 1;
            low += each;
        }
    }

    fn address(&self, descriptor: u64) -> u64 {
        let mut address = bits(descriptor, 47, self.page) << self.page;
        if self.page == 16 && self.huge {
            address += bits(descriptor, 15, 12) << 48;
        }
        if self.wide {
            address += bits(descriptor, 49, 48) << 48;
            address += bits(descriptor, 9, 8) << 50;
        }
        address
    }

    fn has_block(&self, level: i32) -> bool {
        match self.page {
            12 => level == 1 || level == 2 || level == 0 && self.wide,
            14 => level == 2 || level == 1 && self.wide,
            _ => level == 2 || level == 1 && self.huge,
        }
    }

    /// Walks for the low bits of `input`. `read` gets the address of each descriptor.
    fn walk(
        &self,
        input: u64,
        read: impl Fn(u64) -> Result<u64, Problem>,
        problem: impl Fn(u8) -> Problem,
    ) -> Result<Found, Problem> {
        let mut table = self.base;
        let mut restrictions = 0;
        let mut is_first = true;
        for (level, high, low) in self.fields() {
            if std::mem::replace(&mut is_first, false) {
                let bytes = (8_u64 << (high - low + 1)).max(if self.output == 52 { 64 } else { 16 });
                table -= table % bytes;
            }
            let word = read(table + bits(input, high, low) * 8)?;
            let descriptor = if self.swapped { u64::from_be_bytes(word.to_le_bytes()) } else { word };
            let is_table = match (descriptor % 4, level) {
                (3, 3) => false,
                (3, _) => true,
                (1, level) if self.has_block(level) => false,
                _ => return Err(problem(UNMAPPED)),
            };
            let span = 1_u64 << low;
            let next = self.address(descriptor);
            let named = if is_table { next } else { next - next % span };
            if named >= 1_u64 << self.output {
                return Err(problem(TOO_LARGE));
            }
            if is_table {
                table = named;
                restrictions |= descriptor >> 59;
            } else if !bit(descriptor, 10) && !self.no_flags {
                return Err(problem(NOT_ACCESSED));
            } else {
                return Ok(Found { output: named + input % span, bits: low, descriptor, restrictions });
            }
        }
        panic!("the last level has no tables");
    }
}

impl<R: Fn(u64) -> Option<u64>> Naive<R> {
    fn output(&self, code: u64) -> u32 {
        size(code).min(size(u64::from(self.idr5 & 7)))
    }

    fn has(&self, idr3: u32) -> bool {
        self.idr3 >> idr3 & 1 == 1
    }

    fn tables(&self, page: u32, ds: bool, tsz: u64, ps: u64, base: u64) -> Tables {
        Tables {
            page,
            wide: ds && page != 16 && self.idr5 >> 7 & 1 == 1,
            huge: self.idr5 & 7 >= 6,
            input: 64 - tsz as u32,
            output: self.output(ps),
            base: bits(base, 51, 4) << 4,
            start: None,
            no_flags: false,
            swapped: false,
        }
    }

    /// Where an intermediate address goes, and log2 of the block that goes with it.
    fn second(&self, ipa: u64, class: u8, wants: Wants, privileged: bool) -> Result<(u64, u32), Problem> {
        let [word0, word1, word2, word3, ..] = self.ste;
        if !bit(word0, 2) {
            return Ok((ipa, 64));
        }
        let page = [12, 16, 14][bits(word2, 47, 46) as usize];
        let (ds, sl0, sl2) = (bit(word3, 3), bits(word2, 39, 38), bit(word3, 2));
        let mut tables = self.tables(page, ds, bits(word2, 37, 32), bits(word2, 50, 48), word3);
        tables.start = Some(match page {
            12 if sl2 && tables.wide => -1,
            12 => [2, 1, 0, 3][sl0 as usize],
            _ => 3 - sl0 as i32,
        });
        tables.no_flags = bit(word2, 53);
        tables.swapped = bit(word2, 52);
        let problem = |event| Problem { event, second: true, class, address: ipa, lacks_read: false };
        if ipa >= 1 << tables.input {
            return Err(problem(UNMAPPED));
        }
        let read = |at| {
            let unreadable = Problem { address: at, ..problem(UNREADABLE) };
            (self.memory)(at).ok_or(unreadable)
        };
        let found = tables.walk(ipa, read, problem)?;
        let leaf = found.descriptor;
        let execute = match (bit(leaf, 54), bit(leaf, 53)) {
            (never, _) if !self.has(4) => !never,
            (false, false) => true,
            (false, true) => !privileged,
            (true, false) => false,
            (true, true) => privileged,
        };
        check(wants, [bit(leaf, 6), bit(leaf, 7), execute], problem(FORBIDDEN))?;
        let is_device =
            if self.has(8) && bit(word1, 25) { !bit(leaf, 4) } else { bits(leaf, 5, 4) == 0 || bits(leaf, 3, 2) == 0 };
        if (class == TABLE || class == FETCH) && bit(word2, 54) && is_device {
            return Err(problem(FORBIDDEN));
        }
        Ok((found.output, found.bits))
    }

    /// Where an address goes in stage 1.
    fn first(&self, address: u64, wants: Wants, privileged: bool) -> Result<(u64, u32), Problem> {
        let Some([word0, word1, word2, ..]) = self.cd else {
            let beyond = address >> size(u64::from(self.idr5 & 7)) != 0;
            return if beyond { Err(Problem::first(TOO_LARGE)) } else { Ok((address, 64)) };
        };
        let unmapped = Err(Problem::first(UNMAPPED));
        let upper = bit(address, 55);
        let (half, base) = if upper { (word0 >> 16, word2) } else { (word0, word1) };
        if bit(half, 14) || self.has(13) && bit(base, 2) && !privileged {
            return unmapped;
        }
        let tg = bits(half, 7, 6) as usize;
        let page = if upper { [0, 14, 12, 16][tg] } else { [12, 16, 14, 0][tg] };
        let mut tables = self.tables(page, bit(word2, 58), bits(half, 5, 0), bits(word0, 34, 32), base);
        tables.no_flags = bit(word0, 35);
        tables.swapped = bit(word0, 15);
        let top = if bit(word0, 38 + u32::from(upper)) { 55 } else { 63 };
        if (tables.input..=top).any(|at| bit(address, at) != upper) {
            return unmapped;
        }
        let read = |at| {
            let (at, _) = self.second(at, TABLE, Wants::Read, true)?;
            let unreadable = Problem { class: TABLE, address: at, ..Problem::first(UNREADABLE) };
            (self.memory)(at).ok_or(unreadable)
        };
        let found = tables.walk(address, read, Problem::first)?;
        let leaf = found.descriptor;
        let ignored = self.has(2) && bit(base, 1);
        let restricted = |at: u32| !ignored && bit(found.restrictions, at - 59);
        let writable = !bit(leaf, 7) && !restricted(62);
        let user_read = bit(leaf, 6) && !restricted(61);
        let user_write = user_read && writable;
        let user_execute = !bit(leaf, 54) && !restricted(60);
        let execute = !bit(leaf, 53) && !restricted(59) && !user_write;
        let wxn = bit(word0, 36);
        let pan = bit(word0, 40) && (user_read || user_execute && self.has(17) && bit(word1, 59));
        let permits = if privileged {
            [!pan, writable && !pan, execute && !(wxn && writable)]
        } else {
            [user_read, user_write, user_execute && !(wxn && user_write)]
        };
        check(wants, permits, Problem::first(FORBIDDEN))?;
        Ok((found.output, found.bits))
    }

    /// Where it goes, and log2 of the block that goes with it.
    pub(super) fn translate(&self, address: u64, wants: Wants, privileged: bool) -> Result<(u64, u32), Problem> {
        let (ipa, block) = self.first(address, wants, privileged)?;
        let (output, other) = self.second(ipa, INPUT, wants, privileged)?;
        Ok((output, block.min(other)))
    }
}

fn check(wants: Wants, [read, write, execute]: [bool; 3], problem: Problem) -> Result<(), Problem> {
    match wants {
        Wants::Read if read => Ok(()),
        Wants::Write if write => Ok(()),
        Wants::Execute if execute => Ok(()),
        Wants::Atomic if read && write => Ok(()),
        Wants::Atomic => Err(Problem { lacks_read: write, ..problem }),
        _ => Err(problem),
    }
}
