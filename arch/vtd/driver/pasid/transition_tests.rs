//! Every plan between every two entries, seen by hardware at every moment.

extern crate std;
use std::vec;
use std::vec::Vec;

use super::{Invalidate, Passage, Plan, Step, Store};
use crate::addr::PhysAddr;
use crate::arch::vtd::layout::scalable::{FirstStageLevels, PasidEntry, PasidTranslation};
use crate::arch::vtd::layout::{AddressWidth, DomainId};

const STORES: [Store; 2] = [Store::Bits64, Store::Bits128];

/// What hardware does with requests, told by the fields that 9.6 says it looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    Blocked,
    /// Kind, domain id, PWSNP, PGSNP; first-stage table and levels; second-stage table, width, SSADE.
    Translated(u8, u16, [bool; 2], Option<(u64, u8)>, Option<(u64, u8, bool)>),
}

fn seen(entry: PasidEntry) -> Seen {
    let Some(kind) = entry.translation().filter(|_| entry.is_present() && !entry.has_reserved_bits()) else {
        return Seen::Blocked;
    };
    let first = entry.first_stage_levels().map(|levels| (entry.first_stage_table().as_u64(), levels as u8));
    let second =
        entry.width().map(|width| (entry.second_stage_table().as_u64(), width as u8, entry.keeps_second_stage_dirty()));
    let (uses_first, uses_second) = match kind {
        PasidTranslation::FirstStage => (true, false),
        PasidTranslation::SecondStage => (false, true),
        PasidTranslation::Nested => (true, true),
        PasidTranslation::PassThrough => (false, false),
    };
    if uses_first && first.is_none() || uses_second && second.is_none() {
        return Seen::Blocked;
    }
    let snoops = [entry.snoops_page_walks(), entry.enforces_snooping()];
    let id = entry.domain_id().as_u16();
    Seen::Translated(kind as u8, id, snoops, first.filter(|_| uses_first), second.filter(|_| uses_second))
}

const TABLES: [u64; 2] = [0x7_1000, 0xa_2000];
const WIDTHS: [AddressWidth; 3] = [AddressWidth::Bits39, AddressWidth::Bits48, AddressWidth::Bits57];
const LEVELS: [FirstStageLevels; 2] = [FirstStageLevels::Four, FirstStageLevels::Five];

/// Every kind of entry, with one of two tables and one of two domain ids, without flags.
fn kinds() -> Vec<PasidEntry> {
    let mut kinds = Vec::new();
    for domain in [DomainId::new(5), DomainId::new(6)] {
        for table in TABLES {
            let phys = PhysAddr::new(table);
            kinds.extend(LEVELS.map(|levels| PasidEntry::first_stage(phys, levels, domain)));
            kinds.extend(WIDTHS.map(|width| PasidEntry::second_stage(phys, width, domain)));
            for parent in TABLES.map(PhysAddr::new) {
                kinds.extend(
                    LEVELS.map(|levels| PasidEntry::nested(table, levels, parent, AddressWidth::Bits48, domain)),
                );
            }
        }
        kinds.extend(WIDTHS.map(|width| PasidEntry::pass_through(width, domain)));
    }
    kinds
}

/// The same with every set of flags; and entries that are not present, empty or not.
fn entries() -> Vec<PasidEntry> {
    let mut entries = vec![PasidEntry::default(), kinds()[0].not_present()];
    for entry in kinds() {
        let snooping = [entry, entry.with_page_walk_snoop(), entry.with_page_snoop()];
        entries.extend(snooping);
        entries.push(entry.with_page_walk_snoop().with_page_snoop());
        entries.push(entry.with_second_stage_dirty());
    }
    // What a first stage has left behind, where nobody looks.
    let mut left = PasidEntry::second_stage(PhysAddr::new(TABLES[0]), AddressWidth::Bits48, DomainId::new(5));
    left.words[2] = TABLES[1] | 1 << 2;
    entries.push(left);
    entries
}

fn steps(plan: &Plan) -> Vec<Step> {
    let mut steps = Vec::new();
    plan.each(&mut |step| {
        steps.push(step);
        Ok(())
    })
    .unwrap();
    steps
}

/// An entry that changes, and what a fetch may find: each piece of 128 bits in any state since the last
/// invalidation, which waits for fetches under way.
#[derive(Clone)]
struct Moment {
    states: Vec<PasidEntry>,
}

impl Moment {
    fn new(entry: PasidEntry) -> Self {
        Self { states: vec![entry] }
    }

    fn now(&self) -> PasidEntry {
        *self.states.last().unwrap()
    }

    fn step(&mut self, step: Step) {
        let mut next = self.now();
        match step {
            Step::Word(index, value) => next.words[index] = value,
            Step::Pair(low, values) => next.words[low..low + 2].copy_from_slice(&values),
            Step::Invalidate(_) => {
                self.states = vec![next];
                return;
            }
        }
        self.states.push(next);
    }

    /// Calls `visit` with all that a fetch may find.
    fn views(&self, mut visit: impl FnMut(Seen)) {
        for (first, low) in self.states.iter().enumerate() {
            for (second, high) in self.states.iter().enumerate() {
                // A fetch that met an absent entry is of no use once it is present (6.5.3.3): nothing
                // needs to be invalidated then, unless in caching mode.
                if second >= first || high.is_present() {
                    let mut torn = *low;
                    torn.words[2..4].copy_from_slice(&high.words[2..4]);
                    visit(seen(torn));
                }
            }
        }
    }
}

/// Whether the steps lead from `old` to `new` as they must; how, by the worst that is seen.
fn judge(old: PasidEntry, new: PasidEntry, steps: &[Step]) -> Option<Passage> {
    let (before, after) = (seen(old), seen(new));
    let mut moment = Moment::new(old);
    let mut passage = Passage::Hitless;
    for step in steps {
        moment.step(*step);
        let mut third = false;
        moment.views(|view| match view {
            view if view == before || view == after => {}
            Seen::Blocked => passage = Passage::Blocked,
            _ => third = true,
        });
        if third {
            return None;
        }
    }
    // The old tables are let go: nothing may go on with them.
    let mut held = false;
    moment.views(|view| held |= view == before && before != after && before != Seen::Blocked);
    (moment.now() == new && !held).then_some(passage)
}

#[test]
fn hardware_sees_the_old_entry_the_new_one_or_none() {
    for old in entries() {
        for new in entries() {
            for store in STORES {
                let plan = Plan::new(old, new, store);
                let steps = steps(&plan);
                assert_eq!(judge(old, new, &steps), Some(plan.passage()), "{old:x?} {new:x?} {store:?}: {steps:x?}");
                let pairs = steps.iter().any(|step| matches!(step, Step::Pair(..)));
                assert!(!pairs || store == Store::Bits128);
            }
        }
    }
}

#[test]
fn what_was_used_is_invalidated_before_it_is_let_go() {
    for old in entries() {
        for new in entries() {
            for store in STORES {
                let steps = steps(&Plan::new(old, new, store));
                let translations = Step::Invalidate(Invalidate::Translations);
                let count = steps.iter().filter(|step| **step == translations).count();
                let changes = old.is_present() && seen(old) != seen(new);
                assert_eq!(count, usize::from(changes), "{old:x?} {new:x?}: {steps:x?}");
            }
        }
    }
}

/// The table of the module's documentation.
#[test]
fn which_transitions_are_hitless() {
    use Passage::{Blocked, Hitless};
    let table = |index: usize| PhysAddr::new(TABLES[index]);
    let second = |index, id| PasidEntry::second_stage(table(index), AddressWidth::Bits48, DomainId::new(id));
    let first = |index, id| PasidEntry::first_stage(table(index), FirstStageLevels::Four, DomainId::new(id));
    let nested = |index: usize, parent, id| {
        let levels = FirstStageLevels::Four;
        PasidEntry::nested(TABLES[index], levels, table(parent), AddressWidth::Bits48, DomainId::new(id))
    };
    let pass = |id| PasidEntry::pass_through(AddressWidth::Bits48, DomainId::new(id));
    let absent = PasidEntry::default();
    for (old, new, bits64, bits128) in [
        (absent, first(0, 1), Hitless, Hitless),
        (nested(0, 1, 1), absent, Hitless, Hitless),
        (second(0, 1), second(1, 1), Hitless, Hitless),
        (second(0, 1), second(1, 2), Blocked, Hitless),
        (second(0, 1), second(0, 1).with_second_stage_dirty(), Hitless, Hitless),
        (second(0, 1), second(0, 1).with_page_snoop(), Hitless, Hitless),
        (second(0, 1), second(1, 1).with_page_snoop(), Blocked, Hitless),
        (second(0, 1), pass(1), Hitless, Hitless),
        (pass(2), second(0, 1), Blocked, Hitless),
        (pass(1), pass(2), Hitless, Hitless),
        (second(0, 1), first(0, 1), Hitless, Hitless),
        (second(0, 1), first(0, 2), Blocked, Hitless),
        (first(0, 1), second(0, 2), Blocked, Hitless),
        (first(0, 1), pass(1), Hitless, Hitless),
        (pass(2), nested(0, 1, 1), Blocked, Hitless),
        (nested(0, 1, 1), second(1, 1), Hitless, Hitless),
        (first(0, 1), first(1, 1), Hitless, Hitless),
        (first(0, 1), first(0, 2), Hitless, Hitless),
        (first(0, 1), first(1, 2), Blocked, Blocked),
        (first(0, 1), nested(0, 1, 2), Blocked, Hitless),
        (first(0, 1), nested(1, 1, 1), Blocked, Blocked),
        (nested(0, 1, 1), nested(1, 1, 1), Hitless, Hitless),
    ] {
        for (store, passage) in STORES.into_iter().zip([bits64, bits128]) {
            assert_eq!(Plan::new(old, new, store).passage(), passage, "{old:x?} {new:x?} {store:?}");
        }
    }
}

#[test]
fn stores_of_a_hitless_replacement() {
    let (table, other) = (PhysAddr::new(TABLES[0]), PhysAddr::new(TABLES[1]));
    let second = PasidEntry::second_stage(table, AddressWidth::Bits48, DomainId::new(1));
    let first = PasidEntry::first_stage(other, FirstStageLevels::Five, DomainId::new(2));
    let pair = |entry: PasidEntry| Step::Pair(0, [entry.words[0], entry.words[1]]);
    assert_eq!(
        steps(&Plan::new(second, first, Store::Bits128)),
        [
            Step::Word(2, first.words[2]),
            Step::Invalidate(Invalidate::Entry),
            pair(first),
            Step::Invalidate(Invalidate::Translations),
        ]
    );
    assert_eq!(
        steps(&Plan::new(first, second, Store::Bits128)),
        [pair(second), Step::Invalidate(Invalidate::Translations), Step::Word(2, 0),]
    );
    assert_eq!(
        steps(&Plan::new(first, second, Store::Bits64)),
        [
            Step::Word(0, first.not_present().words[0]),
            Step::Invalidate(Invalidate::Translations),
            Step::Word(1, second.words[1]),
            Step::Word(0, second.words[0]),
            Step::Word(2, 0),
        ]
    );
    assert_eq!(steps(&Plan::new(second, second, Store::Bits64)), []);
}

/// Passage, invalidations, pairs, stores: fewer is better, in this order.
type Cost = (bool, usize, usize, usize);

fn cost(passage: Passage, steps: &[Step]) -> Cost {
    let count = |kind: fn(&Step) -> bool| steps.iter().filter(|step| kind(step)).count();
    let pairs = count(|step| matches!(step, Step::Pair(..)));
    let invalidations = count(|step| matches!(step, Step::Invalidate(_)));
    (passage == Passage::Blocked, invalidations, pairs, steps.len() - invalidations)
}

/// Tries all sequences of up to four stores and invalidations that cost less than `best`.
fn cheaper(old: PasidEntry, new: PasidEntry, store: Store, best: Cost, steps: &mut Vec<Step>) -> Option<Vec<Step>> {
    let mut moment = Moment::new(old);
    steps.iter().for_each(|step| moment.step(*step));
    let now = moment.now();
    let mut choices = Vec::new();
    for index in 0..3 {
        let absent = [old.not_present().words[index], new.not_present().words[index]];
        choices.extend(
            [old.words[index], new.words[index]].into_iter().chain(absent).map(|value| Step::Word(index, value)),
        );
    }
    if store == Store::Bits128 {
        choices.push(Step::Pair(0, [old.words[0], old.words[1]]));
        choices.push(Step::Pair(0, [new.words[0], new.words[1]]));
    }
    choices.retain(|step| match *step {
        Step::Word(index, value) => now.words[index] != value,
        Step::Pair(_, values) => now.words[..2] != values,
        Step::Invalidate(_) => true,
    });
    if !matches!(steps.last(), None | Some(Step::Invalidate(_))) {
        choices.push(Step::Invalidate(Invalidate::Translations));
    }
    let mut done = Vec::new();
    for step in choices {
        if done.contains(&step) {
            continue;
        }
        done.push(step);
        steps.push(step);
        let mut after = moment.clone();
        after.step(step);
        let (before, later) = (seen(old), seen(new));
        let mut possible = cost(Passage::Hitless, steps) < best && steps.len() <= 4;
        after.views(|view| possible &= view == before || view == later || view == Seen::Blocked);
        if possible {
            if judge(old, new, steps).is_some_and(|passage| cost(passage, steps) < best) {
                return Some(steps.clone());
            }
            if let Some(found) = cheaper(old, new, store, best, steps) {
                return Some(found);
            }
        }
        steps.pop();
    }
    None
}

#[test]
fn no_plan_is_cheaper() {
    let some: Vec<_> = {
        let (table, other) = (PhysAddr::new(TABLES[0]), PhysAddr::new(TABLES[1]));
        let (one, two) = (DomainId::new(1), DomainId::new(2));
        let (width, levels) = (AddressWidth::Bits48, FirstStageLevels::Four);
        vec![
            PasidEntry::default(),
            PasidEntry::first_stage(table, levels, one),
            PasidEntry::first_stage(other, levels, two),
            PasidEntry::second_stage(table, width, one),
            PasidEntry::second_stage(other, width, two).with_page_snoop(),
            PasidEntry::nested(TABLES[0], levels, other, width, one),
        ]
    };
    for &old in &some {
        for &new in &some {
            for store in STORES {
                let plan = Plan::new(old, new, store);
                let cost = cost(plan.passage(), &steps(&plan));
                let cheaper = cheaper(old, new, store, cost, &mut Vec::new());
                assert_eq!(cheaper, None, "{old:x?} {new:x?} {store:?}: {:x?}", steps(&plan));
            }
        }
    }
}
