//! What the unit is to be able to do.

use crate::arch::vtd::layout::{Cap, Ecap};

/// How a unit is made. Registers say what is set here, and the unit does it, but for what it cannot do, and
/// whoever sets it must do beside the unit or not show: interrupt remapping and posting ([`Ecap::IR`] brings
/// its registers only), host permission tables, memory types, execute requests, enhanced and virtual commands.
///
/// ```
/// use iommu::arch::vtd::device::DeviceConfig;
/// use iommu::arch::vtd::layout::Cap;
/// let config = DeviceConfig { cap: DeviceConfig::default().cap | Cap::CM, ..DeviceConfig::default() };
/// assert_eq!(config.cap.guest_address_bits(), 48);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceConfig {
    /// VER: major version in bits 7:4, minor in 3:0.
    pub version: u32,
    /// CAP.
    pub cap: Cap,
    /// ECAP.
    pub ecap: Ecap,
    /// Width of a host-physical address in bits (HAW): higher ones are reserved in every entry.
    pub host_address_bits: u8,
    /// log2 of the frames that each of the caches takes, at most [`MAX_CACHE_ORDER`](Self::MAX_CACHE_ORDER).
    pub cache_order: u8,
}

impl DeviceConfig {
    /// The largest caches: a MiB each.
    pub const MAX_CACHE_ORDER: u8 = 8;
}

impl Default for DeviceConfig {
    /// Version 1.0, 48 and 39 bits, large pages, one fault record, coherent, queued invalidation,
    /// pass-through: a plain unit for legacy mode.
    fn default() -> Self {
        Self {
            version: 0x10,
            cap: Cap::from_bits_retain(0x00d2_008c_222f_0606),
            ecap: Ecap::from_bits_retain(0x00f0_0f00) | Ecap::C | Ecap::QI | Ecap::PT,
            host_address_bits: 52,
            cache_order: 3,
        }
    }
}
