//! The tables as the specification tells them, walked without haste: all values that memory held are
//! tried, each entry by itself, and what comes out is a set of answers.
//!
//! This shares nothing with the unit but the register values: bits are numbers out of chapter 9.

use std::cell::Cell;
use std::collections::BTreeSet;

use iommu::arch::vtd::device::DeviceConfig;

use crate::guest::State;

/// Where an address goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Page {
    pub phys: u64,
    pub bits: u32,
    pub read: bool,
    pub write: bool,
    pub snoops: bool,
}

/// A fault: its number, and whether an FPD suppresses it.
pub type Fault = (u8, bool);
pub type Answers = BTreeSet<Result<Page, Fault>>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wants {
    Read,
    Flush,
    Write,
    Atomic,
    /// To learn what is permitted; `true` sets dirty bits.
    Learn(bool),
}

/// A request, as far as tables care.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub source: u16,
    pub pasid: Option<u32>,
    pub supervisor: bool,
    pub address: u64,
    pub wants: Wants,
}

#[derive(Clone, Copy)]
struct Second {
    table: u64,
    levels: u32,
    legacy: bool,
    /// SSIRWE.
    io: bool,
    /// SSADE.
    dirty: bool,
    snoop: bool,
    quiet: bool,
}

#[derive(Clone, Copy)]
struct First {
    table: u64,
    levels: u32,
    /// WPE.
    protects: bool,
    /// EAFE.
    extended: bool,
    snoop: bool,
    quiet: bool,
}

pub struct Naive<'a> {
    memory: &'a State,
    config: &'a DeviceConfig,
    /// What is wanted is checked, and all else that depends on the request: memory must not have changed.
    exact: bool,
    /// How many values may still be tried.
    patience: Cell<u32>,
}

/// Values that are tried for one request.
const PATIENCE: u32 = 20_000;

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

impl<'a> Naive<'a> {
    pub fn new(memory: &'a State, config: &'a DeviceConfig, exact: bool) -> Self {
        Self { memory, config, exact, patience: Cell::new(PATIENCE) }
    }

    fn cap(&self, bit: u32) -> bool {
        self.config.cap.bits() >> bit & 1 == 1
    }

    fn ecap(&self, bit: u32) -> bool {
        self.config.ecap.bits() >> bit & 1 == 1
    }

    /// Bits that are reserved without this bit of ECAP.
    fn unless(&self, bit: u32, reserved: u64) -> u64 {
        if self.ecap(bit) { 0 } else { reserved }
    }

    fn beyond(&self) -> u64 {
        !0 << self.config.host_address_bits
    }

    fn values(&self, address: u64) -> Option<Vec<u64>> {
        if self.exact {
            return self.memory.get(address).map(|value| vec![value]);
        }
        let values = self.memory.held(address)?;
        let left = self.patience.get().saturating_sub(values.len() as u32);
        self.patience.set(left);
        if left == 0 { Some(Vec::new()) } else { Some(values) }
    }

    /// All combinations of the words of an entry.
    fn entries(&self, address: u64, words: u64) -> Option<Vec<Vec<u64>>> {
        let mut entries = vec![vec![]];
        for word in 0..words {
            let values = self.values(address + word * 8)?;
            entries = entries
                .iter()
                .flat_map(|entry| values.iter().map(move |value| entry.iter().copied().chain([*value]).collect()))
                .collect();
            if entries.len() > 256 {
                self.patience.set(0);
                return Some(Vec::new());
            }
        }
        Some(entries)
    }

    /// Whether so much was tried that answers may be missing.
    pub fn gives_up(&self) -> bool {
        self.memory.wild || self.patience.get() == 0
    }

    pub fn answers(&self, root: u64, asked: &Asked) -> Answers {
        let fault = |code| Answers::from([Err((code, false))]);
        let io = root >> 7 & 1 == 1 && self.ecap(57);
        match root >> 10 & 3 {
            0 if io => fault(0x30),
            0 if asked.pasid.is_some() => fault(0x31),
            0 => self.legacy(root, asked),
            1 if self.ecap(43) => self.scalable(root, io, asked),
            3 if self.ecap(52) => fault(0x33),
            _ => fault(0x30),
        }
    }

    fn legacy(&self, root: u64, asked: &Asked) -> Answers {
        let mut out = Answers::new();
        let bus = (root & !0xfff & !self.beyond()) + u64::from(asked.source >> 8) * 16;
        let Some(roots) = self.entries(bus, 2) else { return Answers::from([Err((0x08, false))]) };
        for entry in roots {
            if entry[0] & 1 == 0 {
                out.insert(Err((0x01, false)));
                continue;
            }
            if entry[0] & (0xffe | self.beyond()) != 0 || entry[1] != 0 {
                out.insert(Err((0x0a, false)));
                continue;
            }
            let Some(contexts) = self.entries((entry[0] & !0xfff) + u64::from(asked.source & 0xff) * 16, 2) else {
                out.insert(Err((0x09, false)));
                continue;
            };
            for context in contexts {
                out.extend(self.legacy_context(context[0], context[1], asked));
            }
        }
        out
    }

    fn legacy_context(&self, low: u64, high: u64, asked: &Asked) -> Answers {
        let quiet = low & 2 != 0;
        let fault = |code| Answers::from([Err((code, quiet))]);
        if low & 1 == 0 {
            return fault(0x02);
        }
        let kind = low >> 2 & 3;
        let table = low & !0xfff;
        let ids = 4 + 2 * (self.config.cap.bits() & 7);
        if low & 0xff0 != 0
            || high & !0xff_ff7f != 0
            || high >> 8 >> ids & 0xffff != 0
            || kind != 2 && table & self.beyond() != 0
        {
            return fault(0x0b);
        }
        let width = high & 7;
        let has = |width| (1..=3).contains(&width) && self.cap(8 + width as u32);
        let largest = (1..=3).rev().find(|width| has(*width));
        if !has(width) || kind == 3 || kind == 1 && !self.ecap(2) {
            return fault(0x03);
        }
        if kind == 2 {
            if !self.ecap(6) || largest != Some(width) {
                return fault(0x03);
            }
            return Answers::from([self.passes(asked.address, true, quiet)]);
        }
        let levels = width as u32 + 2;
        let root = Second { table, levels, legacy: true, io: false, dirty: false, snoop: self.ecap(0), quiet };
        self.second(&root, asked.address, asked.wants, true)
    }

    fn passes(&self, address: u64, legacy: bool, quiet: bool) -> Result<Page, Fault> {
        if address & self.beyond() != 0 {
            return Err((if legacy { 0x04 } else { 0x83 }, quiet));
        }
        if self.exact && address >> 20 == 0xfee {
            return Err((if legacy { 0x0e } else { 0x87 }, quiet));
        }
        Ok(Page { phys: 0, bits: 63, read: true, write: true, snoops: false })
    }

    fn scalable(&self, root: u64, io: bool, asked: &Asked) -> Answers {
        let mut out = Answers::new();
        let half = asked.source >> 7 & 1;
        let bus = (root & !0xfff & !self.beyond()) + u64::from(asked.source >> 8) * 16;
        // Both halves are read.
        let Some(roots) = self.entries(bus, 2) else { return Answers::from([Err((0x38, false))]) };
        for entry in roots {
            let entry = entry[usize::from(half)];
            if entry & 1 == 0 {
                out.insert(Err((0x39, false)));
                continue;
            }
            if entry & (0xffe | self.beyond()) != 0 {
                out.insert(Err((0x3a, false)));
                continue;
            }
            let Some(contexts) = self.entries((entry & !0xfff) + u64::from(asked.source & 0x7f) * 32, 4) else {
                out.insert(Err((0x40, false)));
                continue;
            };
            for context in contexts {
                out.extend(self.scalable_context(&context, io, asked));
            }
        }
        out
    }

    fn scalable_context(&self, context: &[u64], io: bool, asked: &Asked) -> Answers {
        let [low, high] = [context[0], context[1]];
        let quiet = low & 2 != 0;
        let fault = |code| Answers::from([Err((code, quiet))]);
        if low & 1 == 0 {
            return fault(0x41);
        }
        let low_reserved = 0x1a0
            | self.beyond()
            | self.unless(2, 1 << 2)
            | self.unless(40, 1 << 3)
            | self.unless(29, 1 << 4)
            | self.unless(56, 1 << 6);
        let high_reserved = !0x1f_ffff | self.unless(49, 0xf_ffff) | self.unless(53, 1 << 20);
        if low & low_reserved != 0 || high & high_reserved != 0 || context[2] != 0 || context[3] != 0 {
            return fault(0x42);
        }
        let pasids = 1 << 13 << (low >> 9 & 7);
        let rid_pasid = high & 0xf_ffff;
        if low & 0x14 == 0x10 || rid_pasid >= pasids || low & 0x48 == 0x40 {
            return fault(0x43);
        }
        let pasid = asked.pasid.map_or(rid_pasid, u64::from);
        if pasid >= pasids {
            return fault(0x46);
        }
        let supervisor = asked.pasid.map_or(high >> 20 & 1 == 1, |_| asked.supervisor);
        let asked = &Asked { supervisor, ..*asked };
        let mut out = Answers::new();
        let Some(directory) = self.values((low & !0xfff) + (pasid >> 6) * 8) else {
            return Answers::from([Err((0x50, false))]);
        };
        for entry in directory {
            let quiet = quiet || entry & 2 != 0;
            if entry & 1 == 0 {
                out.insert(Err((0x51, quiet)));
                continue;
            }
            if entry & (0xffc | self.beyond()) != 0 {
                out.insert(Err((0x52, quiet)));
                continue;
            }
            let Some(entries) = self.entries((entry & !0xfff) + (pasid & 63) * 64, 8) else {
                out.insert(Err((0x58, false)));
                continue;
            };
            for entry in entries {
                out.extend(self.pasid_entry(&entry, quiet, io, asked));
            }
        }
        out
    }

    fn pasid_entry(&self, entry: &[u64], quiet: bool, io: bool, asked: &Asked) -> Answers {
        let [w0, w1, w2] = [entry[0], entry[1], entry[2]];
        let quiet = quiet || w0 & 2 != 0;
        let fault = |code| Answers::from([Err((code, quiet))]);
        if w0 & 1 == 0 {
            return fault(0x59);
        }
        let ids = 4 + 2 * (self.config.cap.bits() & 7);
        let reserved0 = 0xc20 | self.beyond() | self.unless(46, !0xfff | 0x21c) | self.unless(45, 0x200);
        let reserved1 = 0xf87f_0000
            | self.unless(48, 1 << 23)
            | self.unless(7, 1 << 24)
            | self.unless(25, 3 << 25 | 0xffff_ffff << 32)
            | 0xffff << ids & 0xffff;
        let reserved2 =
            0xf02 | self.beyond() | self.unless(31, 1) | self.unless(47, !0xfff | 0x1c) | self.unless(34, 1 << 7);
        if w0 & reserved0 != 0 || w1 & reserved1 != 0 || w2 & reserved2 != 0 || entry[3..].iter().any(|word| *word != 0)
        {
            return fault(0x5a);
        }
        let mode = w2 >> 2 & 3;
        let width = w0 >> 2 & 7;
        let has_width = (1..=3).contains(&width) && self.cap(8 + width as u32);
        let has_mode = mode == 0 || mode == 1 && self.cap(60);
        let snoop = w1 >> 23 & 1 == 1;
        let (protects, extended) = (w2 >> 4 & 1 == 1, w2 >> 7 & 1 == 1);
        let first = First { table: w2 & !0xfff, levels: mode as u32 + 4, protects, extended, snoop, quiet };
        let (levels, dirty) = (width as u32 + 2, w0 >> 9 & 1 == 1);
        let second = Second { table: w0 & !0xfff, levels, legacy: false, io, dirty, snoop, quiet };
        match w0 >> 6 & 7 {
            _ if !has_mode => fault(0x5b),
            1 if self.ecap(47) => self.first(&first, None, asked),
            2 if self.ecap(46) && has_width => self.second(&second, asked.address, asked.wants, true),
            3 if self.ecap(26) && has_width && first.table < self.limit(&second) => {
                self.first(&first, Some(&second), asked)
            }
            4 if self.ecap(6) => Answers::from([self.passes(asked.address, false, quiet)]),
            _ => fault(0x5b),
        }
    }

    /// The first address that the second stage does not have.
    fn limit(&self, root: &Second) -> u64 {
        1 << (12 + 9 * root.levels).min((self.config.cap.bits() >> 16 & 0x3f) as u32 + 1)
    }

    /// The fault if what is wanted is not permitted.
    fn refusal(&self, wants: Wants, read: bool, write: bool, legacy: bool) -> Option<u8> {
        let (no_write, no_read) = if legacy { (5, 6) } else { (0x85, 0x86) };
        match wants {
            _ if !self.exact => None,
            Wants::Read if !read => Some(no_read),
            Wants::Flush if !read && !(write && self.cap(22)) => Some(no_read),
            Wants::Write | Wants::Atomic if !write => Some(no_write),
            Wants::Atomic if !read => Some(no_read),
            _ => None,
        }
    }

    /// Whether a page may not be an answer, for it is where interrupts go.
    fn interrupts(&self, page: &Page, address: u64, wants: Wants) -> bool {
        let size = 1 << page.bits;
        let first = page.phys;
        let at = first + address % size;
        match wants {
            _ if !self.exact => false,
            Wants::Learn(_) => first < 0xfef0_0000 && first + size > 0xfee0_0000,
            _ => at >> 20 == 0xfee,
        }
    }

    fn second(&self, root: &Second, address: u64, wants: Wants, is_output: bool) -> Answers {
        let code = |legacy, scalable| if root.legacy { legacy } else { scalable };
        let fault = |code| Err((code, root.quiet));
        if address >= self.limit(root) {
            return Answers::from([fault(code(0x04, 0x84))]);
        }
        let writes = matches!(wants, Wants::Write | Wants::Atomic | Wants::Learn(true));
        let absent = code(if writes { 0x05 } else { 0x06 }, 0x79);
        let mut out = Answers::new();
        let mut tables = BTreeSet::from([(root.table, true, true)]);
        for level in (0..root.levels).rev() {
            let bits = 12 + 9 * level;
            for (table, read, write) in std::mem::take(&mut tables) {
                let Some(values) = self.values(table + (address >> bits & 511) * 8) else {
                    let top = level + 1 == root.levels;
                    out.insert(fault(if top { code(0x03, 0x7b) } else { code(0x07, 0x78) }));
                    continue;
                };
                for entry in values {
                    let shift = if root.io { 61 } else { 0 };
                    let (r, w) = (entry >> shift & 1 == 1, entry >> shift & 2 == 2);
                    if !r && !w {
                        out.insert(fault(absent));
                        continue;
                    }
                    let (r, w) = (r && read, w && write);
                    let page =
                        level == 0 || entry & 0x80 != 0 && (level == 1 && self.cap(34) || level == 2 && self.cap(35));
                    let mut reserved = ADDRESS & self.beyond();
                    if !root.io {
                        reserved |= 1 << 62;
                    }
                    if !page {
                        reserved |= 1 << 11 | 1 << 7;
                    } else {
                        reserved |= ADDRESS & ((1 << bits) - 1) | self.unless(7, 1 << 11);
                    }
                    if entry & reserved != 0 {
                        out.insert(fault(code(0x0c, 0x7a)));
                        continue;
                    }
                    let mut flags = 1 << 8;
                    if page {
                        if !r && !w {
                            out.insert(fault(absent));
                            continue;
                        }
                        let snoops = entry >> 11 & 1 == 1;
                        let page = Page { phys: entry & ADDRESS, bits, read: r, write: w, snoops };
                        if let Some(code) = self.refusal(wants, r, w, root.legacy) {
                            out.insert(fault(code));
                            continue;
                        }
                        if is_output && self.interrupts(&page, address, wants) {
                            out.insert(fault(code(0x0e, 0x87)));
                            continue;
                        }
                        if writes && w {
                            flags |= 1 << 9;
                        }
                        let updates = self.exact && root.dirty && entry & flags != flags;
                        out.insert(if updates && !root.snoop { fault(0x7c) } else { Ok(page) });
                    } else if self.exact && root.dirty && entry & flags != flags && !root.snoop {
                        out.insert(fault(0x7c));
                    } else {
                        tables.insert((entry & ADDRESS, r, w));
                    }
                }
            }
        }
        out
    }

    fn first(&self, root: &First, nested: Option<&Second>, asked: &Asked) -> Answers {
        let fault = |code| Err((code, root.quiet));
        let address = asked.address;
        let top = 12 + 9 * root.levels;
        let upper = address >> (top - 1);
        if upper != 0 && upper != !0 >> (top - 1) {
            return Answers::from([fault(0x80)]);
        }
        let writes = matches!(asked.wants, Wants::Write | Wants::Atomic | Wants::Learn(true));
        let mut out = Answers::new();
        let mut tables = BTreeSet::from([(root.table, true, true)]);
        for level in (0..root.levels).rev() {
            let is_top = level + 1 == root.levels;
            let bits = 12 + 9 * level;
            for (table, write, user) in std::mem::take(&mut tables) {
                let slot = table + (address >> bits & 511) * 8;
                for place in self.places(slot, is_top, nested, root.quiet) {
                    let (place, updatable) = match place {
                        Ok(place) => place,
                        Err(fault) => {
                            out.insert(Err(fault));
                            continue;
                        }
                    };
                    let Some(values) = self.values(place) else {
                        out.insert(fault(if is_top { 0x73 } else { 0x70 }));
                        continue;
                    };
                    for entry in values {
                        let update = |flags: u64| match self.exact && entry & flags != flags {
                            true if !updatable => Some(0x77),
                            true if !root.snoop => Some(0x90),
                            _ => None,
                        };
                        if entry & 1 == 0 {
                            out.insert(fault(0x71));
                            continue;
                        }
                        let page = level == 0 || entry & 0x80 != 0 && (level == 1 || level == 2 && self.cap(56));
                        let mut reserved = ADDRESS & self.beyond();
                        if !page {
                            reserved |= 0x80;
                        } else if level > 0 {
                            reserved |= (1 << bits) - 1 & !0x1fff;
                        }
                        if entry & reserved != 0 {
                            out.insert(fault(0x72));
                            continue;
                        }
                        let named = entry & ADDRESS & if page { !0 << bits } else { !0 };
                        if nested.is_some_and(|second| named >= self.limit(second)) {
                            out.insert(fault(0x74));
                            continue;
                        }
                        let (write, user) = (write && entry & 2 != 0, user && entry & 4 != 0);
                        if !asked.supervisor && !user {
                            out.insert(fault(0x81));
                            continue;
                        }
                        let mut flags = 1 << 5 | if root.extended { 1 << 10 } else { 0 };
                        if !page {
                            match update(flags) {
                                Some(code) => out.insert(fault(code)),
                                None => tables.insert((named, write, user)),
                            };
                            continue;
                        }
                        let write = write || asked.supervisor && !root.protects;
                        let found = Page { phys: named, bits, read: true, write, snoops: false };
                        for answer in self.first_page(&found, nested, asked, root.quiet) {
                            let page = match answer {
                                Ok(page) => page,
                                Err(fault) => {
                                    out.insert(Err(fault));
                                    continue;
                                }
                            };
                            if writes && page.write {
                                flags |= 1 << 6;
                            }
                            out.insert(update(flags).map_or(Ok(page), fault));
                        }
                    }
                }
            }
        }
        out
    }

    /// Where an entry of a first-stage table is, and whether it may be updated.
    fn places(
        &self,
        slot: u64,
        is_top: bool,
        nested: Option<&Second>,
        quiet: bool,
    ) -> BTreeSet<Result<(u64, bool), Fault>> {
        let Some(second) = nested else { return BTreeSet::from([Ok((slot, true))]) };
        let wants = if second.dirty { Wants::Atomic } else { Wants::Read };
        let place = |answer| match answer {
            Ok(Page { phys, bits, write, .. }) => Ok((phys + slot % (1 << bits), write)),
            Err((0x85 | 0x86, _)) => Err((if is_top { 0x75 } else { 0x76 }, quiet)),
            Err((0x84, _)) => Err((0x74, quiet)),
            Err(fault) => Err(fault),
        };
        self.second(second, slot, wants, false).into_iter().map(place).collect()
    }

    /// What becomes of the page that the first stage names.
    fn first_page(&self, found: &Page, nested: Option<&Second>, asked: &Asked, quiet: bool) -> Answers {
        let fault = |code| Err((code, quiet));
        if let Some(code) = self.refusal(asked.wants, true, found.write, false) {
            return Answers::from([fault(code)]);
        }
        let check = |page: Page| match self.interrupts(&page, asked.address, asked.wants) {
            true => fault(0x87),
            false => Ok(page),
        };
        let Some(second) = nested else { return Answers::from([check(*found)]) };
        let guest = found.phys + asked.address % (1 << found.bits);
        let wants = match asked.wants {
            Wants::Learn(writes) => Wants::Learn(writes && found.write),
            wants => wants,
        };
        let combine = |answer| match answer {
            Ok(Page { phys, bits, read, write, snoops }) => {
                let at = phys + guest % (1 << bits);
                let bits = found.bits.min(bits);
                check(Page { phys: at & !0 << bits, bits, read, write: write && found.write, snoops })
            }
            Err((0x84, _)) => fault(0x74),
            Err(fault) => Err(fault),
        };
        self.second(second, guest, wants, false).into_iter().map(combine).collect()
    }
}
