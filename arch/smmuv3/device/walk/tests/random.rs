//! Random tables, against the [`naive`](super::naive) walker.

extern crate std;

use super::naive::{self, Found, Wrong};
use super::{Access, Context, FULL, Fault, Lookup, NoStructureCache, check_cd, check_ste, translate};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::device::walk::{Privilege, Stage, StreamWorld, Translation};
use crate::arch::smmuv3::device::{DeviceAnswer, Host, Interrupt, Snoop, Unreachable};
use crate::arch::smmuv3::layout::events::{EventKind, FaultClass};
use crate::arch::smmuv3::layout::{Cd, Ste, StreamId};

/// splitmix64, which is in the public domain.
fn mix(seed: u64) -> u64 {
    let seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let seed = (seed ^ seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let seed = (seed ^ seed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    seed ^ seed >> 31
}

/// All of memory is descriptors, most of them good.
struct Descriptors(u64);

impl Descriptors {
    fn word(&self, address: u64) -> Option<u64> {
        let mut next = self.0 ^ address;
        let mut one_of = |many: u64| {
            next = mix(next);
            next % many == 0
        };
        if one_of(100) {
            return None;
        }
        let mut word = mix(!self.0 ^ address.rotate_left(20));
        word |= 3;
        if one_of(5) {
            word &= !2;
        }
        if one_of(12) {
            word &= !1;
        }
        if !one_of(12) {
            word |= 1 << 10;
        }
        if !one_of(6) {
            word &= !(0xff << 44 | 0xf << 12);
        }
        // Permit more than not.
        if !one_of(6) {
            word = word & !(0x1f << 59) | 3 << 6;
        }
        Some(word)
    }
}

impl Host for Descriptors {
    fn read(&self, address: PhysAddr, _: Snoop) -> Result<u64, Unreachable> {
        self.word(address.as_u64()).ok_or(Unreachable)
    }

    fn compare_exchange(&self, _: PhysAddr, _: u64, _: u64) -> Result<bool, Unreachable> {
        panic!("a walk does not write");
    }

    fn write64(&self, _: PhysAddr, _: u64) -> Result<(), Unreachable> {
        panic!("a walk does not write");
    }

    fn interrupt(&self, _: Interrupt) -> Result<(), Unreachable> {
        panic!("a walk does not interrupt");
    }

    fn invalidate_atc(&self, _: StreamId, _: Option<u32>, _: u64, _: u8) -> DeviceAnswer {
        panic!("a walk does not invalidate");
    }
}

/// The page size of TG0 and S2TG.
fn page(tg: u64) -> u32 {
    [12, 16, 14][tg as usize]
}

/// Bits of IPS and S2PS, in a unit of 52.
fn size(code: u64) -> u32 {
    [32, 36, 40, 42, 44, 48, 52, 52][code as usize]
}

fn is_permitted(permits: [bool; 3], access: Access) -> bool {
    let [read, write, execute] = permits;
    match access {
        Access::Read => read,
        Access::Write => write,
        Access::Execute => execute,
        Access::Atomic => read && write,
    }
}

struct Naive<'a> {
    memory: &'a Descriptors,
    first: Option<naive::Stage>,
    second: Option<naive::Stage>,
}

impl Naive<'_> {
    /// Where an intermediate address goes, and how many bits of it stay.
    fn second(&self, ipa: u64, class: FaultClass, access: Access, privileged: bool) -> Result<(u64, u32), Fault> {
        let Some(stage) = &self.second else {
            return Ok((ipa, 64));
        };
        let fault = |kind| Fault::stage2(kind, class, ipa);
        if stage.input < 64 && ipa >> stage.input != 0 {
            return Err(fault(EventKind::F_TRANSLATION));
        }
        let read = |at| self.memory.word(at).ok_or(Fault::walk_abort(Stage::Two, class, at));
        let found = stage.walk(ipa, read).map_err(|wrong| match wrong {
            Wrong::Unmapped => fault(EventKind::F_TRANSLATION),
            Wrong::TooLarge => fault(EventKind::F_ADDR_SIZE),
            Wrong::NotAccessed => fault(EventKind::F_ACCESS),
            Wrong::Other(other) => other,
        })?;
        let permits = naive::stage2_permits(&found, privileged);
        if !is_permitted(permits, access) {
            let lacks_read_only = access == Access::Atomic && permits[1];
            return Err(Fault { lacks_read_only, ..fault(EventKind::F_PERMISSION) });
        }
        Ok((found.output, found.bits))
    }

    fn first(&self, lookup: &Lookup, privileged: bool) -> Result<Option<Found>, Fault> {
        let Some(stage) = &self.first else {
            return if lookup.address >> 52 == 0 { Ok(None) } else { Err(Fault::stage1(EventKind::F_ADDR_SIZE)) };
        };
        if lookup.address >> stage.input != 0 {
            return Err(Fault::stage1(EventKind::F_TRANSLATION));
        }
        let read = |at| {
            let (at, _) = self.second(at, FaultClass::TranslationTable, Access::Read, true)?;
            self.memory.word(at).ok_or(Fault::walk_abort(Stage::One, FaultClass::TranslationTable, at))
        };
        let found = stage.walk(lookup.address, read).map_err(|wrong| match wrong {
            Wrong::Unmapped => Fault::stage1(EventKind::F_TRANSLATION),
            Wrong::TooLarge => Fault::stage1(EventKind::F_ADDR_SIZE),
            Wrong::NotAccessed => Fault::stage1(EventKind::F_ACCESS),
            Wrong::Other(other) => other,
        })?;
        let permits = naive::stage1_permits(&found, privileged);
        if !is_permitted(permits, lookup.access) {
            let lacks_read_only = lookup.access == Access::Atomic && permits[1];
            return Err(Fault { lacks_read_only, ..Fault::stage1(EventKind::F_PERMISSION) });
        }
        Ok(Some(found))
    }

    /// Where it goes, and how many bits stay.
    fn translate(&self, lookup: &Lookup) -> Result<(u64, u32), Fault> {
        let privileged = lookup.privilege == Privilege::Privileged;
        let (ipa, bits) = match self.first(lookup, privileged)? {
            Some(found) => (found.output, found.bits),
            None => (lookup.address, 64),
        };
        let (output, other) = self.second(ipa, FaultClass::Input, lookup.access, privileged)?;
        Ok((output, bits.min(other)))
    }
}

/// Runs one request; `None` when the structures are not valid.
fn run(seed: u64) -> Option<(Lookup, Result<Translation, Fault>, Result<(u64, u32), Fault>)> {
    let mut next = seed;
    let mut random = |many: u64| {
        next = mix(next);
        next % many
    };
    let memory = Descriptors(mix(seed));
    let stages = random(3);
    let (has_first, has_second) = (stages != 1, stages != 0);

    let (tg, ds, t0sz, ips, had) = (random(3), random(2), 12 + random(37), 4 + random(4), random(2));
    let ttb = random(1 << 36) << 4;
    let word0 = t0sz | tg << 6 | 1 << 30 | 1 << 31 | ips << 32 | 1 << 41 | 1 << 46;
    let cd = Cd { words: [word0, ttb | had << 1, ds << 58, 0, 0, 0, 0, 0] };

    let (s2tg, s2ds, s2t0sz, s2ps, s2sl0) = (random(3), random(2), 12 + random(37), 4 + random(4), random(8));
    let s2ttb = random(1 << 36) << 4;
    let word2 = (s2t0sz | (s2sl0 & 3) << 6 | s2tg << 14 | s2ps << 16 | 1 << 19) << 32;
    let config = 0b100 | u64::from(has_second) << 1 | u64::from(has_first);
    let word3 = s2ttb | s2ds << 3 | (s2sl0 >> 2) << 2;
    let ste = Ste { words: [config << 1 | 1, 0, word2, word3, 0, 0, 0, 0] };

    check_ste(&FULL, &ste).ok()?;
    if has_first {
        check_cd(&FULL, &ste, StreamWorld::NsEl1, &cd).ok()?;
    }
    let levels = match page(s2tg) {
        12 if s2ds == 1 => [2, 1, 0, 3, -1, 9, 9, 9],
        12 => [2, 1, 0, 3, 2, 1, 0, 3],
        14 => [3, 2, 1, 0, 3, 2, 1, 0],
        _ => [3, 2, 1, 9, 3, 2, 1, 9],
    };
    let naive = Naive {
        memory: &memory,
        first: has_first.then(|| naive::Stage {
            page: page(tg),
            wide: ds == 1 && tg != 1,
            huge: true,
            input: 64 - t0sz as u32,
            output: size(ips),
            base: ttb,
            start: None,
            hierarchy: had == 0,
        }),
        second: has_second.then(|| naive::Stage {
            page: page(s2tg),
            wide: s2ds == 1 && s2tg != 1,
            huge: true,
            input: 64 - s2t0sz as u32,
            output: size(s2ps),
            base: s2ttb,
            start: Some(levels[s2sl0 as usize]),
            hierarchy: false,
        }),
    };
    let bits = if has_first { 64 - t0sz } else { 64 - s2t0sz } + random(8) / 7;
    let lookup = Lookup {
        address: mix(random(u64::MAX)) & u64::MAX >> (64 - bits),
        access: [Access::Read, Access::Write, Access::Execute, Access::Atomic][random(4) as usize],
        privilege: [Privilege::Unprivileged, Privilege::Privileged][random(2) as usize],
        goal: crate::arch::smmuv3::device::walk::Goal::Access,
    };
    let context = Context { ste, cd: has_first.then_some(cd), world: StreamWorld::NsEl1 };
    let walked = translate(&memory, &FULL, &context, &lookup, &mut NoStructureCache);
    Some((lookup, walked, naive.translate(&lookup)))
}

#[test]
fn random_tables() {
    let mut seen = std::collections::BTreeMap::new();
    for seed in 0..200_000 {
        let Some((lookup, walked, naive)) = run(seed) else {
            continue;
        };
        let found = walked.map(|found| (found.translate(lookup.address).as_u64(), u32::from(found.block_bits)));
        assert_eq!(found, naive, "seed {seed}, {lookup:x?}");
        let what = found.map_or_else(|fault| (fault.kind.0, fault.stage == Stage::Two), |_| (0, false));
        *seen.entry(what).or_insert(0_u32) += 1;
    }
    // Each end was met, and often.
    for stage2 in [false, true] {
        for kind in [
            EventKind::F_WALK_EABT,
            EventKind::F_TRANSLATION,
            EventKind::F_ADDR_SIZE,
            EventKind::F_ACCESS,
            EventKind::F_PERMISSION,
        ] {
            assert!(seen.get(&(kind.0, stage2)).is_some_and(|count| *count > 100), "{kind:?} {stage2}: {seen:?}");
        }
    }
    assert!(seen[&(0, false)] > 1000, "{seen:?}");
}
