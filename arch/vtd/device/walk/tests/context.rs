//! Root and context entries: Figures 9-1 to 9-4, conditions RTA, LRT, LCT, SRT, SCT.

use super::memory::Memory;
use super::{reason, suppressed, unit};
use crate::addr::PhysAddr;
use crate::arch::vtd::device::walk::{ContextInfo, PermissionBits, SecondStageRoot, context};
use crate::arch::vtd::device::walk::{Mode, host_address};
use crate::arch::vtd::device::{Blocked, DeviceConfig, Recorded, Snoop};
use crate::arch::vtd::layout::scalable::ScalableContextEntry;
use crate::arch::vtd::layout::tables::TranslationType;
use crate::arch::vtd::layout::{AddressWidth, Cap, DomainId, Ecap};

/// Bus 3, device 2, function 0: root entry at 16 * 3, context entry at 16 * 0x10.
const SOURCE: u16 = 0x0310;

fn legacy(config: &DeviceConfig, root: [u64; 2], entry: [u64; 2]) -> Result<ContextInfo, Blocked> {
    let words = [(0x1030, root[0]), (0x1038, root[1]), (0x2100, entry[0]), (0x2108, entry[1])];
    let memory = Memory::new(&words);
    let found = context(&memory, config, 0x1000, SOURCE);
    assert!(memory.take_reads() <= 4);
    found
}

#[test]
fn legacy_entries() {
    let config = unit(Cap::empty(), Ecap::DT | Ecap::PT);
    let root = SecondStageRoot {
        mode: Mode::Legacy,
        table: PhysAddr::new(0x5000),
        width: AddressWidth::Bits48,
        snoop: Snoop::Yes,
        permissions: PermissionBits::Shared,
        keeps_dirty: false,
        recorded: Recorded::Yes,
    };
    let of = |translation, root| ContextInfo::Legacy { domain: DomainId::new(0xabcd), translation, root };
    // P, TT 3:2, SSPTPTR 63:12; AW 66:64, ignored 70:67, DID 87:72.
    let found = legacy(&config, [0x2001, 0], [0x5001, 0xab_cd02]);
    assert_eq!(found, Ok(of(TranslationType::Untranslated, root)));
    let found = legacy(&config, [0x2001, 0], [0x5005, 0xab_cd7a]);
    assert_eq!(found, Ok(of(TranslationType::DeviceTlb, root)));
    let narrow = SecondStageRoot { width: AddressWidth::Bits39, recorded: Recorded::Suppressed, ..root };
    let found = legacy(&config, [0x2001, 0], [0x5003, 0xab_cd01]);
    assert_eq!(found, Ok(of(TranslationType::Untranslated, narrow)));
    // With pass-through the table is ignored, bits beyond the host included.
    let passing = SecondStageRoot { table: PhysAddr::new(0x8000_0000_0000_5000), ..root };
    let found = legacy(&config, [0x2001, 0], [0x8000_0000_0000_5009, 0xab_cd02]);
    assert_eq!(found, Ok(of(TranslationType::PassThrough, passing)));
    // Bits 63:HAW of RTADDR are not implemented.
    let memory = Memory::new(&[(0x1030, 0x2001), (0x2100, 0x5001), (0x2108, 0xab_cd02)]);
    assert_eq!(context(&memory, &config, 0x4000_0000_1000, SOURCE), Ok(of(TranslationType::Untranslated, root)));
}

#[test]
fn legacy_root_faults() {
    let config = unit(Cap::empty(), Ecap::empty());
    let good = [0x5001, 0x702];
    assert_eq!(reason(context(&Memory::new(&[]), &config, 0x8000_0000, SOURCE)), 0x08); // LRT.1
    assert_eq!(reason(legacy(&config, [0x2000, 0], good)), 0x01); // LRT.2
    assert_eq!(reason(legacy(&config, [0x2ffe, 1], good)), 0x01); // the rest does not count then
    for root in [[0x2003, 0], [0x2801, 0], [0x2001, 1], [0x2001, 1 << 63], [0x4000_0000_2001, 0], [1 << 63 | 0x2001, 0]]
    {
        assert_eq!(reason(legacy(&config, root, good)), 0x0a, "{root:x?}"); // LRT.3
    }
}

#[test]
fn legacy_context_faults() {
    let config = unit(Cap::empty(), Ecap::empty());
    let with = |entry| legacy(&config, [0x2001, 0], entry);
    assert_eq!(reason(legacy(&config, [0x8000_0001, 0], [0, 0])), 0x09); // LCT.1
    assert_eq!(reason(with([0x5000, 0x702])), 0x02); // LCT.2
    assert_eq!(suppressed(with([0x5002, 0x702])), 0x02);
    for entry in [[0x5011, 0x702], [0x5801, 0x702], [0x5001, 0x782], [0x5001, 0x100_0702], [0x4000_0000_5001, 0x702]] {
        assert_eq!(reason(with(entry)), 0x0b, "{entry:x?}"); // LCT.3
        assert_eq!(suppressed(with([entry[0] | 2, entry[1]])), 0x0b);
    }
    // AW 0, 3 (57 bits, not in SAGAW) and 4; TT 1 without DT, 2 without PT, 3.
    for entry in [[0x5001, 0x700], [0x5001, 0x703], [0x5001, 0x704], [0x5005, 0x702], [0x5009, 0x702], [0x500d, 0x702]]
    {
        assert_eq!(reason(with(entry)), 0x03, "{entry:x?}"); // LCT.4.1, LCT.4.2
        assert_eq!(suppressed(with([entry[0] | 2, entry[1]])), 0x03);
    }
    // Pass-through wants the largest width.
    let passes = unit(Cap::empty(), Ecap::PT);
    assert_eq!(reason(legacy(&passes, [0x2001, 0], [0x5009, 0x701])), 0x03);
    let wide = unit(Cap::SAGAW_57, Ecap::PT);
    assert_eq!(reason(legacy(&wide, [0x2001, 0], [0x5009, 0x702])), 0x03);
    assert!(legacy(&wide, [0x2001, 0], [0x5009, 0x703]).is_ok());
    // ND 2: domain ids of 8 bits.
    let few = DeviceConfig { cap: Cap::from_bits_retain(0x002f_0602), ..config };
    assert!(legacy(&few, [0x2001, 0], [0x5001, 0xff02]).is_ok());
    assert_eq!(reason(legacy(&few, [0x2001, 0], [0x5001, 0x1_0002])), 0x0b);
}

#[test]
fn table_modes() {
    let memory = Memory::new(&[(0x1030, 0x2001), (0x2100, 0x5001), (0x2108, 0x702)]);
    let with = |ecap, root| context(&memory, &unit(Cap::empty(), ecap), root, SOURCE);
    assert_eq!(reason(with(Ecap::SMTS, 0x1800)), 0x30); // RTA.1.2
    assert_eq!(reason(with(Ecap::ADMS, 0x1400)), 0x30); // RTA.1.3
    assert_eq!(reason(with(Ecap::SMTS, 0x1c00)), 0x30); // RTA.1.1
    assert_eq!(reason(with(Ecap::ADMS, 0x1c00)), 0x33); // RTA.4
    assert_eq!(reason(with(Ecap::SSIRWS, 0x1080)), 0x30); // RTA.1.4
    assert!(with(Ecap::empty(), 0x1080).is_ok()); // a bit that the unit does not have
    assert_eq!(memory.take_reads(), 4);
}

#[test]
fn tables_that_are_not_cleaned() {
    let config = DeviceConfig { ecap: Ecap::empty(), ..unit(Cap::empty(), Ecap::empty()) };
    let memory = Memory::new(&[]);
    memory.put_uncleaned(0x1030, 0x2001);
    assert_eq!(reason(context(&memory, &config, 0x1000, SOURCE)), 0x01);
    memory.put(0x1030, 0x2001);
    memory.put_uncleaned(0x2100, 0x5001);
    memory.put_uncleaned(0x2108, 0x702);
    assert_eq!(reason(context(&memory, &config, 0x1000, SOURCE)), 0x02);
    let snoops = unit(Cap::empty(), Ecap::empty());
    assert!(context(&memory, &snoops, 0x1000, SOURCE).is_ok());
    memory.put(0x2100, 0x5001);
    memory.put(0x2108, 0x702);
    let Ok(ContextInfo::Legacy { root, .. }) = context(&memory, &config, 0x1000, SOURCE) else { panic!("an entry") };
    assert_eq!(root.snoop, Snoop::No);
}

/// Of device and function 0x10, and of 0x90 in the upper table: 32 bytes each.
fn scalable(ecap: Ecap, root: [u64; 2], entry: [u64; 4]) -> Result<ContextInfo, Blocked> {
    let config = unit(Cap::empty(), Ecap::SMTS | ecap);
    let memory = Memory::new(&[(0x1030, root[0]), (0x1038, root[1])]);
    for (word, at) in entry.into_iter().zip((0x2200..).step_by(8)) {
        memory.put(at, word);
    }
    let found = context(&memory, &config, 0x1400, SOURCE);
    assert!(memory.take_reads() <= 6);
    found
}

#[test]
fn scalable_entries() {
    let all = Ecap::DT | Ecap::PASID | Ecap::PRS | Ecap::PTRS | Ecap::RPS | Ecap::RPRIVS;
    // The upper half may be anything while UP is clear, or if it is not asked for.
    let words = [0x9000 | 7 << 9 | 0x5d, 1 << 20 | 0xf_fffe, 0, 0];
    for upper in [0, 0xffe, u64::MAX] {
        let entry = ScalableContextEntry { words };
        assert_eq!(scalable(all, [0x2001, upper], words), Ok(ContextInfo::Scalable { entry }));
    }
    let config = unit(Cap::empty(), Ecap::SMTS);
    let memory = Memory::new(&[(0x1030, 0), (0x1038, 0x3001), (0x3200, 0x9001)]);
    let entry = ScalableContextEntry { words: [0x9001, 0, 0, 0] };
    assert_eq!(context(&memory, &config, 0x1400, 0x0390), Ok(ContextInfo::Scalable { entry }));
    assert_eq!(reason(context(&memory, &config, 0x1400, 0x0310)), 0x39);
}

#[test]
fn scalable_root_faults() {
    let good = [0x9001, 0, 0, 0];
    let config = unit(Cap::empty(), Ecap::SMTS);
    assert_eq!(reason(context(&Memory::new(&[]), &config, 0x8000_0400, SOURCE)), 0x38); // SRT.1
    assert_eq!(reason(scalable(Ecap::empty(), [0x2000, 0x3001], good)), 0x39); // SRT.2
    for low in [0x2003, 0x2801, 0x4000_0000_2001] {
        assert_eq!(reason(scalable(Ecap::empty(), [low, 0], good)), 0x3a, "{low:x}"); // SRT.3
    }
}

#[test]
fn scalable_context_faults() {
    let none = Ecap::empty();
    let with = |ecap, entry| scalable(ecap, [0x2001, 0], entry);
    assert_eq!(reason(scalable(none, [0x8000_0001, 0], [0; 4])), 0x40); // SCT.1
    assert_eq!(reason(with(none, [0x9000, 0, 0, 0])), 0x41); // SCT.2
    assert_eq!(suppressed(with(none, [0x9002, 0, 0, 0])), 0x41);
    // SCT.3: what is always reserved, and what is without its capability.
    let always =
        [[0x80, 0, 0, 0], [0x100, 0, 0, 0], [0x20, 0, 0, 0], [0x4000_0000_0000, 0, 0, 0], [0, 0x20_0000, 0, 0]];
    for bits in always.into_iter().chain([[0, 0, 1, 0], [0, 0, 0, 1 << 63]]) {
        let entry = [0x9001 | bits[0], bits[1], bits[2], bits[3]];
        assert_eq!(reason(with(Ecap::all(), entry)), 0x42, "{bits:x?}");
        assert_eq!(suppressed(with(Ecap::all(), [entry[0] | 2, entry[1], entry[2], entry[3]])), 0x42);
    }
    let depends = [
        (Ecap::DT, [0x4, 0]),
        (Ecap::PASID, [0x8, 0]),
        (Ecap::PRS, [0x10, 0]),
        (Ecap::PTRS, [0x40, 0]),
        (Ecap::RPS, [0, 1]),
        (Ecap::RPRIVS, [0, 0x10_0000]),
    ];
    for (capability, bits) in depends {
        // What else the bit needs to be consistent.
        let entry = [0x9001 | bits[0] | if capability == Ecap::PRS { 0x4 } else { 0x8 }, bits[1], 0, 0];
        assert_eq!(reason(with(Ecap::all() - capability, entry)), 0x42, "{bits:x?}");
        assert!(with(Ecap::all(), entry).is_ok(), "{bits:x?}");
    }
    // SCT.4.1: PRE without DTE. SCT.4.2: 128 entries of 64 PASIDs. SCT.4.3: EPTR without PASIDE.
    for entry in [[0x9011, 0, 0, 0], [0x9001, 0x2000, 0, 0], [0x9201, 0x4000, 0, 0], [0x9041, 0, 0, 0]] {
        assert_eq!(reason(with(Ecap::all(), entry)), 0x43, "{entry:x?}");
        assert_eq!(suppressed(with(Ecap::all(), [entry[0] | 2, entry[1], 0, 0])), 0x43);
    }
    for entry in [[0x9001, 0x1fff, 0, 0], [0x9201, 0x3fff, 0, 0], [0x9e01, 0xf_ffff, 0, 0]] {
        assert!(with(Ecap::RPS, entry).is_ok(), "{entry:x?}");
    }
}

#[test]
fn addresses_that_nothing_translates() {
    let config = unit(Cap::empty(), Ecap::empty());
    let yes = Recorded::Yes;
    let leaf = host_address(&config, Mode::Legacy, yes, 0x3fff_ffff_ffff).unwrap();
    assert_eq!((leaf.output(0x1234_5678), leaf.page_bits), (PhysAddr::new(0x1234_5678), 63));
    assert_eq!(reason(host_address(&config, Mode::Legacy, yes, 0x4000_0000_0000)), 0x04); // LGN.1.2, LGN.1.3
    assert_eq!(reason(host_address(&config, Mode::Scalable, yes, 0x4000_0000_0000)), 0x83); // SGN.4
    assert_eq!(reason(host_address(&config, Mode::Legacy, yes, 0xfee0_0000)), 0x0e); // LGN.4
    assert_eq!(suppressed(host_address(&config, Mode::Scalable, Recorded::Suppressed, 0xfeef_ffff)), 0x87); // SGN.8
    assert!(host_address(&config, Mode::Legacy, yes, 0xfedf_ffff).is_ok());
    assert!(host_address(&config, Mode::Legacy, yes, 0xfef0_0000).is_ok());
}
