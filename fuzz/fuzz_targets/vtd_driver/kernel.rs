//! What a kernel does with the driver, in any order.

use std::num::NonZeroU64;

use iommu::arch::vtd;
use iommu::device::{DeviceInfo, Trust};
use iommu::ops::{Capability, InterruptKind, Msi};
use iommu::{BootPolicy, Device, DomainKind, Group, Iommu, Iova, Owner, PciAddress, PhysAddr, Policy, SourceId};

use crate::firmware::{self, FUNCTIONS, Pci};
use crate::input::Input;
use crate::space::Space;
use crate::unit;
use crate::world::{self, Kernel, RAM};

const MAX_OPERATIONS: usize = 160;
const MAX_SPACES: usize = 6;

/// Tells what happens, for whoever looks into a find: set `FUZZ_TRACE`.
pub fn trace(what: std::fmt::Arguments<'_>) {
    static IS_ON: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| std::env::var_os("FUZZ_TRACE").is_some());
    if *IS_ON {
        eprintln!("{what}");
    }
}

struct State {
    iommu: Iommu<Kernel>,
    pci: Pci,
    devices: Vec<Device>,
    groups: Vec<Group>,
    spaces: Vec<Space>,
    next_phys: u64,
}

pub fn run(input: &mut Input<'_>) {
    let boot = [BootPolicy::Blocked, BootPolicy::IdentityUntilClaimed, BootPolicy::Off][input.below(3)];
    let kinds = [DomainKind::Paging, DomainKind::Identity, DomainKind::Blocked];
    let default_domain = kinds[input.below(3)];
    let Ok(iommu) = Iommu::new(Kernel, Policy { boot, default_domain, ..Policy::default() }) else { return };
    let table = firmware::dmar(input);
    let pci = Pci::new(input);
    for _ in 0..input.below(3) {
        // A unit that is wrong from the start.
        world::with(|world| {
            let mut sample = world.template.unit(0, 0);
            let lies = unit::trouble(&mut sample, &world.memory, input);
            world.template.trouble = sample.trouble;
            world.pristine = false;
            world.truthful &= !lies;
        });
    }
    let init = vtd::init(&iommu, &table);
    trace(format_args!("{boot:?} {default_domain:?} {init:?}"));
    world::with(|world| world.units.iter().for_each(|unit| trace(format_args!("{unit:?}"))));
    if let Err(error) = init {
        let _ = (error.to_string(), error.errno());
    }
    let mut state = State { iommu, pci, devices: Vec::new(), groups: Vec::new(), spaces: Vec::new(), next_phys: 0 };
    for function in 0..input.below(FUNCTIONS.len()) {
        state.probe(function, Trust::Trusted);
    }
    if input.u8() & 1 == 0 {
        let _ = state.iommu.enable();
    }
    for _ in 0..MAX_OPERATIONS {
        if input.is_empty() {
            break;
        }
        world::with(|world| world.begin_operation());
        state.operate(input);
        state.check();
    }
    state.end(input);
}

impl State {
    fn operate(&mut self, input: &mut Input<'_>) {
        let operation = input.u8() % 32;
        trace(format_args!("operation {operation}"));
        match operation {
            0 => {
                let trust = if input.u8() & 1 == 0 { Trust::Trusted } else { Trust::Untrusted };
                let function = input.below(FUNCTIONS.len());
                self.probe(function, trust);
            }
            1 => {
                let sources: Vec<_> =
                    (0..input.below(4)).map(|_| SourceId::platform(input.u8().into(), input.u32())).collect();
                if let Ok(info) = DeviceInfo::platform(&sources, Trust::Trusted) {
                    let _ = self.iommu.probe_platform(info);
                }
            }
            2 => {
                let index = input.below(self.devices.len());
                if let Some(device) = self.devices.get(index) {
                    let _ = self.iommu.release_device(device);
                    if input.u8() & 1 == 0 {
                        self.devices.swap_remove(index);
                    }
                }
            }
            3 | 4 => {
                let devices: Vec<_> = (0..1 + input.below(2)).filter_map(|_| input.pick(&self.devices)).collect();
                if let Ok(domain) = self.iommu.paging_domain(&devices)
                    && self.spaces.len() < MAX_SPACES
                {
                    self.spaces.push(Space::new(domain));
                }
            }
            5..10 => {
                let index = input.below(self.spaces.len());
                if let Some(space) = self.spaces.get_mut(index) {
                    space.map(input, &mut self.next_phys);
                }
            }
            10..13 => self.with_space(input, Space::unmap),
            13 => self.with_space(input, |space, _| space.flush_deferred()),
            14 => self.with_space(input, Space::protect),
            15 => self.with_space(input, Space::cut),
            16..19 => {
                if let (Some(group), Some(space)) = (input.pick(&self.groups), input.pick(&self.spaces)) {
                    let _ = self.iommu.attach_group(&space.domain, group);
                }
            }
            19 => {
                if let Some(group) = input.pick(&self.groups) {
                    let domain = self.iommu.domain_of(group);
                    let _ = self.iommu.detach_group(&domain, group);
                }
            }
            20 => {
                let Some(group) = input.pick(&self.groups) else { return };
                let default = self.iommu.default_domain_of(group);
                let domain = match input.u8() % 4 {
                    0 => self.iommu.identity_domain(),
                    1 => self.iommu.blocked_domain(),
                    2 => &default,
                    _ => input.pick(&self.spaces).map_or(&default, |space| &space.domain),
                };
                let _ = self.iommu.replace(domain, group);
            }
            21 => {
                let Some(device) = input.pick(&self.devices) else { return };
                let Some(space) = input.pick(&self.spaces) else { return };
                let _ = match input.u8() & 1 {
                    0 => self.iommu.attach_device(&space.domain, device),
                    _ => self.iommu.detach_device(&space.domain, device),
                };
            }
            22 => {
                let Some(group) = input.pick(&self.groups) else { return };
                let owner = Owner(NonZeroU64::new(1 + u64::from(input.u8() & 1)).unwrap());
                let _ = match input.u8() & 1 {
                    0 => self.iommu.claim_dma_owner(group, owner),
                    _ => self.iommu.release_dma_owner(group, owner),
                };
            }
            23 => {
                let Some(device) = input.pick(&self.devices) else { return };
                let _ = match input.u8() & 1 {
                    0 => self.iommu.use_default_domain(device),
                    _ => self.iommu.unuse_default_domain(device),
                };
            }
            24 => self.take_faults(),
            25 => {
                let kind = input.u8() % 4;
                let result = match kind {
                    0 => self.iommu.enable(),
                    1 => self.iommu.suspend(),
                    2 => self.iommu.resume(),
                    _ => self.iommu.shutdown(),
                };
                trace(format_args!("{}: {result:?}", ["enable", "suspend", "resume", "shutdown"][usize::from(kind)]));
            }
            26 => {
                let index = input.below(self.spaces.len().max(1));
                if index < self.spaces.len() {
                    self.spaces.swap_remove(index);
                }
            }
            27 => world::with(|world| match input.u8() {
                count if count < 0x80 => world.memory.fail_after = Some(u32::from(count)),
                _ => world.memory.fail_after = None,
            }),
            28 => self.describe(input),
            _ => world::with(|world| {
                let index = input.below(world.units.len());
                let Some(unit) = world.units.get_mut(index) else { return };
                let lies = unit::trouble(unit, &world.memory, input);
                world.pristine = false;
                world.truthful &= !lies;
            }),
        }
    }

    fn probe(&mut self, function: usize, trust: Trust) {
        let address = PciAddress::from_requester_id(0, FUNCTIONS[function]);
        let probed = self.iommu.probe_pci(&self.pci, address, trust);
        trace(format_args!("probe {address}: {:?}", probed.as_ref().err()));
        if let Ok(device) = probed {
            let group = device.group().unwrap().clone();
            if !self.groups.contains(&group) {
                self.groups.push(group);
            }
            self.devices.push(device);
        }
    }

    fn with_space(&mut self, input: &mut Input<'_>, act: impl FnOnce(&mut Space, &mut Input<'_>)) {
        let index = input.below(self.spaces.len());
        if let Some(space) = self.spaces.get_mut(index) {
            act(space, input);
        }
    }

    fn take_faults(&self) {
        self.iommu.handle_interrupt(InterruptKind::Fault);
        while let Some(fault) = self.iommu.next_fault() {
            let _ = fault.to_string();
        }
        let _ = self.iommu.lost_faults();
    }

    /// Whatever only looks.
    fn describe(&self, input: &mut Input<'_>) {
        let msi = Msi { address: PhysAddr::new(input.u64()), data: input.u32() };
        let _ = self.iommu.set_fault_interrupt(msi);
        let _ = self.iommu.find(SourceId::pci(input.u16() & 1, input.u16()));
        let _ = self.iommu.uncovered().count();
        for unit in self.iommu.units() {
            let _ = format!("{unit:?} {:?}", unit.windows(unit.default_stage()));
        }
        if let Some(device) = input.pick(&self.devices) {
            let _ = self.iommu.capable(device, Capability::EnforceCacheCoherency);
            let _ = format!("{:?}", device.reserved_regions().map(|regions| regions.iter().count()));
        }
        if let Some(space) = input.pick(&self.spaces) {
            let _ = format!("{:?} {:?}", space.domain, space.domain.geometry());
        }
    }

    fn check(&mut self) {
        self.spaces.iter().for_each(Space::check);
        let mut landmarks: Vec<u64> = self.spaces.iter().flat_map(Space::landmarks).collect();
        landmarks.extend([0x7b00_4000, 0x7c00_0000, 0xfee0_0000]);
        for device in &self.devices {
            let (Ok(unit), Ok(group)) = (device.unit(), device.group()) else { continue };
            if self.iommu.find(device.sources()[0]).as_ref() != Some(device) {
                continue; // It was released.
            }
            let base = unit.base().as_u64();
            let domain = self.iommu.domain_of(group);
            // While something is unmapped and not synced, a device may see it.
            let is_settled = |space: &Space| !space.domain.ptr_eq(&domain) || space.lent.is_empty();
            let settled = self.spaces.iter().all(is_settled);
            for &iova in &landmarks {
                let expected = domain.iova_to_phys(Iova::new(iova)).map(PhysAddr::as_u64);
                world::with(|world| {
                    if !world.truthful {
                        return;
                    }
                    let Some(unit) = world.units.iter_mut().find(|unit| unit.base == base) else { return };
                    // Before the driver has set a root table, what firmware left is in force.
                    if !unit.is_translating() || unit.root.is_none() {
                        return;
                    }
                    for source in device.sources() {
                        let found = unit.translate(&world.memory, source.id() as u16, iova);
                        if !world.pristine || !settled {
                            continue;
                        }
                        match domain.kind() {
                            // Without pass-through only RAM is mapped.
                            DomainKind::Identity if iova > RAM.1 => {}
                            // Firmware may reserve what a unit cannot reach.
                            _ if iova.checked_shr(unit.cap.guest_address_bits()).unwrap_or(0) != 0 => {}
                            _ => assert_eq!(found, expected, "{source} at {iova:#x} in {:?}", domain.kind()),
                        }
                    }
                });
            }
        }
    }

    fn end(self, input: &mut Input<'_>) {
        let Self { iommu, mut devices, groups, mut spaces, .. } = self;
        let order = input.u8();
        world::with(|world| world.begin_operation());
        if order & 1 == 0 {
            spaces.clear();
        }
        if order & 2 == 0 {
            devices.clear();
        }
        drop(iommu);
        for mut space in spaces {
            space.unmap(input);
            space.flush_deferred();
        }
        drop((devices, groups));
        world::with(|world| {
            world.begin_operation();
            if world.pristine {
                assert_eq!(world.memory.frames_in_use(), 0, "frames are lost");
                for unit in &world.units {
                    // What firmware left on stays on if the driver has not taken the unit over.
                    assert!(unit.root.is_none() || !unit.is_translating(), "a unit still translates");
                    assert!(unit.queue.is_none(), "a queue is still on");
                }
            }
        });
    }
}
