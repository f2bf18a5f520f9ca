//! PCI configuration space, as far as DMA isolation needs it.
#![allow(missing_docs)]
use crate::error::Result;
use crate::id::{PciAddress, SourceId};
pub const MAX_DEPTH: usize = 16;
pub trait PciConfig: Send + Sync {
    fn read32(&self, address: PciAddress, offset: u16) -> u32;
    fn write32(&self, address: PciAddress, offset: u16, value: u32);
}
pub struct Buses {
    pub secondary: u8,
}
pub struct PasidF {
    pub width: u8,
}
pub struct PciFunction {
    pub address: PciAddress,
    pub buses: Option<Buses>,
    pub ats: Option<()>,
    pub pri: Option<()>,
    pub pasid: Option<PasidF>,
}
impl PciFunction {
    pub fn read(_: &dyn PciConfig, _: PciAddress) -> Option<Self> {
        None
    }
}
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupKey(u64);
impl GroupKey {
    pub fn platform(s: SourceId) -> Self {
        Self(s.as_u64())
    }
}
pub struct NoPci;
impl PciConfig for NoPci {
    fn read32(&self, _: PciAddress, _: u16) -> u32 {
        !0
    }
    fn write32(&self, _: PciAddress, _: u16, _: u32) {}
}
pub fn path(_: &dyn PciConfig, _: PciAddress) -> Result<heapless::Vec<PciFunction, MAX_DEPTH>> {
    Ok(heapless::Vec::new())
}
pub fn aliases(_: &dyn PciConfig, _: PciAddress) -> Result<heapless::Vec<PciAddress, 8>> {
    Ok(heapless::Vec::new())
}
pub fn group_key(_: &dyn PciConfig, a: PciAddress) -> Result<GroupKey> {
    Ok(GroupKey(u64::from(a.requester_id())))
}
