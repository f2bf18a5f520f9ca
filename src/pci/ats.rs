//! Turns device TLBs on and off (PCIe 10.5.1.3).

use super::{Ats, PasidCapability, PciConfig};
use crate::id::PciAddress;

const ENABLE: u16 = 1 << 15;
const PASID_ENABLE: u16 = 1 << 0;

/// What an ATS control register tells.
///
/// ```
/// use iommu::pci::AtsState;
/// assert_ne!(AtsState::Off, AtsState::Gone);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AtsState {
    /// The function asks for translations, and keeps them.
    On,
    /// It does not.
    Off,
    /// It does not answer.
    Gone,
}

impl Ats {
    /// What `function`, which has this capability, does.
    pub fn state(&self, config: &dyn PciConfig, function: PciAddress) -> AtsState {
        match config.read16(function, self.control()) {
            u16::MAX => AtsState::Gone,
            control if control & ENABLE != 0 => AtsState::On,
            _ => AtsState::Off,
        }
    }

    /// Turns the device TLB on, for translations of 4096 bytes and more (STU 0), and gives the state
    /// afterwards. It begins empty.
    ///
    /// With `pasid`, PASIDs are turned on before: a function must not see that change while its device
    /// TLB is on (PCIe 7.8.8.3).
    pub fn enable(&self, config: &dyn PciConfig, function: PciAddress, pasid: Option<&PasidCapability>) -> AtsState {
        if let Some(pasid) = pasid {
            config.write16(function, pasid.control(), PASID_ENABLE);
        }
        config.write16(function, self.control(), ENABLE);
        self.state(config, function)
    }

    /// Turns the device TLB off and gives the state afterwards. What it holds is not used again.
    pub fn disable(&self, config: &dyn PciConfig, function: PciAddress) -> AtsState {
        config.write16(function, self.control(), 0);
        self.state(config, function)
    }
}

impl PasidCapability {
    /// Offset of the control register, 16 bits; what is below it cannot be written.
    pub const fn control(&self) -> u16 {
        self.offset.wrapping_add(6)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::sync::Mutex;
    use std::vec::Vec;

    use super::super::fake::Fake;
    use super::super::{PciConfig, PciFunction, PciKind, extended_id};
    use super::AtsState;
    use crate::id::PciAddress;

    /// Notes every write.
    struct Traced<'a>(&'a Fake, Mutex<Vec<(u16, u32)>>);

    impl PciConfig for Traced<'_> {
        fn read32(&self, function: PciAddress, offset: u16) -> u32 {
            self.0.read32(function, offset)
        }

        fn write32(&self, function: PciAddress, offset: u16, value: u32) {
            self.1.lock().unwrap().push((offset, value));
            self.0.write32(function, offset, value);
        }
    }

    #[test]
    fn pasids_come_before_the_device_tlb() {
        let mut fake = Fake::new();
        let address = fake.express(1, 0, 0, PciKind::Endpoint);
        fake.add_extended(address, extended_id::ATS, &[0x001f_0028]);
        fake.add_extended(address, extended_id::PASID, &[0x0000_1400]);
        let traced = Traced(&fake, Mutex::default());
        let function = PciFunction::read(&traced, address).unwrap();
        let (ats, pasid) = (function.ats.unwrap(), function.pasid.unwrap());
        assert_eq!(ats.state(&traced, address), AtsState::Off);
        assert_eq!(ats.enable(&traced, address, Some(&pasid)), AtsState::On);
        assert_eq!(ats.disable(&traced, address), AtsState::Off);
        assert_eq!(ats.enable(&traced, address, None), AtsState::On);
        let written = traced.1.into_inner().unwrap();
        let (control, on) = (ats.offset + 4, 0x8000_0028);
        // The smallest translation unit is 4096 bytes, whatever was there.
        assert_eq!(written, [(pasid.offset + 4, 0x0001_1400), (control, on), (control, 0x28), (control, on)]);
    }

    #[test]
    fn a_function_that_is_gone_says_so() {
        let mut fake = Fake::new();
        let address = fake.express(1, 0, 0, PciKind::Endpoint);
        fake.add_extended(address, extended_id::ATS, &[0x0020]);
        let ats = PciFunction::read(&fake, address).unwrap().ats.unwrap();
        let nobody = Fake::at(9, 0, 0);
        assert_eq!(ats.enable(&Fake::new(), nobody, None), AtsState::Gone);
    }
}
