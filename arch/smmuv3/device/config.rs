//! What the unit is to be able to do.

use crate::arch::smmuv3::layout::Identification;

/// How a unit is made. Registers say what is set here, and the unit does it, but for what it cannot do,
/// and whoever sets it must do beside the unit or not show: broadcast TLB maintenance, address translation
/// operations, hardware update of translation tables, the interfaces of Secure and Realm state, MPAM.
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

impl Default for DeviceConfig {
    /// SMMUv3.2 with both stages, AArch64 tables of all granules, 48 bits of output, coherent, 16 bits of
    /// StreamID, SubstreamID, ASID and VMID, two-level tables, ATS and page requests, messages, stalls of 16
    /// requests, range invalidation, queues of up to 256 entries.
    fn default() -> Self {
        let identification = Identification {
            // ST_LEVEL 1, TTENDIAN 2, CD2L, VMID16, PRI, MSI, ASID16, NS1ATS, ATS, COHACC, TTF 2, S1P, S2P.
            idr0: 0x084d_3c1b,
            // CMDQS 8, EVENTQS 8, PRIQS 8, SSIDSIZE 16, SIDSIZE 16.
            idr1: 8 << 21 | 8 << 16 | 8 << 11 | 16 << 6 | 16,
            // BBML 1, RIL, HAD.
            idr3: 1 << 11 | 1 << 10 | 1 << 2,
            // STALL_MAX 16, all granules, OAS 48.
            idr5: 16 << 16 | 0x70 | 5,
            aidr: 2,
            ..Identification::default()
        };
        Self { identification, cache_order: 3 }
    }
}
