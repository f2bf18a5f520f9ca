//! The walks alone, on memory that is decided as it is read, and then stays: they find what the naive walker finds.

use std::collections::BTreeMap;
use std::sync::Mutex;

use iommu::PhysAddr;
use iommu::arch::smmuv3::device::walk::{
    Access, Context, Fault, Goal, Leaf, Lookup, NoStructureCache, Privilege, Stage, StreamWorld, Structure,
    StructureCache, check_cd, check_ste, translate,
};
use iommu::arch::smmuv3::device::{DeviceAnswer, DeviceConfig, Host, Interrupt, Snoop, Unreachable};
use iommu::arch::smmuv3::layout::events::FaultClass;
use iommu::arch::smmuv3::layout::{Cd, Identification, Ste, StreamId};

use crate::input::Input;
use crate::naive::{Naive, Problem, Wants};

/// Five levels, each through five, and five for the page.
const READS: usize = 5 * (5 + 1) + 5;

pub fn run(input: &mut Input<'_>) {
    let unit = unit(input);
    let memory = Memory(Mutex::new(State { words: BTreeMap::new(), bytes: Vec::new(), reads: 0 }));
    let Some(context) = context(&unit, input) else { return };
    let count = usize::from(input.u16() & 0xfff);
    memory.0.lock().unwrap().bytes = input.bytes(count).to_vec();
    let mut cache = Everything::default();
    loop {
        let lookup = lookup(&context, input);
        compare(&memory, &unit, &context, &lookup, &mut NoStructureCache);
        // What was found holds while nothing changes, for others too.
        compare(&memory, &unit, &context, &lookup, &mut cache);
        compare(&memory, &unit, &context, &lookup, &mut cache);
        if input.is_empty() {
            break;
        }
    }
}

/// QEMU's registers, or those of a unit that can do all; without one feature.
fn unit(input: &mut Input<'_>) -> Identification {
    let kind = input.u8();
    let default = DeviceConfig::default().identification;
    let (idr3, idr5) = if kind & 1 == 0 { (0x2_2f14, 1 << 10 | 0xf << 4 | 6) } else { (0x1414, 0x74) };
    let idr0 = default.idr0 & !(3 << 21) | 1 << 9;
    let idr3 = idr3 & !(u32::from(kind >> 1 & 1) << (input.u8() & 31));
    Identification { idr0, idr3, idr5, aidr: 1, ..default }
}

fn context(unit: &Identification, input: &mut Input<'_>) -> Option<Context> {
    let stages = input.below(3);
    let mut cd = [0; 8];
    cd[0] = u64::from(input.u32()) | u64::from(input.u16()) << 32 | 1 << 31 | 1 << 41;
    // No stalls, no updates; the lower half is walked, mostly.
    cd[0] = cd[0] & !(1 << 44 | 3 << 42) | 1 << 46;
    cd[1] = u64::from(input.u32()) << 8 | u64::from(input.u8() & 0xf6) << 56;
    cd[2] = u64::from(input.u32()) << 8 | u64::from(input.u8() & 4) << 56;
    cd[3] = input.u64();
    let word2 = u64::from(input.u32()) << 32 & !(0b111 << 55) | 1 << 51;
    let word3 = u64::from(input.u32()) << 8 | u64::from(input.u8() & 0xc);
    let config = 0b100 | u64::from(stages != 0) << 1 | u64::from(stages != 1);
    let ste = Ste { words: [config << 1 | 1, u64::from(input.u8() & 2) << 24, word2, word3, 0, 0, 0, 0] };
    let context = Context { ste, cd: (stages != 1).then_some(Cd { words: cd }), world: StreamWorld::NsEl1 };
    check_ste(unit, &context.ste).ok()?;
    if let Some(cd) = &context.cd {
        check_cd(unit, &context.ste, context.world, cd).ok()?;
    }
    Some(context)
}

fn lookup(context: &Context, input: &mut Input<'_>) -> Lookup {
    let kind = input.u8();
    let words = context.cd.map_or(context.ste.words[2] >> 32, |cd| cd.words[0]);
    let mut address = input.u64();
    address = match kind & 3 {
        0 | 1 => address & u64::MAX >> (words & 0x3f),
        2 => !(address & u64::MAX >> (words >> 16 & 0x3f)),
        _ => address,
    };
    Lookup {
        address,
        access: [Access::Read, Access::Write, Access::Execute, Access::Atomic][usize::from(kind >> 2 & 3)],
        privilege: if kind & 16 == 0 { Privilege::Unprivileged } else { Privilege::Privileged },
        goal: Goal::Access,
    }
}

fn compare<C: StructureCache>(
    memory: &Memory,
    unit: &Identification,
    context: &Context,
    lookup: &Lookup,
    cache: &mut C,
) {
    memory.0.lock().unwrap().reads = 0;
    let found = translate(memory, unit, context, lookup, cache);
    let reads = memory.0.lock().unwrap().reads;
    assert!(reads <= READS, "{reads} reads");
    let found = found.map(|found| {
        assert!(found.permissions.permit(lookup.access, lookup.privilege));
        assert!(found.block_bits <= found.contiguous_bits);
        (found.translate(lookup.address).as_u64(), u32::from(found.block_bits))
    });
    let naive = Naive {
        idr3: unit.idr3,
        idr5: unit.idr5,
        ste: context.ste.words,
        cd: context.cd.map(|cd| cd.words),
        memory: |at| memory.word(at),
    };
    let wants = match lookup.access {
        Access::Read => Wants::Read,
        Access::Write => Wants::Write,
        Access::Execute => Wants::Execute,
        Access::Atomic => Wants::Atomic,
    };
    let expected = naive.translate(lookup.address, wants, lookup.privilege == Privilege::Privileged);
    assert_eq!(found.map_err(problem), expected, "{context:x?} {lookup:x?}");
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

/// Words are decided by the fuzzer's bytes when they are read first.
struct Memory(Mutex<State>);

struct State {
    words: BTreeMap<u64, Option<u64>>,
    bytes: Vec<u8>,
    reads: usize,
}

impl Memory {
    fn word(&self, at: u64) -> Option<u64> {
        let state = &mut *self.0.lock().unwrap();
        state.reads += 1;
        let bytes = &mut state.bytes;
        *state.words.entry(at).or_insert_with(|| {
            let mut byte = || bytes.pop().unwrap_or(0);
            let kind = byte();
            let address = (0..4).fold(0, |value, _| value << 8 | u64::from(byte())) << 12;
            let word = address | u64::from(kind >> 4 & 3) << 6 | 0x73f;
            match kind & 15 {
                0..6 => Some(word),
                6..9 => Some(word & !2),
                9 => Some(word ^ 1 << (byte() & 63)),
                10 => Some(word | u64::from(byte()) << 56),
                11 => Some(word.swap_bytes()),
                12 => Some(word | u64::from(byte()) << 44),
                13 => Some((0..4).fold(word, |value, _| value.rotate_left(16) ^ u64::from(byte()))),
                14 => Some(0),
                _ => None,
            }
        })
    }
}

impl Host for Memory {
    fn read(&self, address: PhysAddr, _: Snoop) -> Result<u64, Unreachable> {
        assert!(address.is_aligned(8) && address.as_u64() >> 52 == 0);
        self.word(address.as_u64()).ok_or(Unreachable)
    }

    fn write64(&self, _: PhysAddr, _: u64) -> Result<(), Unreachable> {
        panic!("a walk does not write");
    }

    fn compare_exchange(&self, _: PhysAddr, _: u64, _: u64) -> Result<bool, Unreachable> {
        panic!("a walk does not write");
    }

    fn interrupt(&self, _: Interrupt) -> Result<(), Unreachable> {
        panic!("a walk does not interrupt");
    }

    fn invalidate_atc(&self, _: StreamId, _: Option<u32>, _: u64, _: u8) -> DeviceAnswer {
        panic!("a walk does not invalidate");
    }
}

#[derive(Default)]
struct Everything {
    tables: Vec<(Stage, u64, Structure)>,
    pages: Vec<(u64, Leaf)>,
}

impl StructureCache for Everything {
    fn table(&mut self, stage: Stage, address: u64) -> Option<Structure> {
        let block = |structure: &Structure| address.checked_shr(structure.block_bits.into()).unwrap_or(0);
        let of = |entry: &&(Stage, u64, Structure)| entry.0 == stage && entry.1 == block(&entry.2);
        self.tables.iter().filter(of).map(|entry| entry.2).max_by_key(|structure| structure.level)
    }

    fn keep_table(&mut self, stage: Stage, address: u64, structure: Structure) {
        self.tables.push((stage, address.checked_shr(structure.block_bits.into()).unwrap_or(0), structure));
    }

    fn page(&mut self, ipa: u64) -> Option<Leaf> {
        self.pages.iter().find(|(page, leaf)| *page == ipa >> leaf.bits).map(|entry| entry.1)
    }

    fn keep_page(&mut self, ipa: u64, leaf: Leaf) {
        self.pages.push((ipa >> leaf.bits, leaf));
    }
}
