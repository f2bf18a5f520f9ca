//! Requests that wait for an answer when they fault.

use iommu::ops::{FaultModel, InterruptKind, IommuOps};
use iommu::{
    Access, Error, FAULT_LOG_RECORDS, FAULTS_PER_WINDOW, FaultKind, FaultRecord, InvalidReason, Iova, Policy,
    StallAnswer, StallPolicy, StallTag,
};

use crate::world::{World, group, source};

const HOLD: Policy = Policy {
    boot: iommu::BootPolicy::Blocked,
    default_domain: iommu::domain::DomainKind::Paging,
    ats: iommu::AtsPolicy::Off,
    stalls: StallPolicy::Hold,
};

const NOT_WAITING: Error = Error::Invalid(InvalidReason::NotWaiting);

/// A request of `id` that waits in unit 0.
fn fault(world: &World, id: u32, tag: u64) -> FaultRecord {
    FaultRecord {
        unit: world.unit().base(),
        source: source(id),
        pasid: None,
        iova: Some(Iova::new(0x7000)),
        access: Access::Read,
        kind: FaultKind::Translation,
        reason: 0x10,
        text: "nothing is mapped there",
        stalled: Some(StallTag(tag)),
    }
}

fn raise(world: &World, faults: impl IntoIterator<Item = FaultRecord>) {
    for fault in faults {
        let mut state = world.unit().state();
        state.waiting.extend(fault.stalled);
        state.faults.push(fault);
    }
    world.iommu.handle_interrupt(InterruptKind::Fault);
}

/// The model under which the device with this id was attached.
fn model_of(policy: Policy, supported: bool) -> FaultModel {
    let world = World::with_policy(1, policy);
    world.unit().state().supports_stalls = supported;
    let _device = world.device(5);
    world.unit().state().fault_models[&source(5)]
}

#[test]
fn requests_wait_if_policy_and_firmware_say_so() {
    assert_eq!(model_of(HOLD, true), FaultModel::Stall);
    assert_eq!(model_of(HOLD, false), FaultModel::Terminate);
    assert_eq!(model_of(Policy::default(), true), FaultModel::Terminate);
}

#[test]
fn who_shares_an_id_with_one_that_does_not_bear_it_does_not_wait() {
    let world = World::with_policy(1, HOLD);
    world.unit().state().supports_stalls = true;
    let _first = world.behind(1, 11);
    let model = |id| world.unit().state().fault_models[&source(id)];
    assert_eq!((model(1), model(11)), (FaultModel::Stall, FaultModel::Stall));
    world.unit().state().supports_stalls = false;
    let second = world.behind(1, 12);
    let domain = world.domain(&second);
    world.iommu.attach_group(&domain, group(&second)).unwrap();
    assert_eq!((model(1), model(11), model(12)), (FaultModel::Terminate, FaultModel::Stall, FaultModel::Terminate));
}

#[test]
fn a_request_waits_until_it_is_answered_once() {
    let world = World::with_policy(1, HOLD);
    raise(&world, [fault(&world, 1, 7), fault(&world, 2, 8)]);
    let (first, second) = (world.iommu.next_fault().unwrap(), world.iommu.next_fault().unwrap());
    assert_eq!(first, fault(&world, 1, 7));
    assert!(first.to_string().contains("read at 0x7000 waits: nothing is mapped there"), "{first}");
    assert!(world.unit().state().answers.is_empty());
    world.iommu.answer_stall(&second, StallAnswer::Terminate).unwrap();
    world.iommu.answer_stall(&first, StallAnswer::Retry).unwrap();
    let answers = [(StallTag(8), StallAnswer::Terminate), (StallTag(7), StallAnswer::Retry)];
    assert_eq!(world.unit().state().answers, answers);
    assert_eq!(world.iommu.answer_stall(&first, StallAnswer::Retry), Err(NOT_WAITING));
    let over = FaultRecord { stalled: None, ..first };
    assert_eq!(world.iommu.answer_stall(&over, StallAnswer::Retry), Err(NOT_WAITING));
    let elsewhere = FaultRecord { unit: iommu::PhysAddr::new(0x1234), ..first };
    assert_eq!(world.iommu.answer_stall(&elsewhere, StallAnswer::Retry), Err(Error::NoDevice));
}

#[test]
fn what_nobody_will_answer_is_terminated() {
    // A source that is muted.
    let world = World::with_policy(1, HOLD);
    raise(&world, (0..20).map(|tag| fault(&world, 1, tag)));
    let muted = u64::from(FAULTS_PER_WINDOW)..20;
    let expected: Vec<_> = muted.map(|tag| (StallTag(tag), StallAnswer::Terminate)).collect();
    assert_eq!(world.unit().state().answers, expected);
    // A log that is full.
    let world = World::with_policy(1, HOLD);
    raise(&world, (0..FAULT_LOG_RECORDS as u32 + 3).map(|id| fault(&world, id, u64::from(id))));
    let over = FAULT_LOG_RECORDS as u64..FAULT_LOG_RECORDS as u64 + 3;
    let expected: Vec<_> = over.map(|tag| (StallTag(tag), StallAnswer::Terminate)).collect();
    assert_eq!(world.unit().state().answers, expected);
    assert_eq!(world.unit().state().waiting.len(), FAULT_LOG_RECORDS);
}

#[test]
fn a_unit_that_cannot_but_hold_is_answered_at_once() {
    let world = World::new(1);
    raise(&world, [fault(&world, 1, 7)]);
    assert_eq!(world.iommu.next_fault(), Some(FaultRecord { stalled: None, ..fault(&world, 1, 7) }));
    assert_eq!(world.unit().state().answers, [(StallTag(7), StallAnswer::Terminate)]);
}
