//! IORTs, from a few good ones to any bytes, and what is made of them.

use std::sync::OnceLock;

use iommu::arch::smmuv3::firmware::{Coherency, Firmware as Described};
use iommu::arch::smmuv3::layout::identification::Idr0;
use iommu::arch::smmuv3::layout::{Granule, StreamId};
use iommu::arch::smmuv3::{self, SmmuOptions};
use iommu::device::{DeviceInfo, Trust};
use iommu::platform::{Arena, Frame};
use iommu::{Iommu, PhysAddr, Result, SourceId};

use crate::input::Input;
use crate::world::{self, Kernel};

/// A firmware table, and how units are taken over.
pub struct Firmware {
    table: Vec<u8>,
    options: SmmuOptions,
}

impl Firmware {
    /// The world gets to know which devices arrive where.
    pub fn choose(input: &mut Input<'_>, _: u8) -> Self {
        let table = iort(input);
        let granules = [None, Some(Granule::Size4K), Some(Granule::Size16K), Some(Granule::Size64K)];
        let granule = granules[input.below(16).saturating_sub(12)];
        let streams = Described::from_iort(arena(), &table).ok();
        world::with(|world| {
            let says_too_much = streams.iter().flat_map(Described::units).enumerate().any(|(index, node)| {
                let snoops = world.template.claims(index).identification.idr0().contains(Idr0::COHACC);
                node.coherency == Some(Coherency::Coherent) && !snoops
            });
            if says_too_much {
                world.spoil(true);
            }
            world.template.streams = Streams(streams);
        });
        Self { table, options: SmmuOptions { granule, ..SmmuOptions::default() } }
    }

    pub fn init(&self, iommu: &Iommu<Kernel>) -> Result<()> {
        smmuv3::init_with(iommu, Described::from_iort(Kernel, &self.table)?, self.options).map(drop)
    }

    /// One that firmware tells of.
    pub fn platform_device(&self, input: &mut Input<'_>) -> Option<DeviceInfo> {
        let trust = if input.u8() & 1 == 0 { Trust::Trusted } else { Trust::Untrusted };
        let name = input.pick(&NAMES).copied()?;
        world::with(|world| world.template.streams.0.as_ref()?.platform_device(name, trust).ok())
    }
}

fn arena() -> &'static Arena {
    static ARENA: OnceLock<&'static Arena> = OnceLock::new();
    ARENA.get_or_init(|| Arena::new(Box::leak(vec![Frame::ZERO; 256].into_boxed_slice())).unwrap())
}

/// Which devices arrive at which unit, and as whom.
#[derive(Default)]
pub struct Streams(Option<Described<&'static Arena>>);

impl Streams {
    /// The StreamID under which requests of `source` arrive at the unit at `base`.
    pub fn of(&self, source: SourceId, base: u64) -> Option<StreamId> {
        let firmware = self.0.as_ref()?;
        let (unit, stream) = firmware.stream_of(source)?;
        (firmware.units()[unit].base == PhysAddr::new(base)).then_some(stream)
    }
}

const NAMES: [&str; 3] = ["\\_SB.DMA0", "\\_SB.DMA1", "\\_SB.NONE"];

/// The units' registers, the second one's from page 0 on if it is a Cavium.
const BASES: [u32; 2] = [0x0905_0000, 0x0908_0000];

/// Nodes in their order, and where each is.
struct Nodes {
    table: Vec<u8>,
    count: u32,
}

impl Nodes {
    /// Adds a node: type, revision, words behind the header with mappings at their end. Where it is.
    fn add(&mut self, kind: u8, revision: u8, body: &[u8], mappings: &[[u32; 5]]) -> u32 {
        let at = self.table.len();
        let length = 16 + body.len() + mappings.len() * 20;
        self.table.push(kind);
        self.table.extend((length as u16).to_le_bytes());
        self.table.push(revision);
        let first = if mappings.is_empty() { 0 } else { 16 + body.len() };
        self.put(&[self.count, mappings.len() as u32, first as u32]);
        self.table.extend_from_slice(body);
        mappings.iter().for_each(|mapping| self.put(mapping));
        self.count += 1;
        at as u32
    }

    fn put(&mut self, words: &[u32]) {
        self.table.extend(bytes(words));
    }
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A table with the nodes of a mask, some bytes of it changed; length and checksum are right.
///
/// Two units: one for what is below the root port, whose StreamIDs begin anew, one for the rest; or one for
/// all. Memory is reserved for 00:03.0 and for what is below the root port.
fn iort(input: &mut Input<'_>) -> Vec<u8> {
    let mask = input.u8();
    let changes = input.below(4);
    let mut nodes = Nodes { table: vec![0; 48], count: 0 };
    nodes.table[..4].copy_from_slice(b"IORT");
    nodes.table[8] = 6;
    let its = nodes.add(0, 1, &bytes(&[1, 0]), &[]);
    let unit = |nodes: &mut Nodes, index: usize, flags: u32, model: u32| {
        // Base; flags, reserved, VATOS, model; interrupts; proximity domain, DeviceID mapping.
        let body = bytes(&[BASES[index], 0, flags, 0, 0, 0, model, 106, 107, 109, 108, 0, 0]);
        nodes.add(4, 4, &body, &[[0, 0xffff, 0, its, 0]])
    };
    let override_coherent = u32::from(mask >> 6 & 1);
    let model = if mask & 0x80 == 0 { 0 } else { 2 };
    let first = unit(&mut nodes, 0, override_coherent, 0);
    let second = if mask & 1 == 0 { unit(&mut nodes, 1, 0, model) } else { first };
    // Coherent memory; ATS; segment; 64 bits of address, no PASIDs; flags.
    let host = bytes(&[1, 0x0300_0000, u32::from(mask & 2 == 0), 0, 64, 0]);
    let below_port = if mask & 1 == 0 { 0 } else { 0x100 };
    let buses = [[0, 0xff, 0, first, 0], [0x100, 0xff, below_port, second, 0], [0x200, 0x1ff, 0x200, first, 0]];
    nodes.add(2, 4, &host, &buses);
    // Memory for StreamIDs: flags, ranges.
    let reserved = |nodes: &mut Nodes, (stream, more, target): (u32, u32, u32), (start, bytes_of): (u32, u32)| {
        // The mapping is in front of the range.
        let at = nodes.add(6, 3, &bytes(&[5 << 2, 1, 48]), &[[stream, more, stream, target, 0]]) as usize;
        nodes.put(&[start, 0, bytes_of, 0, 0]);
        let length = (nodes.table.len() - at) as u16;
        nodes.table[at + 1..at + 3].copy_from_slice(&length.to_le_bytes());
    };
    if mask & 4 == 0 {
        reserved(&mut nodes, (0x18, 0, first), (0x7b00_0000, 0x1_0000));
    }
    if mask & 8 == 0 {
        reserved(&mut nodes, (below_port, 1, second), (0x7c00_0000, 0x20_0000));
    }
    for (index, name) in NAMES.iter().take(2).enumerate() {
        if mask & 0x10 << index == 0 {
            // Requests may wait, of the first one; coherent memory; 40 bits of address.
            let mut body = bytes(&[u32::from(index == 0), 1, 0x0300_0000]);
            body.push(40);
            body.extend_from_slice(name.as_bytes());
            body.resize(body.len().next_multiple_of(4) + 4, 0);
            let stream = 0x1c0 + 8 * index as u32;
            // Single mappings: input, count, output, target, flags.
            let mappings = [[0, 0, stream, first, 1], [0, 0, stream + 1, first, 1]];
            nodes.add(1, 4, &body, &mappings[..1 + index]);
        }
    }
    let Nodes { mut table, count } = nodes;
    table[36..40].copy_from_slice(&count.to_le_bytes());
    table[40..44].copy_from_slice(&48_u32.to_le_bytes());
    for _ in 0..changes {
        let at = usize::from(input.u16()) % table.len();
        table[at] = input.u8();
    }
    let length = table.len() as u32;
    table[4..8].copy_from_slice(&length.to_le_bytes());
    table[9] = 0;
    table[9] = table.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
    table
}
