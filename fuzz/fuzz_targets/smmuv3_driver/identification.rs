//! What units say that they are able to do.

use iommu::arch::smmuv3::device::DeviceConfig;
use iommu::arch::smmuv3::layout::Identification;
use iommu::arch::smmuv3::layout::identification::{Idr0, Idr3};

use crate::input::Input;

/// Registers, and whether they tell the truth: if not, the unit can do less.
#[derive(Clone, Copy, Debug)]
pub struct Claims {
    pub identification: Identification,
    pub are_true: bool,
}

/// The choices of a unit with both stages and device TLBs; each bit of the input changes one.
const USUAL: u32 = 0x0000_0fff;

/// Those of a plausible unit, or of one whose features are chosen; some bits changed; or any.
pub fn choose(input: &mut Input<'_>) -> Claims {
    let kind = input.u8();
    let plausible = match kind & 15 {
        0 => features(USUAL),
        // Stage 1 or stage 2 alone, not coherent, in one level, narrow ids, no device TLBs.
        1 => features(USUAL ^ 0b1),
        2 => features(USUAL ^ 0b10),
        3 => features(USUAL ^ 0b100),
        4 => features(USUAL ^ 0b1000),
        5 => features(USUAL ^ 0b11_0000),
        6 => features(USUAL ^ 0b100_0000),
        // Every fault waits; any may.
        7 => features(USUAL | 2 << 12),
        8 => features(USUAL | 1 << 12),
        // Granules of 16 KiB, of 64 KiB, of 64 KiB and 52 bits.
        9 => features(USUAL | 2 << 14),
        10 => features(USUAL | 3 << 14),
        11 => features(USUAL | 3 << 14 | 1 << 16),
        // Live pages can be split.
        12 => features(USUAL | 2 << 19),
        // QEMU 10.
        13 => Identification {
            idr0: 0x0d44_101b,
            idr1: 0x0273_0010,
            idr3: 0x1414,
            idr5: 0x74,
            ..Identification::default()
        },
        _ => features(USUAL ^ input.u32()),
    };
    let mut bit = || 1_u32 << (input.u8() & 31);
    match kind >> 4 {
        0..13 => Claims { identification: plausible, are_true: true },
        13 | 14 => {
            let Identification { idr0, idr1, idr3, idr5, .. } = plausible;
            let (idr0, idr1) = (idr0 ^ bit(), idr1 ^ bit());
            let identification = Identification { idr0, idr1, idr3: idr3 ^ bit(), idr5: idr5 ^ bit(), ..plausible };
            Claims { identification, are_true: kind & 16 != 0 }
        }
        _ => {
            let [idr0, idr1, idr3, idr5] = [input.u32(), input.u32(), input.u32(), input.u32()];
            // Neither preset tables and queues, nor too large ones.
            let identification = Identification {
                idr0: idr0 | 8,
                idr1: idr1 & 0x0fff_ffc7,
                idr3,
                idr5: idr5 | 0x10,
                aidr: input.u32(),
                ..Identification::default()
            };
            Claims { identification, are_true: false }
        }
    }
}

fn features(bits: u32) -> Identification {
    const IDR0: [Idr0; 8] = [
        Idr0::S2P,
        Idr0::S1P,
        Idr0::COHACC,
        Idr0::ST_TWO_LEVEL,
        Idr0::ASID16,
        Idr0::VMID16,
        Idr0::ATS.union(Idr0::NS1ATS),
        Idr0::CD2L,
    ];
    const IDR3: [Idr3; 4] = [Idr3::RIL, Idr3::XNX, Idr3::HAD, Idr3::FWB];
    let usual = DeviceConfig::default().identification;
    let mut idr0 = usual.idr0();
    IDR0.iter().enumerate().for_each(|(index, flag)| idr0.set(*flag, bits >> index & 1 != 0));
    if !idr0.contains(Idr0::ATS) {
        idr0.remove(Idr0::PRI);
    }
    let mut idr3 = usual.idr3();
    IDR3.iter().enumerate().for_each(|(index, flag)| idr3.set(*flag, bits >> (8 + index) & 1 != 0));
    let stall_model = bits >> 12 & 3;
    let granules = [0x70, 0x10, 0x20, 0x40][(bits >> 14 & 3) as usize];
    let output = [5, 6, 4, 2, 0, 3, 1, 5][(bits >> 16 & 7) as usize];
    let bbml = bits >> 19 & 3;
    // A stream table of one level has a place for every StreamID.
    let streams = [16, 10, 9, 20][(bits >> 21 & 3) as usize];
    let streams = if idr0.contains(Idr0::ST_TWO_LEVEL) { streams } else { streams.min(10) };
    let substreams = [16, 0, 20, 1][(bits >> 23 & 3) as usize];
    let [commands, events] = [bits >> 25, bits >> 27].map(|bits| [8, 4, 1, 10][(bits & 3) as usize]);
    // Named bits are all that idr0() has.
    let fields = usual.idr0 & !Idr0::all().bits() & !(0b11 << 24);
    Identification {
        idr0: idr0.bits() | fields | if stall_model == 3 { 1 } else { stall_model } << 24,
        idr1: commands << 21 | events << 16 | 4 << 11 | substreams << 6 | streams,
        idr3: idr3.bits() & !(3 << 11) | bbml.min(2) << 11,
        idr5: usual.idr5 & !0x77 | granules | output,
        aidr: [2, 0, 1, 3][(bits >> 29 & 3) as usize],
        ..usual
    }
}
