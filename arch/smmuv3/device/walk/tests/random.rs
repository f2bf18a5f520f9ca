//! Random tables, against the [`naive`](super::naive) walker.

extern crate std;
use std::collections::BTreeMap;

use super::naive::{Naive, Problem, Wants};
use super::{Access, Context, FULL, Fault, Lookup, NoStructureCache, QEMU, check_cd, check_ste, translate};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::device::walk::{Goal, Privilege, Stage, StreamWorld};
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
struct Descriptors {
    seed: u64,
    /// The first address bit that is hardly ever used.
    bits: u32,
    swapped: bool,
}

impl Descriptors {
    fn word(&self, address: u64) -> Option<u64> {
        let mut next = self.seed ^ address;
        let mut one_of = |many: u64| {
            next = mix(next);
            next.is_multiple_of(many)
        };
        if one_of(100) {
            return None;
        }
        let mut word = mix(!self.seed ^ address.rotate_left(20));
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
            word &= !(((1 << 52) - (1 << self.bits)) | 0xf << 12);
        }
        // Permit more than not, and normal memory.
        if !one_of(6) {
            word = word & !(0x1f << 59) | 3 << 6;
        }
        if !one_of(6) {
            word |= 0xf << 2;
        }
        Some(if self.swapped { word.swap_bytes() } else { word })
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

/// Where a request goes, and log2 of its block.
type End<F> = Result<(u64, u32), F>;

/// Runs one request through both walkers; `None` when the structures are not valid.
fn run(seed: u64) -> Option<(Lookup, End<Fault>, End<Problem>)> {
    let mut next = mix(!seed);
    let mut random = |many: u64| {
        next = mix(next);
        next % many
    };
    let mut unit = if random(4) == 0 { QEMU } else { FULL };
    // HAD, XNX, FWB, E0PD, EPAN come and go.
    unit.idr3 ^= [0, 1 << 2, 1 << 4, 1 << 8, 1 << 13, 1 << 17][random(6) as usize];
    let stages = random(3);
    let swapped = random(8) == 0;
    let memory = Descriptors { seed: mix(seed), bits: if unit.idr5 & 7 == 6 { 44 } else { 38 }, swapped };
    let mut rarely = |bits: u64| if random(4) == 0 { bits } else { 0 };

    // TBI, WXN, PAN, AFFD; HAD, E0PD, EPAN.
    let controls = rarely(3 << 38) | rarely(1 << 36) | rarely(1 << 40) | rarely(1 << 35);
    let (lower_controls, upper_controls) = (rarely(2) | rarely(4) | rarely(1 << 59), rarely(2) | rarely(4));
    // S2AFFD, S2PTW, S2FWB.
    let (controls2, s2fwb) = (rarely(1 << 53) | rarely(1 << 54), rarely(1 << 25));
    let off = rarely(1 << 14) | rarely(1 << 30);

    let (tg0, tg1, ds, ips) = ([0, 1, 2][random(3) as usize], 1 + random(3), random(2), 4 + random(4));
    let (t0sz, t1sz) = (12 + random(37), 12 + random(37));
    let (ttb0, ttb1) = (random(1 << 36) << 4, random(1 << 36) << 4);
    let endian = u64::from(swapped);
    let fixed = 1 << 31 | 1 << 41 | 1 << 46;
    let word0 = t0sz | tg0 << 6 | endian << 15 | t1sz << 16 | tg1 << 22 | ips << 32 | fixed | controls | off;
    let cd = [word0, ttb0 | lower_controls, ttb1 | upper_controls | ds << 58, 0, 0, 0, 0, 0];

    let (s2tg, s2ds, s2t0sz, s2ps, s2sl0) = (random(3), random(2), 12 + random(37), 4 + random(4), random(8));
    let word2 = (s2t0sz | (s2sl0 & 3) << 6 | s2tg << 14 | s2ps << 16 | 1 << 19 | endian << 20) << 32 | controls2;
    let word3 = random(1 << 36) << 4 | s2ds << 3 | (s2sl0 >> 2) << 2;
    let config = 0b100 | u64::from(stages != 0) << 1 | u64::from(stages != 1);
    let ste = [config << 1 | 1, s2fwb, word2, word3, 0, 0, 0, 0];

    let context =
        Context { ste: Ste { words: ste }, cd: (stages != 1).then_some(Cd { words: cd }), world: StreamWorld::NsEl1 };
    check_ste(&unit, &context.ste).ok()?;
    if let Some(cd) = &context.cd {
        check_cd(&unit, &context.ste, context.world, cd).ok()?;
    }
    // Within the input more often than not, in either half.
    let upper = stages != 1 && random(2) == 0;
    let input = 64 - [if upper { t1sz } else { t0sz }, s2t0sz, t0sz.max(s2t0sz)][stages as usize];
    let mut address = mix(random(u64::MAX)) & u64::MAX >> (64 - input - random(16) / 15);
    if upper {
        address = !address;
    }
    if random(8) == 0 {
        address ^= random(256) << 56;
    }
    let (access, wants) = [
        (Access::Read, Wants::Read),
        (Access::Write, Wants::Write),
        (Access::Execute, Wants::Execute),
        (Access::Atomic, Wants::Atomic),
    ][random(4) as usize];
    let privilege = [Privilege::Unprivileged, Privilege::Privileged][random(2) as usize];
    let lookup = Lookup { address, access, privilege, goal: Goal::Access };

    let walked = translate(&memory, &unit, &context, &lookup, &mut NoStructureCache);
    let walked = walked.map(|found| (found.translate(address).as_u64(), u32::from(found.block_bits)));
    let naive = Naive {
        idr3: unit.idr3,
        idr5: unit.idr5,
        ste,
        cd: context.cd.map(|cd| cd.words),
        memory: |at| memory.word(at),
    };
    Some((lookup, walked, naive.translate(address, wants, privilege == Privilege::Privileged)))
}

fn problem(fault: Fault) -> Problem {
    Problem {
        event: fault.kind.0,
        second: fault.stage == Stage::Two,
        class: match fault.class {
            FaultClass::Cd => 0,
            FaultClass::TranslationTable => 1,
            FaultClass::Input => 2,
            FaultClass::Reserved => 3,
        },
        address: fault.second_address,
        lacks_read: fault.lacks_read_only,
    }
}

#[test]
fn random_tables() {
    let mut seen = BTreeMap::new();
    for seed in 0..300_000 {
        let Some((lookup, walked, naive)) = run(seed) else {
            continue;
        };
        let walked = walked.map_err(problem);
        assert_eq!(walked, naive, "seed {seed}, {lookup:x?}");
        *seen.entry(walked.map_or_else(|end| (end.event, end.second), |_| (0, false))).or_insert(0_u32) += 1;
    }
    // Each end was met, and often.
    for second in [false, true] {
        for kind in [
            EventKind::F_WALK_EABT,
            EventKind::F_TRANSLATION,
            EventKind::F_ADDR_SIZE,
            EventKind::F_ACCESS,
            EventKind::F_PERMISSION,
        ] {
            assert!(seen.get(&(kind.0, second)).is_some_and(|count| *count > 100), "{kind:?} {second}: {seen:?}");
        }
    }
    assert!(seen[&(0, false)] > 1000, "{seen:?}");
}
