//! What an IOMMU that translates nothing sees of each device. The unit is programmed by hand here,
//! so that the harness is checked without the driver that it is to check.

use iommu::platform::{Platform, Registers};
use iommu::{Iova, PhysAddr};
use iommu_harness::bus::BusRegisters;
use iommu_harness::runner::TestError;
use iommu_harness::{Access, DmaOutcome, Machine, TestResult};

use super::{Start, assert_whole, pattern, topology, vtd};

/// Registers and bits (VT-d 4.1, chapter 11).
const GCMD: usize = 0x18;
const GSTS: usize = 0x1c;
const RTADDR: usize = 0x20;
const FRCD: usize = 0x220;
const SET_ROOT: u32 = 1 << 30;
const TRANSLATE: u32 = 1 << 31;

/// The root entry is not present; a page is not mapped for reading.
const NO_ROOT_ENTRY: u8 = 1;
const NOT_WRITABLE: u8 = 5;

/// One fault record.
#[derive(PartialEq, Eq, Debug)]
struct Record {
    source: u16,
    access: Access,
    reason: u8,
    page: u64,
}

/// A unit with the root table at the given address and translation on.
struct Unit(BusRegisters);

impl Unit {
    fn start(machine: &dyn Machine, root: PhysAddr) -> Result<Self, TestError> {
        let base = machine.iommu_base().ok_or(TestError::failed("no unit"))?;
        let unit = Self(machine.platform().map_registers(base, 0x230)?);
        unit.0.write64(RTADDR, root.as_u64());
        unit.0.write32(GCMD, SET_ROOT);
        unit.0.write32(GCMD, TRANSLATE);
        assert_eq!(unit.0.read32(GSTS), SET_ROOT | TRANSLATE);
        Ok(unit)
    }

    /// Takes the one record that this unit has.
    fn take(&self) -> Option<Record> {
        let (low, high) = (self.0.read64(FRCD), self.0.read64(FRCD + 8));
        self.0.write32(FRCD + 12, 1 << 31);
        let access = if high & 1 << 62 != 0 { Access::Read } else { Access::Write };
        (high & 1 << 63 != 0).then_some(Record {
            source: high as u16,
            access,
            reason: (high >> 32) as u8,
            page: low & !0xfff,
        })
    }
}

pub(crate) fn the_dmar_is_whole(start: Start) -> TestResult {
    let machine = start(&vtd().lsi("lsi0"))?;
    let dmar = machine.acpi_table(b"DMAR")?;
    assert_whole(&dmar, b"DMAR");
    // The first structure is the unit (type 0); its register base stands at offset 8.
    assert_eq!(dmar[48..50], [0, 0]);
    assert_eq!(Some(dmar[56..64].to_vec()), machine.iommu_base().map(|base| base.as_u64().to_le_bytes().to_vec()));
    Ok(())
}

/// Every device is stopped, and is who the harness says it is, behind every kind of bridge.
pub(crate) fn requesters_are_as_told(start: Start) -> TestResult {
    let machine = start(&topology(vtd()))?;
    let root = machine.buffer(4096)?;
    let target = machine.buffer(4096)?;
    let unit = Unit::start(&*machine, root.phys())?;
    for device in machine.devices() {
        for access in [Access::Write, Access::Read] {
            let outcome = device.poke(target.iova(), access)?;
            // What needs a script already fails at that, with a read.
            let (access, page) = match outcome {
                DmaOutcome::Done => (access, target.iova()),
                DmaOutcome::NoScript => (Access::Read, device.workspace().iova),
            };
            let source = device.requester().id() as u16;
            let expected = Record { source, access, reason: NO_ROOT_ENTRY, page: page.as_u64() };
            assert_eq!(unit.take(), Some(expected), "{device:?}");
            assert_eq!(unit.take(), None, "{device:?}: one fault, one record");
        }
    }
    assert!(target.is_filled(0));
    assert_eq!(machine.device("lsi").dma_write(target.iova(), &[1; 8])?, DmaOutcome::NoScript);
    Ok(())
}

/// With a workspace that is mapped elsewhere, both engines do what is permitted and no more.
pub(crate) fn workspaces_move(start: Start) -> TestResult {
    let machine = start(&vtd().edu("edu").lsi("lsi"))?;
    let [root, contexts, top, middle, leaves, target] = [(); 6].map(|()| machine.buffer(4096));
    let (root, contexts, top, middle, leaves, target) = (root?, contexts?, top?, middle?, leaves?, target?);
    // A table of three levels: 64 KiB of workspace from IOVA 0 on, a page to write to, one to read from.
    let (writable, read_only, unmapped) = (Iova::new(0x10_0000), Iova::new(0x10_1000), Iova::new(0x10_2000));
    let entry = |table: &iommu_harness::Buffer, index: u64, value: u64| table.write(index * 8, &value.to_le_bytes());
    entry(&root, 0, contexts.phys().as_u64() | 1);
    entry(&top, 0, middle.phys().as_u64() | 3);
    entry(&middle, 0, leaves.phys().as_u64() | 3);
    entry(&leaves, 0x100, target.phys().as_u64() | 2);
    entry(&leaves, 0x101, target.phys().as_u64() | 1);
    for device in machine.devices() {
        let devfn = u64::from(device.address().devfn());
        entry(&contexts, devfn * 2, top.phys().as_u64() | 1);
        // Width of three levels; a domain of its own, since only the workspaces differ.
        entry(&contexts, devfn * 2 + 1, 1 | devfn << 8);
    }
    let unit = Unit::start(&*machine, root.phys())?;
    for device in machine.devices() {
        let space = device.workspace();
        for page in 0..space.bytes / 4096 {
            entry(&leaves, page, (space.phys.as_u64() + page * 4096) | 3);
        }
        device.place_workspace(Iova::new(0));
        target.fill(0);
        assert_eq!(device.dma_write(writable, &pattern(3000))?, DmaOutcome::Done);
        assert!(target.read(0, 3000) == pattern(3000), "{device:?} wrote");
        assert!(device.dma_read(read_only, 3000)? == pattern(3000), "{device:?} read");
        assert_eq!(unit.take(), None, "{device:?}");

        target.fill(0);
        let source = device.requester().id() as u16;
        assert_eq!(device.poke(unmapped, Access::Write)?, DmaOutcome::Done);
        let expected = Record { source, access: Access::Write, reason: NOT_WRITABLE, page: unmapped.as_u64() };
        assert_eq!((unit.take(), unit.take()), (Some(expected), None), "{device:?}");
        assert_ne!(device.dma_read(unmapped, 64)?, pattern(64), "{device:?}");
        assert!(unit.take().is_some());
        assert!(target.is_filled(0));
    }
    Ok(())
}
