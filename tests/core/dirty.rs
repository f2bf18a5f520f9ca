//! Dirty tracking: what devices write is reported, and nothing of it is lost.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use iommu::domain::{DirtyBitmap, DirtyRead, DirtyTracking, Domain, DomainOptions};
use iommu::ops::{DomainFeatures, DomainOps, Stage, UnitTraits};
use iommu::pgtable::PageSize;
use iommu::{BusyReason, Device, Error, InvalidReason, Iova, IovaRange, Prot, Result, UnsupportedReason};

use crate::fake::{TIMED_OUT, first_traits};
use crate::world::{World, map, pages, range, source, unmap};

const DIRTY: DomainFeatures = DomainFeatures::DIRTY_TRACKING;
const STAGES: [Stage; 2] = [Stage::First, Stage::Second];

/// A device with a tracked domain, in which 64 pages and a large page behind 2 MiB are mapped.
fn tracked(stage: Stage) -> (World, Device, Domain) {
    let world = World::new(2);
    for unit in &world.units {
        unit.state().traits.features = DIRTY;
        unit.state().first = Some(UnitTraits { features: DIRTY, ..first_traits() });
    }
    let device = world.device(1);
    let options = DomainOptions { stage: Some(stage), features: DIRTY };
    let domain = world.iommu.paging_domain_with(&[&device], options).unwrap();
    world.iommu.attach_device(&domain, &device).unwrap();
    map(&domain, pages(0, 64), 0x10_0000, Prot::RW).unwrap();
    map(&domain, range(0x20_0000, 0x3f_ffff), 0x20_0000, Prot::RW).unwrap();
    (world, device, domain)
}

/// The word of bits for the first 64 pages.
fn dirty(domain: &Domain, read: DirtyRead) -> Result<u64> {
    let mut words = [0];
    let mut bitmap = DirtyBitmap::new(&mut words, Iova::new(0), PageSize::SIZE_4K)?;
    domain.read_and_clear_dirty(pages(0, 64), read, &mut bitmap)?;
    Ok(words[0])
}

fn write(world: &World, bits: u64) {
    for page in (0..64).filter(|page| bits >> page & 1 != 0) {
        assert!(world.write(1, page << 12).is_some());
    }
}

#[test]
fn a_write_is_reported_once_and_the_next_one_again() {
    for stage in STAGES {
        let (world, _device, domain) = tracked(stage);
        domain.set_dirty_tracking(DirtyTracking::On).unwrap();
        assert_eq!(domain.features(), DIRTY);
        write(&world, 0b1001);
        assert!(world.read(1, 0x5000).is_some());
        assert_eq!(dirty(&domain, DirtyRead::Keep), Ok(0b1001));
        assert_eq!(dirty(&domain, DirtyRead::Clear), Ok(0b1001));
        assert_eq!(dirty(&domain, DirtyRead::Clear), Ok(0));
        // What the unit has cached as recorded went when the record was cleared.
        write(&world, 0b1010);
        assert_eq!(dirty(&domain, DirtyRead::Clear), Ok(0b1010));
    }
}

#[test]
fn turning_it_on_forgets_and_turning_it_off_keeps() {
    for stage in STAGES {
        let (world, _device, domain) = tracked(stage);
        // The first stage records always, the second from now on: either has cached these pages.
        write(&world, 0b11);
        domain.set_dirty_tracking(DirtyTracking::On).unwrap();
        assert_eq!(dirty(&domain, DirtyRead::Clear), Ok(0));
        write(&world, 0b110);
        domain.set_dirty_tracking(DirtyTracking::Off).unwrap();
        assert_eq!(domain.features(), DomainFeatures::empty());
        assert_eq!(dirty(&domain, DirtyRead::Keep), Ok(0b110));
        // The second stage records no more.
        write(&world, 0b1000);
        let more = if stage == Stage::First { 0b1000 } else { 0 };
        assert_eq!(dirty(&domain, DirtyRead::Keep), Ok(0b110 | more));
        domain.set_dirty_tracking(DirtyTracking::Off).unwrap();
        domain.set_dirty_tracking(DirtyTracking::On).unwrap();
        assert_eq!(dirty(&domain, DirtyRead::Clear), Ok(0));
        write(&world, 0b110);
        // On while it is on forgets nothing.
        domain.set_dirty_tracking(DirtyTracking::On).unwrap();
        assert_eq!(dirty(&domain, DirtyRead::Clear), Ok(0b110));
    }
}

#[test]
fn whoever_is_attached_later_records_too() {
    for stage in STAGES {
        let (world, _device, domain) = tracked(stage);
        domain.set_dirty_tracking(DirtyTracking::On).unwrap();
        let other = world.device_of(1, 1);
        world.iommu.attach_device(&domain, &other).unwrap();
        assert!(world.units[1].dma(other.sources()[0], 0x7000, Prot::WRITE).is_some());
        assert_eq!(dirty(&domain, DirtyRead::Clear), Ok(1 << 7));
        // Both units drop what they have cached.
        assert!(world.units[1].dma(other.sources()[0], 0x7000, Prot::WRITE).is_some());
        assert_eq!(dirty(&domain, DirtyRead::Clear), Ok(1 << 7));
    }
}

#[test]
fn large_pages_and_coarse_bits() {
    let (world, _device, domain) = tracked(Stage::Second);
    domain.set_dirty_tracking(DirtyTracking::On).unwrap();
    world.write(1, 0x34_5678).unwrap();
    // The large page sets every bit that it covers.
    let mut fine = [0; 16];
    let large = range(0x20_0000, 0x3f_ffff);
    let mut bitmap = DirtyBitmap::new(&mut fine, Iova::new(0), PageSize::SIZE_4K).unwrap();
    domain.read_and_clear_dirty(large, DirtyRead::Keep, &mut bitmap).unwrap();
    assert_eq!((&fine[..8], &fine[8..]), (&[0; 8][..], &[u64::MAX; 8][..]));
    // One bit for many small pages; what was set stays set.
    write(&world, 1 << 63);
    let mut coarse = [1];
    let mut bitmap = DirtyBitmap::new(&mut coarse, Iova::new(0), PageSize::from_log2(16)).unwrap();
    domain.read_and_clear_dirty(pages(0, 64), DirtyRead::Clear, &mut bitmap).unwrap();
    domain.read_and_clear_dirty(large, DirtyRead::Keep, &mut bitmap).unwrap();
    assert_eq!(coarse, [0xffff_ffff_0000_0009]);
    let mut bitmap = DirtyBitmap::new(&mut coarse, Iova::new(0x20_0000), PageSize::SIZE_2M).unwrap();
    domain.read_and_clear_dirty(large, DirtyRead::Clear, &mut bitmap).unwrap();
    assert_eq!((coarse, dirty(&domain, DirtyRead::Clear)), ([0xffff_ffff_0000_0009], Ok(0)));
    let mut bitmap = DirtyBitmap::new(&mut fine, Iova::new(0x20_0000), PageSize::SIZE_2M).unwrap();
    domain.read_and_clear_dirty(large, DirtyRead::Clear, &mut bitmap).unwrap();
    assert_eq!(fine[0], 0, "the large page was cleared");
}

#[test]
fn wrong_arguments_change_nothing() {
    let (world, _device, domain) = tracked(Stage::Second);
    domain.set_dirty_tracking(DirtyTracking::On).unwrap();
    write(&world, 0b1);
    world.write(1, 0x20_0000).unwrap();
    let read = |range: IovaRange, base: u64, page: PageSize| {
        let mut words = [0; 16];
        let mut bitmap = DirtyBitmap::new(&mut words, Iova::new(base), page).unwrap();
        let result = domain.read_and_clear_dirty(range, DirtyRead::Clear, &mut bitmap);
        assert!(result.is_ok() || words == [0; 16]);
        result
    };
    let small = PageSize::SIZE_4K;
    let invalid = |reason| Err(Error::Invalid(reason));
    assert_eq!(read(pages(0, 64), 0, PageSize::from_log2(11)), invalid(InvalidReason::NoPageSize));
    assert_eq!(read(pages(0, 1), 0, PageSize::from_log2(13)), invalid(InvalidReason::Misaligned));
    assert_eq!(read(pages(1, 1), 0, PageSize::from_log2(13)), invalid(InvalidReason::Misaligned));
    assert_eq!(read(range(0x800, 0x17ff), 0, small), invalid(InvalidReason::Misaligned));
    assert_eq!(read(pages(0, 2), 0x1000, small), invalid(InvalidReason::Bitmap));
    assert_eq!(read(pages(0x3ff, 2), 0, small), invalid(InvalidReason::Bitmap));
    assert_eq!(read(pages(0, 65), 0, small), Err(Error::NotMapped { iova: Iova::new(0x4_0000) }));
    assert_eq!(read(pages(0x400, 1), 0x40_0000, small), Err(Error::NotMapped { iova: Iova::new(0x40_0000) }));
    let partial = Err(Error::PartialPage { page: Iova::new(0x20_0000), size: PageSize::SIZE_2M });
    assert_eq!(read(pages(0x200, 0x100), 0, small), partial);
    assert_eq!(read(pages(0x300, 0x100), 0, small), partial);
    assert!(matches!(read(pages(1 << 36, 1), 1 << 48, small), Err(Error::OutsideWindow { .. })));
    assert_eq!(dirty(&domain, DirtyRead::Keep), Ok(1));
    // A domain that was made without.
    let plain = world.domain(&world.device(2));
    map(&plain, pages(0, 64), 0, Prot::RW).unwrap();
    let unsupported = Error::Unsupported(UnsupportedReason::Features);
    assert_eq!(dirty(&plain, DirtyRead::Keep), Err(unsupported));
    assert_eq!(plain.set_dirty_tracking(DirtyTracking::On), Err(unsupported));
    let identity = world.iommu.identity_domain();
    assert_eq!(dirty(identity, DirtyRead::Keep), Err(Error::Invalid(InvalidReason::NotPaging)));
    assert_eq!(identity.set_dirty_tracking(DirtyTracking::Off), invalid(InvalidReason::NotPaging));
}

/// The unit goes on writing through what it has cached, so the record must not be taken for cleared.
#[test]
fn a_failed_invalidation_loses_nothing() {
    for stage in STAGES {
        let (world, _device, domain) = tracked(stage);
        domain.set_dirty_tracking(DirtyTracking::On).unwrap();
        write(&world, 0b101);
        world.unit().state().fail_wait = Some((0, TIMED_OUT));
        let mut words = [0];
        let mut bitmap = DirtyBitmap::new(&mut words, Iova::new(0), PageSize::SIZE_4K).unwrap();
        assert_eq!(domain.read_and_clear_dirty(pages(0, 64), DirtyRead::Clear, &mut bitmap), Err(TIMED_OUT));
        assert_eq!(words, [0b101]);
        write(&world, 0b100);
        assert_eq!(dirty(&domain, DirtyRead::Clear), Ok(0b101));
        assert_eq!(dirty(&domain, DirtyRead::Clear), Ok(0));
        write(&world, 0b100);
        assert_eq!(dirty(&domain, DirtyRead::Clear), Ok(0b100));
        // Nothing that stays is invalidated.
        write(&world, 0b100);
        world.unit().state().dead = true;
        assert_eq!(dirty(&domain, DirtyRead::Keep), Ok(0b100));
        assert_eq!(dirty(&domain, DirtyRead::Clear), Err(Error::Fenced));
        world.iommu.resume().unwrap();
        assert_eq!(dirty(&domain, DirtyRead::Clear), Ok(0b100));
    }
}

#[test]
fn a_unit_that_cannot_be_told_leaves_it_off() {
    let (world, _device, domain) = tracked(Stage::Second);
    let other = world.device_of(1, 1);
    world.iommu.attach_device(&domain, &other).unwrap();
    world.units[1].state().fail_refresh = Some((0, TIMED_OUT));
    assert_eq!(domain.set_dirty_tracking(DirtyTracking::On), Err(TIMED_OUT));
    assert_eq!(domain.features(), DomainFeatures::empty());
    write(&world, 0b1);
    assert_eq!(dirty(&domain, DirtyRead::Keep), Ok(0), "the unit that was told has stopped recording");
    // Nor does it begin when old records cannot be invalidated.
    world.unit().state().fail_invalidate = Some((0, TIMED_OUT));
    assert_eq!(domain.set_dirty_tracking(DirtyTracking::On), Err(TIMED_OUT));
    assert_eq!(domain.features(), DomainFeatures::empty());
    domain.set_dirty_tracking(DirtyTracking::On).unwrap();
    write(&world, 0b1);
    assert_eq!(dirty(&domain, DirtyRead::Clear), Ok(0b1));
}

#[test]
fn two_changes_at_once_take_turns() {
    let (world, _device, domain) = tracked(Stage::Second);
    let (again, frames) = (domain.clone(), world.frames.clone());
    world.unit().state().during_wait = Some(Box::new(move || {
        // The first one does not go on before this one gives up.
        std::thread::scope(|scope| {
            let second = scope.spawn(|| again.set_dirty_tracking(DirtyTracking::Off));
            while !second.is_finished() {
                frames.advance(Duration::from_secs(1));
                std::thread::yield_now();
            }
            assert_eq!(second.join().unwrap(), Err(Error::Busy(BusyReason::Changing)));
        });
    }));
    domain.set_dirty_tracking(DirtyTracking::On).unwrap();
    assert_eq!(domain.features(), DIRTY);
    domain.set_dirty_tracking(DirtyTracking::Off).unwrap();
}

/// What [`Domain::read_and_clear_dirty`] says of unmapping.
#[test]
fn nothing_is_lost_when_writing_is_forbidden_before_the_last_read() {
    for stage in STAGES {
        let (world, _device, domain) = tracked(stage);
        domain.set_dirty_tracking(DirtyTracking::On).unwrap();
        write(&world, 0b11);
        assert_eq!(dirty(&domain, DirtyRead::Clear), Ok(0b11));
        write(&world, 0b10);
        // SAFETY: no device is real.
        unsafe { domain.protect(pages(0, 64), Prot::READ).unwrap() };
        assert_eq!(world.write(1, 0x1000), None);
        assert_eq!(dirty(&domain, DirtyRead::Keep), Ok(0b10));
        unmap(&domain, pages(0, 64)).unwrap();
        // A new mapping begins without a record.
        map(&domain, pages(0, 64), 0x10_0000, Prot::RW).unwrap();
        assert_eq!(dirty(&domain, DirtyRead::Keep), Ok(0));
    }
}

/// Live migration: memory is copied as the bitmap says while a device writes it; once the device has
/// stopped, a last round makes the copy equal.
#[test]
fn a_copy_by_the_bitmap_is_complete() {
    for stage in STAGES {
        let (world, _device, domain) = tracked(stage);
        domain.set_dirty_tracking(DirtyTracking::On).unwrap();
        let memory: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];
        let mut copy = [0; 64];
        let mut round = |read: &dyn Fn() -> u64| {
            let bits = read();
            for page in (0..64usize).filter(|page| bits >> page & 1 != 0) {
                copy[page] = memory[page].load(Ordering::Relaxed);
            }
            bits
        };
        let read = || dirty(&domain, DirtyRead::Clear).unwrap();
        let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut state = 1u64;
                while !stop.load(Ordering::Relaxed) {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let page = (state >> 58) as usize;
                    let add = |_| {
                        memory[page].fetch_add(1, Ordering::Relaxed);
                    };
                    world.unit().dma_write(source(1), (page as u64) << 12, add).unwrap();
                    written.fetch_add(1, Ordering::Relaxed);
                }
            });
            for _ in 0..100 {
                round(&read);
                let before = written.load(Ordering::Relaxed);
                while written.load(Ordering::Relaxed) < before + 20 {
                    std::thread::yield_now();
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        round(&read);
        assert_eq!(copy, memory.each_ref().map(|page| page.load(Ordering::Relaxed)));
        assert_eq!(read(), 0);
    }
}

/// A domain of another kind of backend answers by itself.
#[test]
fn whoever_implements_no_tracking_refuses() {
    let world = World::new(1);
    let ops: &dyn DomainOps = world.iommu.blocked_domain().ops();
    let domain = world.iommu.blocked_domain();
    assert_eq!(ops.set_dirty_tracking(domain, DirtyTracking::On), Err(Error::Invalid(InvalidReason::NotPaging)));
}
