//! Faults travel from a unit to whoever asks.

use std::time::Duration;

use iommu::ops::{InterruptKind, IommuOps, Msi};
use iommu::{
    Access, FAULT_LOG_RECORDS, FAULT_WINDOW, FAULTS_PER_WINDOW, FaultKind, FaultRecord, FaultsLeft, Iova, LostFaults,
    PhysAddr,
};

use crate::world::{World, source};

fn fault(id: u32, iova: u64) -> FaultRecord {
    FaultRecord {
        unit: PhysAddr::new(0xfed9_0000),
        source: source(id),
        pasid: None,
        iova: Some(Iova::new(iova)),
        access: Access::Write,
        kind: FaultKind::Translation,
        reason: 5,
        text: "write not permitted",
        stalled: None,
    }
}

fn raise(world: &World, faults: impl IntoIterator<Item = FaultRecord>) {
    world.unit().state().faults.extend(faults);
    world.iommu.handle_interrupt(InterruptKind::Fault);
}

#[test]
fn faults_of_all_units_come_in_order() {
    let world = World::new(2);
    assert_eq!(world.iommu.next_fault(), None);
    world.units[1].state().faults.push(fault(7, 0x7000));
    raise(&world, [fault(1, 0x1000), fault(2, 0x2000)]);
    let taken: Vec<_> = std::iter::from_fn(|| world.iommu.next_fault()).collect();
    assert_eq!(taken, [fault(1, 0x1000), fault(2, 0x2000), fault(7, 0x7000)]);
    assert_eq!(world.iommu.lost_faults(), LostFaults::default());
    // Another kind of interrupt brings none.
    world.unit().state().faults.push(fault(1, 0));
    world.iommu.handle_interrupt(InterruptKind::PageRequest);
    assert_eq!(world.iommu.next_fault(), None);
}

#[test]
fn what_a_unit_could_not_record_is_counted_and_asked_for_again() {
    let world = World::new(2);
    world.units[1].state().overflows = 3;
    assert_eq!(world.iommu.handle_interrupt(InterruptKind::Fault), FaultsLeft::Some);
    assert_eq!(world.iommu.handle_interrupt(InterruptKind::Fault), FaultsLeft::None);
    assert_eq!(world.iommu.lost_faults(), LostFaults { overflows: 3, ..LostFaults::default() });
}

#[test]
fn a_storm_is_muted_until_its_window_ends() {
    let world = World::new(1);
    raise(&world, (0..1000).map(|index| fault(1, index << 12)));
    raise(&world, [fault(2, 0)]);
    let taken: Vec<_> = std::iter::from_fn(|| world.iommu.next_fault()).collect();
    assert_eq!(taken.len(), FAULTS_PER_WINDOW as usize + 1);
    assert_eq!(taken.last(), Some(&fault(2, 0)));
    assert_eq!(
        world.iommu.lost_faults(),
        LostFaults { muted: 1000 - u64::from(FAULTS_PER_WINDOW), ..LostFaults::default() }
    );
    world.frames.advance(FAULT_WINDOW - Duration::from_millis(100));
    raise(&world, [fault(1, 0)]);
    assert_eq!(world.iommu.next_fault(), None);
    world.frames.advance(Duration::from_millis(200));
    raise(&world, [fault(1, 0)]);
    assert_eq!(world.iommu.next_fault(), Some(fault(1, 0)));
}

#[test]
fn a_full_log_counts_what_it_loses_and_keeps_the_oldest() {
    let world = World::new(1);
    raise(&world, (0..FAULT_LOG_RECORDS as u32 + 9).map(|id| fault(id, 0)));
    assert_eq!(world.iommu.lost_faults(), LostFaults { full: 9, ..LostFaults::default() });
    assert_eq!(world.iommu.next_fault(), Some(fault(0, 0)));
    raise(&world, [fault(99, 0)]);
    let rest: Vec<_> = std::iter::from_fn(|| world.iommu.next_fault()).collect();
    assert_eq!((rest.len(), rest.last()), (FAULT_LOG_RECORDS, Some(&fault(99, 0))));
}

#[test]
fn every_unit_is_told_its_interrupt() {
    let world = World::new(2);
    let msi = Msi { address: PhysAddr::new(0xfee0_0000), data: 0x41 };
    world.iommu.set_fault_interrupt(msi).unwrap();
    for unit in &world.units {
        assert_eq!(unit.state().interrupt, Some((InterruptKind::Fault, msi)));
        assert_eq!(unit.set_interrupt(InterruptKind::Fault, msi), Ok(()));
    }
}
