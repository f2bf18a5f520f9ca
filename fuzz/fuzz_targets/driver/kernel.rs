//! What a kernel does with the driver, in any order.

use std::num::NonZeroU64;

use iommu::device::Trust;
use iommu::domain::DomainOptions;
use iommu::ops::{Capability, DomainFeatures, InterruptKind, Msi, Stage};
use iommu::{
    BootPolicy, Device, Domain, DomainKind, Group, Iommu, Iova, IovaRange, LostFaults, Owner, PciAddress, PhysAddr,
    Policy, Prot, Result, SourceId, StallAnswer,
};

use crate::device_tlbs::permission;
use crate::firmware::Firmware;
use crate::input::Input;
use crate::memory::memory;
use crate::pci::{ConfigSpace, FUNCTIONS, Pci};
use crate::space::Space;
use crate::unit::{self, Access, Unit};
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
    policy: Policy,
    firmware: Firmware,
    devices: Vec<Device>,
    groups: Vec<Group>,
    spaces: Vec<Space>,
    next_phys: u64,
    checks: usize,
    lost: LostFaults,
}

/// `policy` with choices of the input.
pub fn run(input: &mut Input<'_>, options: u8, policy: Policy) {
    let boot = [BootPolicy::Blocked, BootPolicy::IdentityUntilClaimed, BootPolicy::Off][input.below(3)];
    let kinds = [DomainKind::Paging, DomainKind::Identity, DomainKind::Blocked];
    let default_domain = kinds[input.below(3)];
    let policy = Policy { boot, default_domain, ..policy };
    let Ok(iommu) = Iommu::new(Kernel, policy) else { return };
    let firmware = Firmware::choose(input, options);
    let pci = Pci::new(input);
    world::with(|world| world.pci = pci);
    for _ in 0..input.below(3) {
        // A unit that is wrong from the start.
        world::with(|world| {
            let lies = world.template.trouble(input);
            world.spoil(lies);
        });
    }
    let init = firmware.init(&iommu);
    trace(format_args!("{boot:?} {default_domain:?} {init:?}"));
    world::with(|world| world.units.iter().for_each(|unit| trace(format_args!("{unit:?}"))));
    if let Err(error) = init {
        let _ = (error.to_string(), error.errno());
    }
    let (devices, groups, spaces) = (Vec::new(), Vec::new(), Vec::new());
    let mut state = State {
        iommu,
        policy,
        firmware,
        devices,
        groups,
        spaces,
        next_phys: 0,
        checks: 0,
        lost: LostFaults::default(),
    };
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
        let operation = input.u8() % 40;
        trace(format_args!("operation {operation}"));
        match operation {
            0 => {
                let trust = if input.u8() & 1 == 0 { Trust::Trusted } else { Trust::Untrusted };
                let function = input.below(FUNCTIONS.len());
                self.probe(function, trust);
            }
            1 => {
                if let Some(info) = self.firmware.platform_device(input) {
                    let probed = self.iommu.probe_platform(info);
                    self.add(probed);
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
                let options = domain_options(if operation == 3 { 0 } else { input.u8() });
                let domain = self.iommu.paging_domain_with(&devices, options);
                trace(format_args!("{options:?}: {:?}", domain.as_ref().err()));
                if let Ok(domain) = domain
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
            24 => self.take_faults(input),
            25 => {
                let kind = input.u8() % 5;
                if kind == 4 {
                    return self.crash();
                }
                let result = match kind {
                    0 => self.iommu.enable(),
                    1 => self.iommu.suspend(),
                    2 => self.iommu.resume(),
                    _ => self.iommu.shutdown(),
                };
                trace(format_args!("{}: {result:?}", ["enable", "suspend", "resume", "shutdown"][usize::from(kind)]));
                // What is not read by then is lost.
                world::with(|world| world.take_refused());
            }
            26 => {
                let index = input.below(self.spaces.len().max(1));
                if index < self.spaces.len() {
                    self.spaces.swap_remove(index);
                }
            }
            27 => {
                let count = input.u8();
                memory().fail_after = (count < 0x80).then_some(u32::from(count));
            }
            28 => self.describe(input),
            29 | 30 => self.with_space(input, Space::unmap_sync),
            31 => self.with_space(input, |space, _| space.enforce_coherency()),
            32 | 33 => self.with_space(input, |space, input| {
                space.note_written(&take_written());
                space.track_dirty(input);
                take_written();
            }),
            34 | 35 => self.with_space(input, |space, input| space.read_dirty(input, take_written)),
            36 => {
                // Power is lost.
                if self.iommu.suspend().is_ok() {
                    world::with(|world| {
                        world.take_refused();
                        world.units.iter_mut().for_each(Unit::lose_power);
                    });
                    let resumed = self.iommu.resume();
                    trace(format_args!("resume: {resumed:?}"));
                    if resumed.is_err() {
                        world::with(|world| world.spoil(false));
                    }
                }
            }
            _ => world::with(|world| {
                let index = input.below(world.units.len());
                let Some(unit) = world.units.get_mut(index) else { return };
                let lies = unit.trouble(input);
                world.spoil(lies);
            }),
        }
    }

    /// Another kernel takes over what this one has left in force.
    fn crash(&mut self) {
        trace(format_args!("crash"));
        // It has memory of its own.
        memory().fail_after = None;
        world::with(|world| {
            world.take_refused();
            world.crash();
        });
        let Ok(iommu) = Iommu::new(Kernel, self.policy) else { unreachable!("there is memory") };
        self.lost = LostFaults::default();
        std::mem::forget(std::mem::replace(&mut self.iommu, iommu));
        self.devices.drain(..).for_each(std::mem::forget);
        self.groups.drain(..).for_each(std::mem::forget);
        self.spaces.drain(..).for_each(|space| std::mem::forget(space.domain));
        let init = self.firmware.init(&self.iommu);
        trace(format_args!("{init:?}"));
        (0..FUNCTIONS.len()).for_each(|function| self.probe(function, Trust::Trusted));
        let _ = self.iommu.enable();
    }

    fn probe(&mut self, function: usize, trust: Trust) {
        let address = PciAddress::from_requester_id(0, FUNCTIONS[function]);
        let probed = self.iommu.probe_pci(&ConfigSpace, address, trust);
        self.add(probed);
    }

    fn add(&mut self, probed: Result<Device>) {
        trace(format_args!("probe: {probed:?}"));
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

    fn take_faults(&mut self, input: &mut Input<'_>) {
        let is_due = world::with(|world| world.take_refused() && world.pristine);
        self.iommu.handle_interrupt(InterruptKind::Fault);
        let lost = self.iommu.lost_faults();
        let mut is_reported = lost != std::mem::replace(&mut self.lost, lost);
        while let Some(fault) = self.iommu.next_fault() {
            is_reported = true;
            let _ = fault.to_string();
            if fault.stalled.is_some() {
                let answer = [StallAnswer::Terminate, StallAnswer::Retry][input.below(2)];
                let _ = self.iommu.answer_stall(&fault, answer);
            }
        }
        assert!(is_reported || !is_due, "a fault is not reported");
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
        let written = take_written();
        self.spaces.iter_mut().for_each(|space| space.note_written(&written));
        self.spaces.iter().for_each(Space::check);
        self.checks += 1;
        for device in &self.devices {
            let (Ok(unit), Ok(group)) = (device.unit(), device.group()) else { continue };
            if !world::is_truthful() || self.iommu.find(device.sources()[0]).as_ref() != Some(device) {
                continue; // It was released.
            }
            let base = unit.base().as_u64();
            let domain = self.iommu.domain_of(group);
            // While something is unmapped and not synced, a device may see it.
            let own = self.spaces.iter().find(|space| space.domain.ptr_eq(&domain));
            let is_settled = own.is_none_or(|space| space.lent.is_empty());
            let is_coherent = own.is_some_and(|space| space.is_coherent);
            let others = self.spaces.iter().filter(|space| !space.domain.ptr_eq(&domain));
            let mut landmarks: Vec<u64> = own.into_iter().flat_map(Space::landmarks).collect();
            landmarks.extend(others.flat_map(|space| space.landmarks().take(1)));
            landmarks.extend([0x7b00_4000, 0x7c00_0000]);
            for (index, &iova) in landmarks.iter().enumerate() {
                let access = [Access::Read, Access::Write][(index + self.checks) & 1];
                world::with(|world| {
                    let Some(index) = world.units.iter().position(|unit| unit.base == base) else { return };
                    for source in device.sources() {
                        let found = world.reach(index, *source, iova, access);
                        let unit = &world.units[index];
                        // Before the driver has set a root table, what firmware left is in force.
                        if !world.pristine || !is_settled || !unit.is_translating() || unit::is_special(iova) {
                            continue;
                        }
                        match domain.kind() {
                            // Without pass-through only RAM is mapped.
                            DomainKind::Identity if iova > RAM.1 => continue,
                            // Firmware may reserve what a unit cannot reach.
                            _ if iova.checked_shr(unit.address_bits(domain.kind())).unwrap_or(0) != 0 => continue,
                            _ => {}
                        }
                        let phys = found.map(|found| found.phys);
                        let expected = expected(&domain, iova, access);
                        assert_eq!(phys, expected, "{source} at {iova:#x} in {:?}, {access:?}", domain.kind());
                        let snoops = found.and_then(|found| found.snoops);
                        assert!(!is_coherent || snoops != Some(false), "{source} at {iova:#x} does not snoop");
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
                assert_eq!(memory().frames_in_use(), 0, "frames are lost");
                world.units.iter().for_each(Unit::check_end);
            }
        });
    }
}

/// Where devices have written to since this was asked last.
fn take_written() -> Vec<u64> {
    world::with(|world| std::mem::take(&mut world.written))
}

fn domain_options(choice: u8) -> DomainOptions {
    let stage = [None, Some(Stage::First), Some(Stage::Second), None][usize::from(choice & 3)];
    DomainOptions { stage, features: DomainFeatures::from_bits_truncate(u32::from(choice >> 2)) }
}

/// Where an access of a device in this domain should end.
fn expected(domain: &Domain, iova: u64, access: Access) -> Option<u64> {
    match domain.kind() {
        DomainKind::Paging => {
            let page = IovaRange::from_len(Iova::new(iova & !0xfff), 0x1000).unwrap();
            let run = domain.walk(page).next()?;
            let is_supervisors = domain.ops().stage() == Some(Stage::First) && run.prot.contains(Prot::PRIV);
            let permitted = run.prot.contains(permission(access)) && !is_supervisors;
            permitted.then(|| run.phys.as_u64() + (iova & 0xfff))
        }
        DomainKind::Identity => Some(iova),
        _ => None,
    }
}
