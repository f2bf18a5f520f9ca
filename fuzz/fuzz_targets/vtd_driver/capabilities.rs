//! What units say that they are able to do.

use iommu::arch::vtd::layout::{Cap, Ecap};

use crate::input::Input;

/// VER, CAP and ECAP.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    pub version: u32,
    pub cap: Cap,
    pub ecap: Ecap,
}

/// The choices of a unit with the second stage in scalable mode, dirty bits and device TLBs; each bit of
/// the input changes one.
const USUAL: u32 = 0x0000_f1fb;

/// Those of a plausible unit, or of one whose features are chosen; some bits changed; or any.
pub fn choose(input: &mut Input<'_>) -> Capabilities {
    let kind = input.u8();
    // 39 and 48 bits, 65536 domains, large pages, page-selective invalidation; 57 bits and
    // pass-through; caching mode; neither snooping nor anything that can be missing.
    let legacy = [
        (0x10, 0x00d2_008c_222f_0606, 0x00f0_0f42),
        (0x60, 0x80d2_008c_2238_0e06, 0x00f0_0f4b),
        (0x10, 0x00d2_008c_222f_0686, 0x00f0_0f4b),
        (0x10, 0x0000_0000_2226_0210, 0x00f0_0f02),
    ];
    let plausible = match kind & 7 {
        index @ 0..4 => {
            let (version, cap, ecap) = legacy[usize::from(index)];
            Capabilities { version, cap: Cap::from_bits_retain(cap), ecap: Ecap::from_bits_retain(ecap) }
        }
        4 => features(USUAL),
        5 => features(USUAL ^ 0b110), // a first stage instead
        _ => features(USUAL ^ input.u32()),
    };
    match kind >> 3 {
        0..28 => plausible,
        28..31 => Capabilities {
            cap: plausible.cap ^ Cap::from_bits_retain(1 << (input.u8() & 63) ^ 1 << (input.u8() & 63)),
            ecap: plausible.ecap ^ Ecap::from_bits_retain(1 << (input.u8() & 63)),
            ..plausible
        },
        _ => Capabilities {
            version: input.u32(),
            cap: Cap::from_bits_retain(input.u64()),
            ecap: Ecap::from_bits_retain(input.u64()) | Ecap::QI,
        },
    }
}

fn features(bits: u32) -> Capabilities {
    const ECAP: [Ecap; 12] = [
        Ecap::SMTS,
        Ecap::SSTS,
        Ecap::FSTS,
        Ecap::SMPWCS,
        Ecap::RPS,
        Ecap::SSADS,
        Ecap::SC,
        Ecap::PT,
        Ecap::DT,
        Ecap::PASID,
        Ecap::ADMS,
        Ecap::NEST,
    ];
    const CAP: [Cap; 10] = [
        Cap::PSI,
        Cap::LARGE_2M,
        Cap::LARGE_1G,
        Cap::FS1GP,
        Cap::CM,
        Cap::RWBF,
        Cap::ESRTPS,
        Cap::ZLR,
        Cap::FS5LP,
        Cap::PLMR.union(Cap::PHMR),
    ];
    let mut ecap = Ecap::QI | Ecap::from_bits_retain(0x00f0_0f00);
    ECAP.iter().enumerate().for_each(|(index, flag)| ecap.set(*flag, bits >> index & 1 != 0));
    ecap.set(Ecap::C, bits >> 31 == 0);
    ecap |= Ecap::from_bits_retain(if ecap.contains(Ecap::PASID) { 19 << 35 } else { 0 });
    let mut cap = Cap::DWD | Cap::DRD;
    CAP.iter().enumerate().for_each(|(index, flag)| cap.set(*flag, bits >> (12 + index) & 1 != 0));
    let widths = bits >> 22 & 3;
    let address_bits = [48, 39, 57, 40][widths as usize];
    for (flag, width) in [(Cap::SAGAW_39, 39), (Cap::SAGAW_48, 48), (Cap::SAGAW_57, 57)] {
        cap.set(flag, width == 39 && widths == 0 || width == address_bits || width == 48 && address_bits == 40);
    }
    if ecap.contains(Ecap::SMTS) && !ecap.contains(Ecap::SSTS) {
        // No width of a second stage that is not there.
        cap.remove(Cap::SAGAW_39 | Cap::SAGAW_48 | Cap::SAGAW_57);
    }
    let domain_id_bits = [6, 0, 2, 1][(bits >> 24 & 3) as usize];
    let fault_records = [0, 3][(bits >> 26 & 1) as usize];
    let mask = [18, 0, 9, 63][(bits >> 27 & 3) as usize];
    cap |= Cap::from_bits_retain(
        domain_id_bits | (address_bits - 1) << 16 | 0x22 << 24 | fault_records << 40 | mask << 48,
    );
    let version = [0x10, 0x60, 0x20, 0x43][(bits >> 29 & 3) as usize];
    Capabilities { version, cap, ecap }
}
