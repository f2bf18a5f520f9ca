//! What the model's unit is able to do beyond what QEMU's can be told.

use iommu::arch::vtd::device::DeviceConfig;
use iommu::arch::vtd::layout::{Cap, Ecap};

use crate::options::VtdOptions;

/// Options that only the model has. Without any, its unit can do what QEMU's can, except for
/// interrupt remapping, and reads tables past the processor's caches as ECAP.C says.
///
/// ```
/// use iommu::arch::vtd::layout::{Cap, Ecap};
/// use iommu_harness::{ModelOptions, VtdOptions};
/// let options = ModelOptions::new().with_cap(Cap::RWBF).without_cap(Cap::PSI).with_ecap(Ecap::C).fault_records(8);
/// let config = options.config(&VtdOptions::default());
/// assert!(config.cap.contains(Cap::RWBF) && !config.cap.contains(Cap::PSI));
/// assert_eq!((config.cap.fault_records(), config.cap.guest_address_bits()), (8, 48));
/// ```
#[derive(Clone, Debug)]
pub struct ModelOptions {
    seed: u64,
    cap: Change<Cap>,
    ecap: Change<Ecap>,
    fault_records: u8,
    max_address_mask: u8,
    domain_id_bits: u8,
    pasid_bits: Option<u8>,
    host_address_bits: u8,
}

#[derive(Clone, Copy, Debug)]
struct Change<T> {
    set: T,
    clear: T,
}

impl Default for ModelOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl ModelOptions {
    /// No change: one fault record, 16-bit domain ids, masks up to 18, 46-bit physical addresses.
    pub const fn new() -> Self {
        Self {
            seed: 1,
            cap: Change { set: Cap::empty(), clear: Cap::empty() },
            ecap: Change { set: Ecap::empty(), clear: Ecap::empty() },
            fault_records: 1,
            max_address_mask: 18,
            domain_id_bits: 16,
            pasid_bits: None,
            host_address_bits: 46,
        }
    }

    /// Decides how far the unit gets between two looks of the driver. The same seed gives the same run,
    /// as long as one thread drives.
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets flags of the capability register.
    pub const fn with_cap(mut self, flags: Cap) -> Self {
        self.cap.set = self.cap.set.union(flags);
        self
    }

    /// Clears flags of the capability register.
    pub const fn without_cap(mut self, flags: Cap) -> Self {
        self.cap.clear = self.cap.clear.union(flags);
        self
    }

    /// Sets flags of the extended capability register: [`Ecap::C`], [`Ecap::SMPWCS`], [`Ecap::RPS`],
    /// [`Ecap::SSADS`], [`Ecap::NEST`], [`Ecap::DIT`]; [`Ecap::SSTS`] and [`Ecap::FSTS`] for a unit with
    /// both stages.
    pub const fn with_ecap(mut self, flags: Ecap) -> Self {
        self.ecap.set = self.ecap.set.union(flags);
        self
    }

    /// Clears flags of the extended capability register.
    pub const fn without_ecap(mut self, flags: Ecap) -> Self {
        self.ecap.clear = self.ecap.clear.union(flags);
        self
    }

    /// How many fault records there are (CAP.NFR), at least 1.
    pub const fn fault_records(mut self, records: u8) -> Self {
        self.fault_records = records;
        self
    }

    /// log2 of the most pages that one invalidation covers (CAP.MAMV), at most 63.
    pub const fn max_address_mask(mut self, mask: u8) -> Self {
        self.max_address_mask = mask;
        self
    }

    /// Bits of a domain id (CAP.ND): an even number from 4 to 16.
    pub const fn domain_id_bits(mut self, bits: u8) -> Self {
        self.domain_id_bits = bits;
        self
    }

    /// Requests with PASIDs of this many bits (ECAP.PASID and PSS), 1 to 20.
    pub const fn pasid_bits(mut self, bits: u8) -> Self {
        self.pasid_bits = Some(bits);
        self
    }

    /// Width of a physical address in bits.
    pub const fn host_address_bits(mut self, bits: u8) -> Self {
        self.host_address_bits = bits;
        self
    }

    pub(super) const fn seed_value(&self) -> u64 {
        self.seed
    }

    /// How the unit is made, with the options that QEMU has too. An IOVA may be 57 bits wide here.
    pub fn config(&self, vtd: &VtdOptions) -> DeviceConfig {
        let address_bits = vtd.address_bits.unwrap_or(48);
        let mut cap = Cap::LARGE_2M | Cap::LARGE_1G | Cap::PSI | Cap::DWD | Cap::DRD;
        // The fault records begin at 0x220.
        let fields = u64::from(self.domain_id_bits.saturating_sub(4) / 2)
            | u64::from(address_bits - 1) << 16
            | 0x22 << 24
            | u64::from(self.fault_records.saturating_sub(1)) << 40
            | u64::from(self.max_address_mask) << 48;
        cap |= Cap::from_bits_retain(fields);
        for (flag, bits) in [(Cap::SAGAW_39, 39), (Cap::SAGAW_48, 48), (Cap::SAGAW_57, 57)] {
            cap.set(flag, vtd.dma_translation && address_bits >= bits);
        }
        cap.set(Cap::CM, vtd.caching_mode);
        cap.set(Cap::FS1GP, vtd.first_stage);
        // IOTLB registers at 0xf0.
        let mut ecap = Ecap::QI | Ecap::from_bits_retain(0xf << 8);
        ecap.set(Ecap::DT, vtd.device_iotlb);
        ecap.set(Ecap::PT, vtd.pass_through);
        ecap.set(Ecap::SC, vtd.snoop_control);
        ecap.set(Ecap::SMTS, vtd.scalable || vtd.first_stage);
        ecap.set(Ecap::SSTS, vtd.scalable && !vtd.first_stage);
        ecap.set(Ecap::FSTS, vtd.first_stage);
        if let Some(bits) = self.pasid_bits {
            ecap |= Ecap::PASID | Ecap::from_bits_retain(u64::from(bits.saturating_sub(1)) << 35);
        }
        let ecap = (ecap | self.ecap.set).difference(self.ecap.clear);
        if ecap.contains(Ecap::SMTS) && !ecap.contains(Ecap::SSTS) {
            // Without a second stage there are no widths of one, and none may be in an entry (9.6, AW). QEMU
            // has no second stage then, and widths all the same.
            cap.remove(Cap::SAGAW_39 | Cap::SAGAW_48 | Cap::SAGAW_57);
        }
        DeviceConfig {
            cap: (cap | self.cap.set).difference(self.cap.clear),
            ecap,
            host_address_bits: self.host_address_bits,
            ..DeviceConfig::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use iommu::arch::vtd::layout::Ecap;

    use super::ModelOptions;
    use crate::options::VtdOptions;

    /// The registers that QEMU shows, less interrupt remapping (ECAP.IR and MHMV), and the widths of a
    /// second stage that is not there.
    #[test]
    fn it_can_do_what_qemu_can() {
        let normal = VtdOptions::default();
        let qemu = |options| {
            let config = ModelOptions::new().config(&options);
            (config.cap.bits(), config.ecap.bits())
        };
        assert_eq!(qemu(normal), (0x00d2_008c_222f_0606, 0xf42));
        assert_eq!(qemu(VtdOptions { address_bits: Some(39), ..normal }), (0x00d2_008c_2226_0206, 0xf42));
        assert_eq!(qemu(VtdOptions { caching_mode: true, ..normal }), (0x00d2_008c_222f_0686, 0xf42));
        assert_eq!(qemu(VtdOptions { pass_through: false, device_iotlb: true, ..normal }).1, 0xf06);
        assert_eq!(qemu(VtdOptions { first_stage: true, ..normal }), (0x01d2_008c_222f_0006, 0x8800_0000_0f42));
        assert_eq!(qemu(VtdOptions { scalable: true, ..normal }).1, 0x4800_0000_0f42);
        assert_eq!(qemu(VtdOptions { dma_translation: false, ..normal }).0, 0x00d2_008c_222f_0006);
    }

    #[test]
    fn fields_are_where_they_belong() {
        let options = ModelOptions::new().pasid_bits(20).domain_id_bits(8).max_address_mask(9).with_ecap(Ecap::RPS);
        let config = options.config(&VtdOptions { address_bits: Some(57), ..VtdOptions::default() });
        assert_eq!((config.ecap.pasid_bits(), config.cap.domain_id_bits()), (20, Some(8)));
        assert_eq!((config.cap.max_address_mask(), config.cap.guest_address_bits()), (9, 57));
        assert!(config.ecap.contains(Ecap::PASID | Ecap::RPS));
    }
}
