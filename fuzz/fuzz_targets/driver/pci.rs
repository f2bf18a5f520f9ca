//! Configuration space, from a good one to any values.

use iommu::PciAddress;
use iommu::pci::PciConfig;

use crate::input::Input;
use crate::world;

/// Functions that the fixed topology has, and one that it has not.
pub const FUNCTIONS: [u16; 12] =
    [0x0000, 0x0010, 0x0018, 0x0019, 0x00e0, 0x0100, 0x0101, 0x00f0, 0x0208, 0x0210, 0x0308, 0xfff8];

/// Root complex endpoints, a root port with two functions below it, a bridge to a conventional bus,
/// and a bridge below that; registers that the fuzzer has chosen on top.
#[derive(Default)]
pub struct Pci {
    changes: Vec<(u16, u16, u32)>,
    noise: Option<u64>,
    /// ATS control of the functions that have it.
    ats: [u16; 2],
}

/// Functions with ATS, and where its capability is.
const ATS: [u16; 2] = [0x0100, 0x0101];
const ATS_OFFSET: u16 = 0x100;

impl Pci {
    pub fn new(input: &mut Input<'_>) -> Self {
        let kind = input.u8();
        let changes = (0..kind % 16).map(|_| {
            let function = *input.pick(&FUNCTIONS).unwrap();
            (function, input.u16() & 0xffc, input.u32())
        });
        let changes = if kind < 0x80 { Vec::new() } else { changes.collect() };
        Self { changes, noise: (kind >= 0xf0).then(|| input.u64()), ats: [0; 2] }
    }

    fn ats(&mut self, function: u16) -> Option<&mut u16> {
        Some(&mut self.ats[ATS.iter().position(|known| *known == function)?])
    }

    /// Whether a function uses its device TLB. One that does not show what it is has none.
    pub fn has_device_tlb(&self, function: u16) -> bool {
        let shows_itself = self.noise.is_none() && self.changes.iter().all(|(of, ..)| *of != function);
        let on = |(known, control): (&u16, &u16)| *known == function && control >> 15 != 0;
        shows_itself && ATS.iter().zip(&self.ats).any(on)
    }

    fn read(&mut self, function: u16, segment: u16, offset: u16) -> u32 {
        if let Some((.., value)) = self.changes.iter().find(|(of, at, _)| *of == function && *at == offset) {
            return *value;
        }
        match self.noise {
            Some(seed) => {
                let mixed = (seed ^ u64::from(function) << 16 ^ u64::from(offset)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                // Few functions: a full bus takes long, and teaches no more.
                let is_there = FUNCTIONS.contains(&function) || function & 0xf == seed as u16 & 0xf;
                if is_there { (mixed >> 24) as u32 } else { u32::MAX }
            }
            None if segment != 0 => u32::MAX,
            None => match self.ats(function) {
                // Page-aligned requests.
                Some(control) if offset == ATS_OFFSET + 4 => 0x20 | u32::from(*control) << 16,
                _ => fixed(function, offset),
            },
        }
    }

    fn write(&mut self, function: u16, offset: u16, value: u32) -> bool {
        if let Some(control) = self.ats(function).filter(|_| offset == ATS_OFFSET + 4) {
            *control = (value >> 16) as u16;
            return *control >> 15 == 0;
        }
        false
    }
}

fn fixed(function: u16, offset: u16) -> u32 {
    if !FUNCTIONS[..11].contains(&function) {
        return u32::MAX;
    }
    let express = |kind: u32| match offset {
        0x00 => 0x0001_8086,
        0x04 => 0x0010_0000,
        0x34 => 0x40,
        0x40 => kind << 20 | 0x0002_0010,
        _ => 0,
    };
    let bridge = |secondary: u32, subordinate: u32| match offset {
        0x00 => 0x0002_8086,
        0x08 => 0x0604_0000,
        0x0c => 0x0001_0000,
        0x18 => u32::from(function >> 8) | secondary << 8 | subordinate << 16,
        _ => 0,
    };
    let endpoint = |layout: u32| match offset {
        0x00 => 0x0003_8086,
        0x0c => layout,
        _ => 0,
    };
    match function {
        // A root port with access control.
        0x00e0 => match offset {
            0x08 | 0x0c | 0x18 => bridge(1, 1),
            0x100 => 0x0001_000d,
            0x104 => 0x001d_001d,
            _ => express(4),
        },
        // Two functions below it, with ATS, page requests and PASIDs.
        0x0100 | 0x0101 => match offset {
            0x0c => 0x0080_0000,
            0x100 => 0x1101_000f,
            0x110 => 0x1201_0013,
            0x120 => 0x0001_001b,
            0x124 => 0x1400,
            _ => express(0),
        },
        0x00f0 => bridge(2, 3),
        0x0210 => bridge(3, 3),
        0x0018 | 0x0019 => endpoint(0x0080_0000),
        _ => endpoint(0),
    }
}

/// What the kernel has at hand.
pub struct ConfigSpace;

impl PciConfig for ConfigSpace {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        assert!(offset.is_multiple_of(4) && offset < 4096, "{offset:#x}");
        world::with(|world| {
            world.step();
            world.pci.read(function.requester_id(), function.segment(), offset)
        })
    }

    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        assert!(offset.is_multiple_of(4) && offset < 4096, "{offset:#x}");
        world::with(|world| {
            let source = function.requester_id();
            if function.segment() == 0 && world.pci.write(source, offset, value) {
                world.units.iter().for_each(|unit| unit.forget_device(&world.template, function));
            }
        });
    }

    fn quirk_aliases(&self, function: PciAddress, add: &mut dyn FnMut(u8)) {
        if let Some(seed) = world::with(|world| world.pci.noise) {
            (0..seed % 4).for_each(|index| add((seed >> (index * 8)) as u8 ^ function.devfn()));
        }
    }
}
