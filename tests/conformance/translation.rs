//! Mappings of every size, and that changes of them are seen.

use iommu::pgtable::{PageSize, PageSizes};
use iommu::{Error, Iova, PhysRange, Prot, UnsupportedReason};
use iommu_harness::{Access, Machine, TestResult};

use crate::rig::{Rig, at_most, is_first_stage, map, phys, range, unmap};

/// Small pages that lie apart in memory, side by side for the device.
pub(crate) fn small_pages(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("edu")?;
    let (first, second) = (rig.pages(1)?, rig.pages(1)?);
    let page = rig.page();
    map(&domain, 0x10_0000, &second, Prot::RW)?;
    map(&domain, 0x10_0000 + page, &first, Prot::RW)?;
    rig.assert_reaches("edu", Iova::new(0x10_0000), &second, 0, 2048);
    rig.assert_reaches("edu", Iova::new(0x10_0000 + page), &first, 0, 2048);
    assert!(domain.walk(range(0x10_0000, 2 * page)).all(|run| run.page_size.bytes() == page));
    Ok(())
}

/// Addresses and lengths that are not multiples of anything.
pub(crate) fn odd_offsets(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("edu")?;
    let buffer = rig.pages(4)?;
    let (page, start) = (rig.page(), 0x1234_5000 & !(rig.page() - 1));
    map(&domain, start, &buffer, Prot::RW)?;
    let places = [(1, 1), (page - 2, 4), (page - 1, 2), (page + 3, 1021), (3 * page + 1, 0xffe)];
    for (offset, bytes) in places {
        rig.assert_reaches("edu", Iova::new(start + offset), &buffer, offset, bytes);
    }
    Ok(())
}

/// One page of 2 MiB.
pub(crate) fn large_pages(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("edu")?;
    let buffer = machine.buffer(2 << 20)?;
    let mapped = map(&domain, 0x4000_0000, &buffer, Prot::RW)?;
    assert!(domain.walk(mapped).all(|run| run.page_size == at_most(&domain, PageSize::SIZE_2M)));
    for offset in [0, 0x1001, 0x1f_f000, 0x1f_fc04] {
        rig.assert_reaches("edu", Iova::new(0x4000_0000 + offset), &buffer, offset, 1000);
    }
    rig.assert_blocked("edu", Iova::new(0x4020_0000), Access::Write);
    Ok(())
}

/// One page of 1 GiB over all of the memory around a buffer.
pub(crate) fn huge_pages(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("edu")?;
    let buffer = machine.buffer(0x2000)?;
    let giant = range(0x10_0000_0000, 1 << 30);
    let around = buffer.phys().align_down(1 << 30);
    // SAFETY: the device is told to use the buffer only.
    unsafe { domain.map(giant, around, Prot::RW) }?;
    assert!(domain.walk(giant).all(|run| run.page_size == at_most(&domain, PageSize::SIZE_1G)));
    let iova = Iova::new(0x10_0000_0000 + (buffer.phys().as_u64() - around.as_u64()));
    rig.assert_reaches("edu", iova, &buffer, 0, 4000);
    Ok(())
}

/// One transfer through sixteen small pages in reverse order.
pub(crate) fn long_copy(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("lsi")?;
    let (size, all) = (rig.page(), 16 * rig.page() as usize);
    let (from, to) = (rig.pages(16)?, rig.pages(16)?);
    for page in 0..16 {
        let there = range(0x20_0000 + page * size, size);
        // SAFETY: the buffers outlive the copy.
        unsafe { domain.map(there, phys(&from, (15 - page) * size), Prot::READ) }?;
    }
    // The first stage cannot forbid reading.
    let prot = if is_first_stage(&domain) { Prot::RW } else { Prot::WRITE };
    map(&domain, 0x40_0000, &to, prot)?;
    for page in 0..16u8 {
        from.write(u64::from(page) * size, &vec![page + 1; size as usize]);
    }
    let _ = rig.engine("lsi").copy(Iova::new(0x20_0000), Iova::new(0x40_0000), all)?;
    assert_eq!(rig.faults(), []);
    for page in 0..16u8 {
        assert!(to.read(u64::from(page) * size, size as usize).iter().all(|byte| *byte == 16 - page), "page {page}");
    }
    Ok(())
}

/// A list of ranges becomes one range of IOVAs.
pub(crate) fn scattered(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("edu")?;
    let page = rig.page();
    let (first, second) = (rig.pages(2)?, rig.pages(1)?);
    let half = |offset| PhysRange::from_len(phys(&first, offset), page);
    // SAFETY: the buffers outlive what the device does.
    let mapped = unsafe { domain.map_sg(Iova::new(0x50_0000), &[half(0)?, half(page)?, second.range()], Prot::RW) }?;
    assert_eq!(mapped, range(0x50_0000, 3 * page));
    rig.assert_reaches("edu", Iova::new(0x50_0000 + page - 0x800), &first, page - 0x800, 0x1000);
    rig.assert_reaches("edu", Iova::new(0x50_0000 + 2 * page), &second, 0, 0x800);
    Ok(())
}

/// The last page that the domain can translate.
pub(crate) fn top_of_the_window(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("edu")?;
    let buffer = rig.pages(1)?;
    let start = rig.last(&domain).as_u64() & !(rig.page() - 1);
    map(&domain, start, &buffer, Prot::RW)?;
    rig.assert_reaches("edu", Iova::new(start), &buffer, 0, 4000);
    Ok(())
}

/// After an unmap the device is stopped, though the IOTLB had the translation.
pub(crate) fn unmap_after_warm(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("edu")?;
    let buffer = rig.pages(1)?;
    let mapped = map(&domain, 0x60_0000, &buffer, Prot::RW)?;
    rig.assert_reaches("edu", Iova::new(0x60_0000), &buffer, 0, 64);
    unmap(&domain, mapped)?;
    buffer.fill(0x11);
    rig.assert_blocked("edu", Iova::new(0x60_0000), Access::Write);
    assert!(buffer.is_filled(0x11));
    assert_eq!(domain.iova_to_phys(Iova::new(0x60_0000)), None);
    Ok(())
}

/// A device asks before there is so much as a table for its address.
pub(crate) fn absent_then_mapped(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("edu")?;
    let buffer = rig.pages(1)?;
    for iova in [0x60_0000, 0x8060_0000] {
        rig.assert_blocked("edu", Iova::new(iova), Access::Read);
        map(&domain, iova, &buffer, Prot::RW)?;
        rig.assert_reaches("edu", Iova::new(iova), &buffer, 0, 64);
    }
    Ok(())
}

/// Many pages through one gather: more ranges than it keeps apart.
pub(crate) fn unmap_many_after_warm(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("edu")?;
    let buffer = rig.pages(1)?;
    // More than a gather keeps apart, and no more than a source may fault before it is muted.
    let pages: Vec<u64> = (0..10).map(|index| 0x100_0000 + index * 0x30_0000).collect();
    for &page in &pages {
        map(&domain, page, &buffer, Prot::RW)?;
        rig.assert_reaches("edu", Iova::new(page), &buffer, 0, 16);
    }
    let mut gather = domain.gather();
    for &page in &pages {
        // SAFETY: one thread.
        unsafe { domain.unmap(range(page, rig.page()), &mut gather) }?;
    }
    gather.sync().map_err(Error::from)?;
    for &page in &pages {
        rig.assert_blocked("edu", Iova::new(page), Access::Read);
    }
    Ok(())
}

/// The same IOVA leads somewhere else afterwards.
pub(crate) fn remap_is_seen(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("edu")?;
    let (first, second) = (rig.pages(1)?, rig.pages(1)?);
    for _ in 0..3 {
        for buffer in [&first, &second] {
            let mapped = map(&domain, 0x70_0000, buffer, Prot::RW)?;
            rig.assert_reaches("edu", Iova::new(0x70_0000), buffer, 0, 512);
            unmap(&domain, mapped)?;
        }
    }
    Ok(())
}

/// A permission that is taken away is gone, one that is given is there.
pub(crate) fn protect_is_seen(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("edu")?;
    let buffer = rig.pages(1)?;
    let mapped = map(&domain, 0x80_0000, &buffer, Prot::RW)?;
    rig.assert_reaches("edu", Iova::new(0x80_0000), &buffer, 0, 64);
    // SAFETY: the buffer is the test's.
    unsafe { domain.protect(mapped, Prot::READ) }?;
    rig.assert_blocked("edu", Iova::new(0x80_0000), Access::Write);
    // SAFETY: as above.
    unsafe { domain.protect(mapped, Prot::RW) }?;
    rig.assert_reaches("edu", Iova::new(0x80_0000), &buffer, 0, 64);
    Ok(())
}

/// A large page loses its middle; what is left still works.
pub(crate) fn cut_keeps_the_rest(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("edu")?;
    let buffer = machine.buffer(2 << 20)?;
    map(&domain, 0x4000_0000, &buffer, Prot::RW)?;
    rig.assert_reaches("edu", Iova::new(0x4000_0000), &buffer, 0, 64);
    let middle = range(0x4008_0000, 0x1_0000);
    let size = at_most(&domain, PageSize::SIZE_2M);
    if size.bytes() > 0x1_0000 {
        let refused = Error::PartialPage { page: middle.start().align_down(size.bytes()), size };
        assert_eq!(unmap(&domain, middle), Err(refused));
    }
    // SAFETY: one thread.
    match unsafe { domain.cut(middle) } {
        // Tables that may not have it: all is as before.
        Err(Error::Unsupported(UnsupportedReason::Split)) => {
            rig.assert_reaches("edu", Iova::new(0x4008_0000), &buffer, 0x8_0000, 64);
            return Ok(());
        }
        cut => cut?,
    }
    rig.assert_reaches("edu", Iova::new(0x4008_0000), &buffer, 0x8_0000, 64);
    unmap(&domain, middle)?;
    rig.assert_blocked("edu", Iova::new(0x4008_0000), Access::Read);
    rig.assert_reaches("edu", Iova::new(0x4007_f000), &buffer, 0x7_f000, 0xfff);
    rig.assert_reaches("edu", Iova::new(0x4009_0000), &buffer, 0x9_0000, 0xfff);
    Ok(())
}

/// Small pages, then nothing, then a large page where the table of the small ones was left over.
pub(crate) fn table_comes_back(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("edu")?;
    let buffer = machine.buffer(2 << 20)?;
    let there = range(0x4000_0000, 2 << 20);
    // SAFETY: the buffer outlives what the device does.
    unsafe { domain.map_with(there, buffer.phys(), Prot::RW, PageSizes::from_bits(rig.page())) }?;
    rig.assert_reaches("edu", Iova::new(0x4000_3000), &buffer, 0x3000, 512);
    for half in [range(0x4000_0000, 1 << 20), range(0x4010_0000, 1 << 20)] {
        unmap(&domain, half)?;
    }
    map(&domain, 0x4000_0000, &buffer, Prot::RW)?;
    assert!(domain.walk(there).all(|run| run.page_size == at_most(&domain, PageSize::SIZE_2M)));
    rig.assert_reaches("edu", Iova::new(0x4000_3000), &buffer, 0x3000, 512);
    Ok(())
}

/// Deferred invalidations happen when they are asked for.
pub(crate) fn deferred(machine: &dyn Machine) -> TestResult {
    let rig = Rig::new(machine)?;
    let domain = rig.attached("edu")?;
    let buffer = rig.pages(1)?;
    let mapped = map(&domain, 0x90_0000, &buffer, Prot::RW)?;
    rig.assert_reaches("edu", Iova::new(0x90_0000), &buffer, 0, 64);
    let mut gather = domain.gather();
    // SAFETY: one thread.
    unsafe { domain.unmap(mapped, &mut gather) }?;
    gather.defer();
    domain.flush_deferred()?;
    rig.assert_blocked("edu", Iova::new(0x90_0000), Access::Write);
    Ok(())
}
