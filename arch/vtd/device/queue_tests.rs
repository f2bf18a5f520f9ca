extern crate std;
use std::vec::Vec;

use super::{PENDING, Pending, Position};
use crate::addr::{Iova, PhysAddr};
use crate::arch::vtd::device::DeviceConfig;
use crate::arch::vtd::layout::descriptors::{
    Changed, ContextScope, Descriptor, DevicePasids, DeviceRange, Drain, IotlbScope, PasidIotlbScope, PasidScope,
    Request, ResponseCode, WaitFlags,
};
use crate::arch::vtd::layout::registers::TableMode;
use crate::arch::vtd::layout::{Cap, DomainId, Ecap};

fn config(ecap: Ecap) -> DeviceConfig {
    let config = DeviceConfig::default();
    DeviceConfig { ecap: config.ecap | ecap, ..config }
}

const DOMAIN: DomainId = DomainId::new(1);
const CONTEXT: Request = Request::Context(ContextScope::Global);
const PASID_CACHE: Request = Request::PasidCache(PasidScope::Global);
const IOTLB: Request = Request::Iotlb(IotlbScope::Global, Drain::empty());
const PASID_IOTLB: Request = Request::PasidIotlb(PasidIotlbScope::Pasid { domain: DOMAIN, pasid: 1 });
const DEVICE_TLB: Request =
    Request::DeviceTlb { source: 1, physical_function: 0, max_pending: 0, range: DeviceRange::ALL };
const PASID_DEVICE_TLB: Request = Request::PasidDeviceTlb {
    source: 1,
    physical_function: 0,
    max_pending: 0,
    pasids: DevicePasids::One(1),
    range: DeviceRange::ALL,
};
const INTERRUPT: Request = Request::InterruptAll;
const RESPONSE: Request = Request::PageGroupResponse { source: 1, pasid: None, group: 0, code: ResponseCode::Success };

fn wait(flags: WaitFlags) -> Request {
    Request::Wait { flags, address: PhysAddr::new(0), data: 0 }
}

fn legal(requests: &[Request]) -> Vec<usize> {
    let mut pending = Pending::new();
    for request in requests {
        pending.push(*request);
    }
    (0..requests.len()).filter(|index| pending.is_legal(*index)).collect()
}

/// 6.5.2.12 and 7.8, one row for each kind: which kinds it may overtake.
#[test]
fn what_may_overtake_what() {
    let kinds = [CONTEXT, PASID_CACHE, IOTLB, PASID_IOTLB, DEVICE_TLB, PASID_DEVICE_TLB, INTERRUPT, RESPONSE];
    let may_overtake = [
        [true; 8],                                              // context
        [false, true, true, true, true, true, true, true],      // PASID cache
        [false, false, true, true, true, true, true, true],     // IOTLB
        [false, false, true, true, true, true, true, true],     // PASID-based IOTLB
        [true, true, false, true, false, false, false, false],  // device-TLB
        [true, true, false, false, false, false, false, false], // PASID-based device-TLB
        [true; 8],                                              // interrupt entries
        [true, true, true, true, false, false, true, false],    // response
    ];
    for (later, row) in kinds.iter().zip(may_overtake) {
        for (earlier, allowed) in kinds.iter().zip(row) {
            let expected: &[usize] = if allowed { &[0, 1] } else { &[0] };
            assert_eq!(legal(&[*earlier, *later]), expected, "{later:?} behind {earlier:?}");
        }
    }
}

#[test]
fn waits_stand_for_what_is_behind_the_previous_wait() {
    let (plain, fence) = (wait(WaitFlags::STATUS_WRITE), wait(WaitFlags::FENCE));
    assert_eq!(legal(&[plain]), [0]);
    assert_eq!(legal(&[IOTLB, plain]), [0]);
    assert_eq!(legal(&[IOTLB, plain, plain]), [0, 2]);
    assert_eq!(legal(&[IOTLB, plain, IOTLB, plain]), [0, 2]);
    // A fence holds up all that follows, waits included.
    assert_eq!(legal(&[IOTLB, fence, IOTLB, plain, plain]), [0]);
    assert_eq!(legal(&[fence, plain]), [0]);
}

#[test]
fn a_time_out_aborts_waits_and_what_is_behind() {
    let plain = wait(WaitFlags::STATUS_WRITE);
    let mut pending = Pending::new();
    for request in [IOTLB, plain, CONTEXT, DEVICE_TLB, CONTEXT, PASID_DEVICE_TLB, IOTLB, plain] {
        pending.push(request);
    }
    pending.abort(5);
    assert_eq!(pending.requests.as_slice(), [IOTLB, CONTEXT]);
    let mut pending = Pending::new();
    for request in [plain, DEVICE_TLB, CONTEXT] {
        pending.push(request);
    }
    pending.abort(1);
    assert!(pending.requests.is_empty());
}

#[test]
fn quiet_means_empty_after_a_wait() {
    let mut pending = Pending::new();
    assert!(pending.is_quiet());
    pending.push(IOTLB);
    assert!(!pending.is_quiet());
    pending.finish(0);
    assert!(!pending.is_quiet());
    pending.push(wait(WaitFlags::INTERRUPT));
    pending.finish(0);
    assert!(pending.is_quiet());
    for _ in 0..PENDING {
        assert!(pending.has_room());
        pending.push(IOTLB);
    }
    assert!(!pending.has_room());
}

/// 11.4.9.9, IQEI, and Table 26.
#[test]
fn what_the_registers_may_say() {
    const WIDE: u64 = 0x7_0000 | 1 << 11;
    let (legacy, scalable, abort) = (TableMode::Legacy, TableMode::Scalable, TableMode::AbortDma);
    let plain = config(Ecap::empty());
    let all = config(Ecap::SMTS | Ecap::ADMS);
    let error = |config: &DeviceConfig, mode, address, tail| Position::new(config, mode, address, 0, tail).err();
    assert_eq!(error(&plain, Some(legacy), 0x7_0000, 0xff0), None);
    assert_eq!(error(&plain, Some(legacy), 0x7_0000, 0x1000), Some(1));
    assert_eq!(error(&plain, Some(legacy), 0x7_0007, 0x7_fff0), None);
    assert_eq!(error(&plain, Some(legacy), WIDE, 0), Some(5));
    assert_eq!(error(&all, Some(legacy), WIDE, 0), None);
    assert_eq!(error(&all, Some(scalable), 0x7_0000, 0), Some(5));
    assert_eq!(error(&all, Some(abort), 0x7_0000, 0), Some(5));
    assert_eq!(error(&all, Some(scalable), WIDE, 0x10), Some(6));
    assert_eq!(error(&all, None, WIDE, 0), Some(7));
    let position = Position::new(&all, Some(scalable), WIDE, 0xfe0, 0).unwrap();
    assert_eq!((position.address(), position.next()), (PhysAddr::new(0x7_0fe0), 0));
    let position = Position::new(&plain, Some(legacy), 0x7_0001, 0xff0, 0).unwrap();
    assert_eq!((position.address(), position.next()), (PhysAddr::new(0x7_0ff0), 0x1000));
}

#[test]
fn which_types_each_mode_has() {
    let everything = config(Ecap::SMTS | Ecap::ADMS | Ecap::DT | Ecap::PRS);
    let nothing = config(Ecap::SMTS);
    let judge = |config: &DeviceConfig, mode, low: u64| {
        let position = Position::new(config, Some(mode), 1 << 11, 0, 0).unwrap();
        position.judge(config, Descriptor { words: [low, 0, 0, 0] }).err()
    };
    // One valid descriptor of each type.
    let words = [0x11, 0x12, 0x3, 0x4, 0x5, 0x26, 0x7, 0x8, 0x9];
    for (index, word) in words.into_iter().enumerate() {
        let pasid = index >= 5;
        assert_eq!(judge(&everything, TableMode::Legacy, word), pasid.then_some(3), "{word:#x}");
        assert_eq!(judge(&everything, TableMode::Scalable, word), None, "{word:#x}");
        assert_eq!(judge(&everything, TableMode::AbortDma, word), None, "{word:#x}");
        let missing = matches!(word, 0x3 | 0x8 | 0x9);
        assert_eq!(judge(&nothing, TableMode::Scalable, word), missing.then_some(3), "{word:#x}");
    }
    for word in [0x0, 0xa, 0xf, 0x201] {
        assert_eq!(judge(&everything, TableMode::Scalable, word), Some(3), "{word:#x}");
    }
    // Valid types with reserved fields or values.
    for word in [0x1, 0x51, 0x2, 0x13, 0x27, 0x2009] {
        assert_eq!(judge(&everything, TableMode::Scalable, word), Some(4), "{word:#x}");
    }
}

#[test]
fn limits_that_depend_on_the_unit() {
    let judge = |config: DeviceConfig, request: Request| {
        let position = Position::new(&config, Some(TableMode::Scalable), 1 << 11, 0, 0).unwrap();
        position.judge(&config, request.encode())
    };
    let all = config(Ecap::SMTS | Ecap::DT);
    let pages = |mask| {
        let scope = IotlbScope::Pages { domain: DOMAIN, address: Iova::new(0), mask, changed: Changed::Tables };
        Request::Iotlb(scope, Drain::empty())
    };
    assert_eq!(judge(all, pages(18)), Ok(pages(18)));
    assert_eq!(judge(all, pages(19)), Err(4));
    assert_eq!(judge(DeviceConfig { cap: all.cap - Cap::PSI, ..all }, pages(0)), Err(4));
    let pasid = |mask| {
        let (address, changed) = (Iova::new(0), Changed::Tables);
        Request::PasidIotlb(PasidIotlbScope::Pages { domain: DOMAIN, pasid: 0, address, mask, changed })
    };
    assert_eq!((judge(all, pasid(18)), judge(all, pasid(19))), (Ok(pasid(18)), Err(4)));
    let function = Request::DeviceTlb { source: 1, physical_function: 8, max_pending: 0, range: DeviceRange::ALL };
    assert_eq!(judge(all, function), Err(4));
    assert_eq!(judge(config(Ecap::SMTS | Ecap::DT | Ecap::DIT), function), Ok(function));
    let drain = wait(WaitFlags::DRAIN_PAGE_REQUESTS);
    assert_eq!((judge(all, drain), judge(config(Ecap::SMTS | Ecap::PDS), drain)), (Err(4), Ok(drain)));
    let entries = |mask| Request::Interrupt { index: 0, mask };
    assert_eq!((judge(all, entries(15)), judge(all, entries(16))), (Ok(entries(15)), Err(4)));
    // Two bits more of a domain id than the unit has (ND = 5: 14 bits) are ignored.
    let narrow = DeviceConfig { cap: Cap::from_bits_retain(all.cap.bits() & !7 | 5), ..all };
    let domain = |id| Request::Context(ContextScope::Domain(DomainId::new(id)));
    assert_eq!(judge(narrow, domain(0xffff)), Ok(domain(0x3fff)));
}
