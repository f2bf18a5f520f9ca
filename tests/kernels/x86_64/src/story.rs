//! What the kernel shows: a device reaches what is mapped for it, and nothing else.

use core::time::Duration;

use iommu::platform::Platform;
use iommu::{Access, Device, Iommu, Iova, IovaRange, Prot};

use crate::edu::Edu;
use crate::failure::{Failure, expect};
use crate::page::Page;
use crate::platform::Kernel;
use crate::runtime::stack_used;
use crate::{println, protection};

/// Where the device sees the page that it may read, and the one that it may write.
const SOURCE: Iova = Iova::new(0x10_0000);
const TARGET: Iova = Iova::new(0x11_0000);
const PAGE_BYTES: u64 = 4096;

/// What the device copies, and what it must not overwrite.
const DATA: u64 = 0x0123_4567_89ab_cdef;
const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;

/// The pages of the story: one to be read, one to be written, and one that is nobody's business.
struct Pages {
    source: Page,
    target: Page,
    secret: Page,
}

/// From a machine without protection to one with it, and back.
pub fn tell(kernel: Kernel, dmar: &[u8], edu: &Edu) -> Result<(), Failure> {
    let source = Page::filled(kernel, DATA)?;
    let pages = Pages { source, target: Page::filled(kernel, 0)?, secret: Page::filled(kernel, SECRET)? };
    let frames_before = kernel.frames_in_use();

    unprotected(edu, &pages)?;
    println!("without the IOMMU, the DMA went through");

    protection::start(kernel, dmar)?;
    println!("the IOMMU is on, {} frames are its own", kernel.frames_in_use() - frames_before);
    protection::with(|iommu| {
        let device = iommu.find(edu.function().source_id()).filter(|device| device.unit().is_ok());
        let device = device.ok_or(Failure::Missing("an IOMMU for the device"))?;
        Protected { kernel, edu, pages: &pages, iommu, device: &device }.tell()
    })?;

    // As before another kernel is booted: the hardware is as firmware left it.
    protection::with(|iommu| Ok(iommu.shutdown()?))?;
    unprotected(edu, &pages)?;
    println!("after shutdown, the DMA went through");

    protection::stop(kernel);
    println!("{} bytes of stack were used at the most", stack_used());
    expect(kernel.frames_in_use() == frames_before, "frames were lost")?;
    println!("every frame came back");
    Ok(())
}

/// Without an IOMMU the device reaches whatever it names.
fn unprotected(edu: &Edu, pages: &Pages) -> Result<(), Failure> {
    pages.target.fill(0);
    edu.read_memory(Iova::new(pages.source.phys().as_u64()))?;
    edu.write_memory(Iova::new(pages.target.phys().as_u64()))?;
    expect(pages.target.holds(DATA), "without translation, the DMA did not arrive")
}

/// What takes part while the IOMMU is on.
struct Protected<'a> {
    kernel: Kernel,
    edu: &'a Edu,
    pages: &'a Pages,
    iommu: &'a Iommu<Kernel>,
    device: &'a Device,
}

impl Protected<'_> {
    fn tell(&self) -> Result<(), Failure> {
        let Self { kernel, edu, pages, iommu, device } = self;
        let secret = Iova::new(pages.secret.phys().as_u64());

        // A device that nobody attached a domain to is blocked.
        self.write_is_refused(secret)?;
        println!("before attach, the DMA was stopped");

        // A domain with two pages, and nothing else.
        let domain = iommu.paging_domain(&[device])?;
        let source = IovaRange::from_len(SOURCE, PAGE_BYTES)?;
        let target = IovaRange::from_len(TARGET, PAGE_BYTES)?;
        // SAFETY: both pages live until after the unmap below was synced; this is the only task.
        unsafe { domain.map(source, pages.source.phys(), Prot::READ) }?;
        // SAFETY: as above.
        unsafe { domain.map(target, pages.target.phys(), Prot::RW) }?;
        iommu.attach_device(&domain, device)?;
        println!("{domain:?}");

        // Inside the mapping.
        pages.target.fill(0);
        edu.read_memory(SOURCE)?;
        edu.write_memory(TARGET)?;
        expect(pages.target.holds(DATA), "inside its mapping, the DMA did not arrive")?;
        expect(iommu.next_fault().is_none(), "a fault was reported for a DMA that is allowed")?;
        println!("inside the mapping, the DMA went through");

        // Outside.
        self.write_is_refused(secret)?;
        println!("outside the mapping, the DMA was stopped");

        // Where the mapping was. The device used it: only the sync makes its unit forget it.
        let mut gather = domain.gather();
        // SAFETY: this is the only task.
        unsafe { domain.unmap(source, &mut gather) }?;
        // SAFETY: as above.
        unsafe { domain.unmap(target, &mut gather) }?;
        gather.sync().map_err(iommu::Error::from)?;
        pages.target.fill(0);
        self.write_is_refused(TARGET)?;
        expect(pages.target.holds(0), "the device wrote to a page that was taken back")?;
        println!("after the unmap, the DMA was stopped");

        let frames_in_use = kernel.frames_in_use();
        iommu.detach_device(&domain, device)?;
        drop(domain);
        let freed = frames_in_use - kernel.frames_in_use();
        println!("the domain is gone, and {freed} frames of tables with it");
        expect(freed > 0, "the domain's tables did not come back")
    }

    /// Lets the device write to `page`, which must not arrive in the secret and must be reported.
    fn write_is_refused(&self, page: Iova) -> Result<(), Failure> {
        self.edu.write_memory(page)?;
        expect(self.pages.secret.holds(SECRET), "the device wrote to a page that was not mapped for it")?;
        // The interrupt handler fills the log. A kernel that has no interrupt for it calls
        // `handle_interrupt` from a timer.
        let deadline = self.kernel.now() + Duration::from_secs(1);
        let fault = loop {
            match self.iommu.next_fault() {
                Some(fault) => break fault,
                None if self.kernel.now() > deadline => return Err(Failure::Wrong("no fault was reported")),
                None => self.kernel.spin_hint(),
            }
        };
        println!("fault: {fault}");
        expect(self.device.sources().contains(&fault.source), "the fault names another device")?;
        expect(fault.access == Access::Write, "the fault tells of another access")?;
        expect(fault.iova == Some(page), "the fault names another page")
    }
}
