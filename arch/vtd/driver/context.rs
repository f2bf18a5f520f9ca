//! Root and context tables: who goes through which domain in legacy mode, who has which PASID directory
//! in scalable mode (VT-d 3.4, 9.1 to 9.4).

use super::site;
use super::slot::{Slot, SlotKind, leaves};
use crate::addr::PhysAddr;
use crate::arch::vtd::layout::registers::TableMode;
use crate::arch::vtd::layout::{scalable, tables};
use crate::error::Result;
use crate::hwmem::{Table, TwoLevel, Visibility};
use crate::pgtable::WalkerCoherency;
use crate::platform::Platform;

/// Bit 7 is reserved in legacy entries (9.3) as well as in those of scalable mode (9.4).
const CONTEXT: SlotKind = SlotKind { fenced: 1 << 7, sites: site::CONTEXT };

/// One context entry in memory: the two quadwords that are not reserved, read and written as a
/// [`ContextEntry`](crate::arch::vtd::layout::ContextEntry) or
/// [`ScalableContextEntry`](scalable::ScalableContextEntry).
pub(super) type Context<'a, P> = Slot<'a, P, 2>;

/// The root table of a unit and the context tables below it, made for a bus with a device. In scalable
/// mode a bus has two.
#[derive(Debug)]
pub(super) struct ContextTables<P: Platform> {
    tables: TwoLevel<P>,
    mode: TableMode,
}

impl<P: Platform> ContextTables<P> {
    /// Tables in which everything is blocked.
    pub(super) fn new(platform: P, coherency: WalkerCoherency, mode: TableMode) -> Result<Self> {
        let visibility = Visibility { platform, coherency, last: PhysAddr::new(u64::MAX) };
        Ok(Self { tables: TwoLevel::new(visibility, 0, leaves(&site::CONTEXT_TABLES))?, mode })
    }

    /// Where the root table lies.
    pub(super) fn root(&self) -> PhysAddr {
        self.tables.phys()
    }

    /// For which mode they are.
    pub(super) fn mode(&self) -> TableMode {
        self.mode
    }

    /// The context entry of a requester, if its bus has a context table.
    #[inline(never)]
    pub(super) fn find(&self, requester: u16) -> Option<Context<'_, P>> {
        let (word, entry) = self.place(requester);
        self.tables.find(word).map(|table| self.context(table, entry))
    }

    /// The context entry of a requester; its bus gets a context table if it has none. Task only.
    #[inline(never)]
    pub(super) fn find_or_make(&self, requester: u16) -> Result<Context<'_, P>> {
        let (word, entry) = self.place(requester);
        self.tables.find_or_make(word).map(|table| self.context(table, entry))
    }

    /// Calls `visit` with every context entry of every bus that has a table.
    pub(super) fn each(&self, visit: &mut dyn FnMut(Context<'_, P>)) {
        for table in self.tables.tables() {
            for entry in 0..table.len() / self.entry_words() {
                visit(self.context(table, entry));
            }
        }
    }

    /// The word of the root table that leads to a requester's entry, and that entry's number.
    fn place(&self, requester: u16) -> (usize, usize) {
        let (bus, function) = (usize::from(requester >> 8), usize::from(requester & 0xff));
        match self.mode {
            TableMode::Scalable => {
                let half = function / scalable::CONTEXT_ENTRIES;
                (bus * tables::ENTRY_WORDS + half, function % scalable::CONTEXT_ENTRIES)
            }
            _ => (bus * tables::ENTRY_WORDS, function),
        }
    }

    fn context<'a>(&'a self, table: Table<'a>, entry: usize) -> Context<'a, P> {
        Slot { visibility: self.tables.visibility(), table, first: entry * self.entry_words(), kind: &CONTEXT }
    }

    fn entry_words(&self) -> usize {
        match self.mode {
            TableMode::Scalable => scalable::CONTEXT_WORDS,
            _ => tables::ENTRY_WORDS,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::ContextTables;
    use crate::addr::PhysAddr;
    use crate::arch::vtd::layout::registers::TableMode;
    use crate::arch::vtd::layout::scalable::{ScalableContextEntry, ScalableRootEntry};
    use crate::arch::vtd::layout::tables::TranslationType;
    use crate::arch::vtd::layout::{AddressWidth, ContextEntry, DomainId, RootEntry};
    use crate::error::Error;
    use crate::hwmem::testing::{Memory, Pairs};
    use crate::pgtable::WalkerCoherency;

    fn tables(platform: &Memory, mode: TableMode) -> ContextTables<Memory> {
        ContextTables::new(platform.clone(), WalkerCoherency::NeedsClean, mode).unwrap()
    }

    /// Where hardware looks for a requester's entry, in what was written back (VT-d 3.4.2, 3.4.3).
    fn walk(platform: &Memory, tables: &ContextTables<Memory>, requester: u16) -> Option<[u64; 2]> {
        let at = |base: PhysAddr, bytes: u64| platform.written_back(PhysAddr::new(base.as_u64() + bytes));
        let pair = |base: PhysAddr, bytes: u64| [at(base, bytes), at(base, bytes + 8)];
        let [low, high] = pair(tables.root(), u64::from(requester >> 8) * 16);
        let devfn = requester as u8;
        match tables.mode() {
            TableMode::Scalable => {
                let root = ScalableRootEntry { low, high };
                assert!(!root.has_reserved_bits(devfn));
                root.context_table(devfn).map(|table| pair(table, u64::from(devfn % 0x80) * 32))
            }
            _ => {
                let root = RootEntry { low, high };
                assert!(!root.has_reserved_bits());
                root.context_table().map(|table| pair(table, u64::from(devfn) * 16))
            }
        }
    }

    const LEGACY: ContextEntry =
        ContextEntry::new(TranslationType::PassThrough, PhysAddr::new(0), AddressWidth::Bits57, DomainId::new(0xffff));
    const SCALABLE: ScalableContextEntry = ScalableContextEntry::new(PhysAddr::new(0x5000), 7)
        .with_rid_pasid(0xf_ffff)
        .with_device_tlb()
        .with_pasids()
        .with_page_requests();

    fn both_modes(test: fn(TableMode, [u64; 2])) {
        test(TableMode::Legacy, LEGACY.into());
        test(TableMode::Scalable, SCALABLE.into());
    }

    #[test]
    fn hardware_finds_what_was_published() {
        both_modes(|mode, entry| {
            let platform = Memory::new(Pairs::Refused);
            let tables = tables(&platform, mode);
            for requester in [0, 0x7f, 0x80, 0x1ff, 0xff00, 0xffff] {
                assert!(walk(&platform, &tables, requester).is_none_or(|words| words == [0, 0]));
                let context = tables.find_or_make(requester).unwrap();
                assert_eq!(walk(&platform, &tables, requester), Some([0, 0]));
                context.publish(entry);
                assert_eq!(walk(&platform, &tables, requester), Some(entry));
                assert_eq!(tables.find(requester).unwrap().read::<[u64; 2]>(), entry);
            }
            let mut present = 0;
            tables.each(&mut |context| present += u32::from(context.read::<[u64; 2]>() == entry));
            assert_eq!(present, 6);
        });
    }

    #[test]
    fn whatever_an_entry_holds_it_can_be_withdrawn_and_fenced() {
        both_modes(|mode, entry| {
            let platform = Memory::new(Pairs::Refused);
            let tables = tables(&platform, mode);
            let context = tables.find_or_make(0x1234).unwrap();
            let seen = || walk(&platform, &tables, 0x1234).unwrap();
            let absent = [entry[0] & !1, entry[1]];
            context.publish(entry);
            context.fence();
            assert_eq!(seen()[0] & 1, 0);
            context.fence();
            context.unfence();
            assert_eq!(seen(), entry);
            context.fence();
            // It was present: hardware may have it in a cache.
            assert_eq!(context.withdraw(), Some(entry));
            assert_eq!(seen(), absent);
            context.unfence();
            assert_eq!(context.withdraw::<[u64; 2]>(), None);
            assert_eq!(seen(), absent);
            context.clear();
            assert_eq!((context.read(), seen()[0] & 1), ([0, 0], 0), "it need not be seen to be clear");
            context.publish(entry);
            assert_eq!(context.withdraw(), Some(entry));
        });
    }

    #[test]
    fn every_allocation_may_fail() {
        both_modes(|mode, _| {
            let platform = Memory::new(Pairs::Refused);
            let make = || {
                let tables = ContextTables::new(platform.clone(), WalkerCoherency::Snoops, mode)?;
                tables.find_or_make(0x80).map(drop)?;
                tables.find_or_make(0x7f).map(drop)
            };
            let needed = if mode == TableMode::Scalable { 3 } else { 2 };
            for nth in 0..=needed {
                platform.fail_nth(nth);
                assert_eq!(make(), if nth < needed { Err(Error::NoMemory) } else { Ok(()) });
                assert_eq!(platform.in_use(), 0);
            }
        });
    }
}
