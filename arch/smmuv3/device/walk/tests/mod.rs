//! Tests of the walks. Tables are literal numbers, worked out from the figures of chapter 5 and of the Arm ARM;
//! only `engine` reads tables that this crate's own driver half builds.

extern crate std;

mod attributes;
mod cd;
mod contexts;
mod known;
mod memory;
mod naive;
mod nested;
mod random;
mod stage1;
mod stage2;
mod ste;
mod streams;

use super::{
    Access, Context, E2h, Fault, Lookup, NoStructureCache, Route, StreamTable, Translation, check_cd, check_ste,
    context, route, stream, translate, world,
};
use crate::PhysAddr;
use crate::arch::smmuv3::layout::{Identification, StreamId};
use crate::bus::Snoop;
use memory::Memory;

/// QEMU 10's identification registers.
const QEMU: Identification = Identification {
    idr0: 0x0d44_101b,
    idr1: 0x0273_0010,
    idr2: 0,
    idr3: 0x1414,
    idr4: 0,
    idr5: 0x74,
    iidr: 0,
    aidr: 1,
};

/// All that a unit can do here: both stages, hypervisors, all granules, 52 bits everywhere, small tables,
/// 20 bits of SubstreamID, 16 of StreamID, both orders of bytes, stalls and zeroes.
const FULL: Identification = Identification {
    idr0: 1 << 27 | 1 << 19 | 1 << 18 | 1 << 12 | 1 << 10 | 1 << 9 | 1 << 4 | 1 << 3 | 0b11,
    idr1: 1 << 27 | 1 << 26 | 20 << 6 | 16,
    idr2: 0,
    idr3: 1 << 17 | 1 << 13 | 1 << 11 | 1 << 10 | 1 << 9 | 1 << 8 | 1 << 4 | 1 << 2,
    idr4: 0,
    idr5: 1 << 10 | 0xf << 4 | 6,
    iidr: 0,
    aidr: 2,
};

/// A linear stream table of 64 entries at 0x1_0000.
const TABLE: StreamTable = StreamTable { base: PhysAddr::new(0x1_0000), log2: 6, split: None, snoop: Snoop::Yes };

/// A request through everything, without caches: the STE of `id` in [`TABLE`].
fn request(
    memory: &Memory,
    unit: &Identification,
    id: u32,
    substream: Option<u32>,
    lookup: &Lookup,
) -> Result<Option<Translation>, Fault> {
    let ste = stream(memory, unit, &TABLE, StreamId(id), &mut NoStructureCache)?;
    check_ste(unit, &ste)?;
    let world = world(unit, &ste, E2h::Off);
    let cd = match route(unit, &ste, substream)? {
        Route::Abort => return Ok(None),
        Route::Onward { cd: None } => None,
        Route::Onward { cd: Some(index) } => {
            let cd = context(memory, unit, &ste, index, &mut NoStructureCache)?;
            check_cd(unit, &ste, world, &cd)?;
            Some(cd)
        }
    };
    let context = Context { ste, cd, world };
    translate(memory, unit, &context, lookup, &mut NoStructureCache).map(Some)
}

/// Where a read by stream 0 goes.
fn read(memory: &Memory, unit: &Identification, address: u64) -> Result<u64, Fault> {
    let lookup = Lookup::new(address, Access::Read);
    let translation = request(memory, unit, 0, None, &lookup)?.expect("not aborted");
    Ok(translation.translate(address).as_u64())
}
