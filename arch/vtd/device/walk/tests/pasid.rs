//! PASID directory and table: Figures 9-5 and 9-6, conditions SCT.7, SPD, SPT.

use super::memory::Memory;
use super::{reason, suppressed, unit};
use crate::addr::PhysAddr;
use crate::arch::vtd::device::walk::{FirstStageRoot, Mode, PasidInfo, PermissionBits, SecondStageRoot, Stages, pasid};
use crate::arch::vtd::device::{Blocked, DeviceConfig, Recorded, Snoop};
use crate::arch::vtd::layout::scalable::{FirstStageLevels, ScalableContextEntry};
use crate::arch::vtd::layout::{AddressWidth, Cap, DomainId, Ecap};

/// Directory index 0x48d, table index 5: the directory at 0x4000 has 2048 entries (PDTS 4), the table
/// is at 0x8000.
const PASID: u32 = 0x12345;
const CONTEXT: ScalableContextEntry = ScalableContextEntry { words: [0x4801, 0, 0, 0] };
const DIRECTORY_SLOT: u64 = 0x6468;
const SLOT: u64 = 0x8140;

fn memory(entry: [u64; 8]) -> Memory {
    let memory = Memory::new(&[(DIRECTORY_SLOT, 0x8001)]);
    for (word, at) in entry.into_iter().zip((SLOT..).step_by(8)) {
        memory.put(at, word);
    }
    memory
}

fn find(config: &DeviceConfig, entry: [u64; 8]) -> Result<PasidInfo, Blocked> {
    let memory = memory(entry);
    let found = pasid(&memory, config, 0x1400, &CONTEXT, PASID);
    assert_eq!(memory.take_reads(), 9);
    found
}

/// Everything that this unit can have.
fn whole() -> DeviceConfig {
    unit(Cap::FS5LP, Ecap::all())
}

const SECOND: SecondStageRoot = SecondStageRoot {
    mode: Mode::Scalable,
    table: PhysAddr::new(0x5000),
    width: AddressWidth::Bits48,
    snoop: Snoop::No,
    permissions: PermissionBits::Shared,
    keeps_dirty: false,
    recorded: Recorded::Yes,
};

const FIRST: FirstStageRoot = FirstStageRoot {
    table: PhysAddr::new(0x7000),
    levels: FirstStageLevels::Four,
    snoop: Snoop::No,
    protects_writes: false,
    keeps_extended_accessed: false,
    recorded: Recorded::Yes,
};

#[test]
fn entries() {
    // P, AW 4:2 = 2, PGTT 8:6 = 2, SSADE 9, SSPTPTR; DID 79:64, PWSNP 87.
    let found = find(&whole(), [0x5000 | 2 << 6 | 2 << 2 | 1, 0xabcd, 0, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!((found.stages, found.domain()), (Stages::Second(SECOND), DomainId::new(0xabcd)));
    let found = find(&whole(), [0x5000 | 1 << 9 | 2 << 6 | 1 << 2 | 1, 0x80_0007, 0, 0, 0, 0, 0, 0]).unwrap();
    let second = SecondStageRoot { keeps_dirty: true, width: AddressWidth::Bits39, snoop: Snoop::Yes, ..SECOND };
    assert_eq!(found.stages, Stages::Second(second));
    // SRE 128, FSPM 131:130, WPE 132, ignored 134:133, EAFE 135, FSPTPTR 191:140.
    let found = find(&whole(), [1 << 6 | 1, 7, 0x7000, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(found.stages, Stages::First(FIRST));
    let found = find(&whole(), [1 << 6 | 1, 0x80_0007, 0x7000 | 0xf4, 0, 0, 0, 0, 0]).unwrap();
    let first = FirstStageRoot {
        levels: FirstStageLevels::Five,
        snoop: Snoop::Yes,
        protects_writes: true,
        keeps_extended_accessed: true,
        ..FIRST
    };
    assert_eq!(found.stages, Stages::First(first));
    let found = find(&whole(), [0x5000 | 3 << 6 | 2 << 2 | 1, 7, 0x7000, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(found.stages, Stages::Nested(FIRST, SECOND));
    let found = find(&whole(), [4 << 6 | 1, 7, 0, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!((found.stages, found.recorded), (Stages::PassThrough, Recorded::Yes));
    // SSIRWE in RTADDR.
    let found = pasid(&memory([0x5089 | 2 << 6, 7, 0, 0, 0, 0, 0, 0]), &whole(), 0x1480, &CONTEXT, PASID).unwrap();
    assert_eq!(found.stages, Stages::Second(SecondStageRoot { permissions: PermissionBits::Io, ..SECOND }));
}

#[test]
fn suppressed_by_any_entry() {
    let config = whole();
    let entry = [0x5089, 7, 0, 0, 0, 0, 0, 0];
    let quiet = ScalableContextEntry { words: [0x4803, 0, 0, 0] };
    let of = |memory: &Memory, context| pasid(memory, &config, 0x1400, context, PASID);
    assert_eq!(of(&memory(entry), &quiet).unwrap().recorded, Recorded::Suppressed);
    let directory = memory(entry);
    directory.put(DIRECTORY_SLOT, 0x8003);
    assert_eq!(of(&directory, &CONTEXT).unwrap().recorded, Recorded::Suppressed);
    let found = find(&config, [0x508b, 7, 0, 0, 0, 0, 0, 0]).unwrap();
    let Stages::Second(root) = found.stages else { panic!("a second stage") };
    assert_eq!((found.recorded, root.recorded), (Recorded::Suppressed, Recorded::Suppressed));
}

#[test]
fn directory_faults() {
    let config = whole();
    let of = |memory: &Memory, context| pasid(memory, &config, 0x1400, context, PASID);
    // SCT.7: PDTS 3 is 1024 directory entries.
    let small = ScalableContextEntry { words: [0x4601, 0, 0, 0] };
    assert_eq!(reason(of(&memory([0; 8]), &small)), 0x46);
    let small = ScalableContextEntry { words: [0x4603, 0, 0, 0] };
    assert_eq!(suppressed(of(&memory([0; 8]), &small)), 0x46);
    // SPD.1, not qualified.
    let elsewhere = ScalableContextEntry { words: [0x8000_0803, 0, 0, 0] };
    assert_eq!(reason(of(&memory([0; 8]), &elsewhere)), 0x50);
    for (word, code) in [(0x8000, 0x51), (0x8005, 0x52), (0x8801, 0x52), (0x4000_0000_8001, 0x52)] {
        let memory = memory([0; 8]);
        memory.put(DIRECTORY_SLOT, word);
        assert_eq!(reason(of(&memory, &CONTEXT)), code, "{word:x}"); // SPD.2, SPD.3
        memory.put(DIRECTORY_SLOT, word | 2);
        assert_eq!(suppressed(of(&memory, &CONTEXT)), code, "{word:x}");
    }
    // SPT.1, not qualified.
    let memory = memory([0; 8]);
    memory.put(DIRECTORY_SLOT, 0x8000_0003);
    assert_eq!(reason(of(&memory, &CONTEXT)), 0x58);
}

#[test]
fn entries_that_are_not_present() {
    assert_eq!(reason(find(&whole(), [0x5088, 7, 0, 0, 0, 0, 0, 0])), 0x59); // SPT.2
    assert_eq!(suppressed(find(&whole(), [0x508a, 7, 0, 0, 0, 0, 0, u64::MAX])), 0x59);
}

#[test]
fn reserved_fields() {
    // Of the whole entry of 512 bits; host permission tables (256 to 335) are on no unit. The host has
    // 46 bits.
    let always =
        [5, 10, 11, 46, 63, 80, 86, 91, 95, 129, 136, 139, 174, 191, 192, 255, 256, 258, 268, 320, 335, 336, 511];
    for bit in always {
        let mut entry = [0x5089_u64, 7, 0, 0, 0, 0, 0, 0];
        entry[bit / 64] |= 1 << (bit % 64);
        assert_eq!(reason(find(&whole(), entry)), 0x5a, "bit {bit}"); // SPT.3
        entry[0] |= 2;
        assert_eq!(suppressed(find(&whole(), entry)), 0x5a, "bit {bit}");
    }
    let depends = [
        (Ecap::SSADS, 9),
        (Ecap::SMPWCS, 87),
        (Ecap::SC, 88),
        (Ecap::MTS, 89),
        (Ecap::MTS, 90),
        (Ecap::MTS, 96),
        (Ecap::MTS, 127),
        (Ecap::SRS, 128),
        (Ecap::FSTS, 130),
        (Ecap::FSTS, 132),
        (Ecap::EAFS, 135),
        (Ecap::FSTS, 140),
    ];
    for (capability, bit) in depends {
        let mut entry = [0x5089_u64, 7, 0, 0, 0, 0, 0, 0];
        entry[bit / 64] |= 1 << (bit % 64);
        assert!(find(&whole(), entry).is_ok(), "bit {bit}");
        let without = DeviceConfig { ecap: Ecap::all() - capability, ..whole() };
        assert_eq!(reason(find(&without, entry)), 0x5a, "bit {bit}");
    }
    // AW and SSPTPTR without a second stage.
    let without = DeviceConfig { ecap: Ecap::all() - Ecap::SSTS, ..whole() };
    for word in [0x41 | 1 << 2, 0x41 | 0x1000, 0x41 | 1 << 9] {
        assert_eq!(reason(find(&without, [word, 7, 0x7000, 0, 0, 0, 0, 0])), 0x5a, "{word:x}");
        assert!(find(&whole(), [word, 7, 0x7000, 0, 0, 0, 0, 0]).is_ok(), "{word:x}");
    }
    assert!(find(&without, [0x41, 7, 0x7000, 0, 0, 0, 0, 0]).is_ok());
    // ND 2: domain ids of 8 bits.
    let few = DeviceConfig { cap: Cap::from_bits_retain(0x002f_0602), ..whole() };
    assert_eq!(reason(find(&few, [0x5089, 0x100, 0, 0, 0, 0, 0, 0])), 0x5a);
}

#[test]
fn invalid_entries() {
    let all = whole();
    let bad = |config: &DeviceConfig, entry: [u64; 3]| {
        let [w0, w1, w2] = entry;
        let code = reason(find(config, [w0, w1, w2, 0, 0, 0, 0, 0]));
        assert_eq!(suppressed(find(config, [w0 | 2, w1, w2, 0, 0, 0, 0, 0])), code);
        code
    };
    // SPT.4.1: AW 0, 3 (57 bits, not in SAGAW), 4.
    for aw in [0, 3, 4] {
        assert_eq!(bad(&all, [0x5081 | aw << 2, 7, 0]), 0x5b, "AW {aw}");
        assert_eq!(bad(&all, [0x50c1 | aw << 2, 7, 0x7000]), 0x5b, "AW {aw}, nested");
        // It does not count where nothing walks the second stage.
        assert!(find(&all, [0x41 | aw << 2, 7, 0x7000, 0, 0, 0, 0, 0]).is_ok());
        assert!(find(&all, [0x101 | aw << 2, 7, 0, 0, 0, 0, 0, 0]).is_ok());
    }
    // SPT.4.2: PGTT.
    for pgtt in [0, 5, 6, 7] {
        assert_eq!(bad(&all, [0x5009 | pgtt << 6, 7, 0]), 0x5b, "PGTT {pgtt}");
    }
    let without = |ecap| DeviceConfig { ecap: Ecap::all() - ecap, ..whole() };
    assert_eq!(bad(&without(Ecap::FSTS), [0x41, 7, 0]), 0x5b);
    assert_eq!(bad(&without(Ecap::SSTS), [0x81, 7, 0]), 0x5b);
    assert_eq!(bad(&without(Ecap::NEST), [0x50c9, 7, 0x7000]), 0x5b);
    assert_eq!(bad(&without(Ecap::PT), [0x101, 7, 0]), 0x5b);
    // SPT.4.3: FSPM 1 without FS5LP, 2, 3.
    let four = unit(Cap::empty(), Ecap::all());
    assert_eq!(bad(&four, [0x41, 7, 0x7004]), 0x5b);
    assert_eq!(bad(&all, [0x41, 7, 0x7008]), 0x5b);
    assert_eq!(bad(&all, [0x41, 7, 0x700c]), 0x5b);
    // SPT.4.4: AW 1 is 39 bits.
    assert_eq!(bad(&all, [0x50c5, 7, 0x80_0000_0000]), 0x5b);
    assert!(find(&all, [0x50c5, 7, 0x7f_ffff_f000, 0, 0, 0, 0, 0]).is_ok());
    // MGAW 36 bits.
    let narrow = DeviceConfig { cap: Cap::from_bits_retain(0x0023_0606), ..whole() };
    assert_eq!(bad(&narrow, [0x50c5, 7, 0x10_0000_0000]), 0x5b);
    assert!(find(&narrow, [0x50c5, 7, 0xf_ffff_f000, 0, 0, 0, 0, 0]).is_ok());
}

#[test]
fn tables_that_are_not_cleaned() {
    let config = DeviceConfig { ecap: Ecap::all() - Ecap::C, ..whole() };
    let of = |memory: &Memory| pasid(memory, &config, 0x1400, &CONTEXT, PASID);
    let memory = Memory::new(&[]);
    memory.put_uncleaned(DIRECTORY_SLOT, 0x8001);
    assert_eq!(reason(of(&memory)), 0x51);
    memory.put(DIRECTORY_SLOT, 0x8001);
    memory.put_uncleaned(SLOT, 0x101);
    assert_eq!(reason(of(&memory)), 0x59);
    memory.put(SLOT, 0x101);
    assert_eq!(of(&memory).unwrap().stages, Stages::PassThrough);
}
