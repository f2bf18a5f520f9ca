//! What the unit is to be able to do.

use super::walk::supported;
use crate::arch::smmuv3::layout::Identification;
use crate::arch::smmuv3::layout::identification::Idr0;

/// How a unit is made. Registers say what is set here, without what the unit cannot do: broadcast TLB
/// maintenance, VMID wildcards, WFE events, address translation operations, enhanced command queues,
/// preset tables and queues, hardware update of translation tables, the interfaces of Secure and Realm
/// state, MPAM, and what [`supported`](super::walk::supported) takes out.
///
/// ```
/// use iommu::arch::smmuv3::device::DeviceConfig;
/// use iommu::arch::smmuv3::layout::Identification;
/// use iommu::arch::smmuv3::layout::identification::Idr0;
/// let default = DeviceConfig::default();
/// let idr0 = default.identification.idr0 & !Idr0::S2P.bits();
/// let config = DeviceConfig { identification: Identification { idr0, ..default.identification }, ..default };
/// assert!(!config.identification.idr0().contains(Idr0::S2P));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceConfig {
    /// The identification registers.
    pub identification: Identification,
    /// log2 of the frames that each of the caches takes, at most [`MAX_CACHE_ORDER`](Self::MAX_CACHE_ORDER).
    pub cache_order: u8,
}

impl DeviceConfig {
    /// The largest caches: a MiB each.
    pub const MAX_CACHE_ORDER: u8 = 8;
}

/// The identification registers of a unit that was wished for.
pub(super) fn identification(wish: Identification) -> Identification {
    // RME_IMPL, VATOS, VMW, ATOS, SEV, DORMHINT, BTM.
    const IDR0: u32 = 1 << 30 | 1 << 20 | 1 << 17 | 1 << 15 | 1 << 14 | 1 << 8 | 1 << 5;
    // ECMDQ, TABLES_PRESET, QUEUES_PRESET, REL.
    const IDR1: u32 = 0xf << 28;
    let id = supported(wish);
    let mut idr0 = id.idr0() - Idr0::from_bits_truncate(IDR0);
    if !idr0.contains(Idr0::ATS) {
        idr0.remove(Idr0::PRI | Idr0::NS1ATS);
    }
    if !idr0.contains(Idr0::S1P | Idr0::S2P) {
        idr0.remove(Idr0::HYP | Idr0::NS1ATS);
    }
    // Fields, and bits that have no name.
    let fields = id.idr0 & !Idr0::all().bits() & !IDR0;
    Identification { idr0: idr0.bits() | fields, idr1: id.idr1 & !IDR1, idr2: 0, ..id }
}

impl Default for DeviceConfig {
    /// SMMUv3.2 with both stages, EL2, AArch64 tables of all granules, 48 bits of output, coherent, 16 bits
    /// of StreamID, SubstreamID, ASID and VMID, two-level tables, ATS and page requests, messages, stalls of
    /// 16 requests, range invalidation, queues of up to 256 entries.
    fn default() -> Self {
        let identification = Identification {
            // ST_LEVEL 1, TTENDIAN 2, CD2L, VMID16, PRI, MSI, ASID16, NS1ATS, ATS, Hyp, COHACC, TTF 2, S1P, S2P.
            idr0: 0x084d_3e1b,
            // CMDQS 8, EVENTQS 8, PRIQS 8, SSIDSIZE 16, SIDSIZE 16.
            idr1: 8 << 21 | 8 << 16 | 8 << 11 | 16 << 6 | 16,
            // BBML 1, RIL, FWB, XNX, HAD.
            idr3: 1 << 11 | 1 << 10 | 1 << 8 | 1 << 4 | 1 << 2,
            // STALL_MAX 16, all granules, OAS 48.
            idr5: 16 << 16 | 0x70 | 5,
            aidr: 2,
            ..Identification::default()
        };
        Self { identification, cache_order: 3 }
    }
}
