//! ATS (SMMU 3.9).

use super::{HOLE, PAGE, STREAM, Unit, aborted, cd, events, put_cd, put_ste, settle, stage1, stage2, translating};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::device::{Access, Answer, Blocked, DeviceConfig, InOrder, Outcome, Request};
use crate::arch::smmuv3::layout::Ste;
use crate::arch::smmuv3::layout::events::EventKind;
use crate::arch::smmuv3::layout::registers::offset;
use crate::arch::smmuv3::layout::stream_table::{Config, Eats};
use crate::bus::AddressType;
use crate::platform::Registers;
use crate::prot::Prot;

/// A unit that checks translated requests, and can do split-stage ATS.
fn unit(ste: Ste) -> Unit {
    let mut config = DeviceConfig::default();
    config.identification.idr0 &= !(1 << 11);
    let unit = translating(ste, config, InOrder);
    unit.write32(offset::CR0, 0b1_1101);
    settle(&unit);
    unit
}

fn ask(unit: &Unit, address: u64, access: Access) -> Result<Answer, Blocked> {
    let address_type = AddressType::TranslationRequest;
    unit.translate(&Request { address_type, ..Request::new(STREAM, address, access) })
}

fn go(unit: &Unit, address: u64) -> Result<u64, Blocked> {
    let address_type = AddressType::Translated;
    let request = Request { address_type, ..Request::new(STREAM, address, Access::Write) };
    unit.translate(&request).map(|answer| answer.phys.as_u64())
}

fn unsupported(reason: Option<EventKind>) -> Blocked {
    Blocked { outcome: Outcome::Unsupported, reason }
}

#[test]
fn a_translation_and_its_use() {
    let unit = unit(stage1().with_eats(Eats::Full));
    let answer = ask(&unit, PAGE, Access::Write).unwrap();
    assert_eq!((answer.phys, answer.page_bits, answer.prot), (PhysAddr::new(0x90_0000), 12, Prot::RW));
    assert_eq!(ask(&unit, PAGE, Access::Read).unwrap().prot, Prot::READ, "the no-write flag");
    assert_eq!(go(&unit, 0x90_0123), Ok(0x90_0123));
    // Nothing there: success without permission, and no event.
    assert_eq!(ask(&unit, PAGE + 0x1000, Access::Write).unwrap().prot, Prot::empty());
    assert!(events(&unit).is_empty());
}

#[test]
fn a_stream_without_ats() {
    let unit = unit(stage1());
    assert_eq!(ask(&unit, PAGE + 4, Access::Write), Err(unsupported(Some(EventKind::F_BAD_ATS_TREQ))));
    assert_eq!(go(&unit, 0x90_0123), Err(aborted(EventKind::F_TRANSL_FORBIDDEN)));
    let found = events(&unit);
    assert_eq!((found[0].kind, found[0].address, found[0].read), (EventKind::F_BAD_ATS_TREQ, PAGE, false));
    assert_eq!((found[1].kind, found[1].address, found[1].read), (EventKind::F_TRANSL_FORBIDDEN, 0x90_0123, false));
    // Without ATSCHK nobody looks.
    unit.write32(offset::CR0, 0b1101);
    settle(&unit);
    assert_eq!(go(&unit, 0x90_0123), Ok(0x90_0123));
    assert_eq!(go(&unit, 1 << 48), Err(Blocked { outcome: Outcome::Abort, reason: None }));
}

#[test]
fn streams_that_do_not_translate() {
    let unit = unit(Ste::bypass().with_eats(Eats::Full));
    assert_eq!(ask(&unit, PAGE, Access::Read), Err(unsupported(Some(EventKind::F_BAD_ATS_TREQ))));
    assert_eq!(go(&unit, PAGE), Err(aborted(EventKind::F_TRANSL_FORBIDDEN)));
    let unit = self::unit(Ste::abort().with_eats(Eats::Full));
    assert_eq!(ask(&unit, PAGE, Access::Read), Err(unsupported(None)));
    assert_eq!(go(&unit, PAGE), Err(Blocked { outcome: Outcome::Abort, reason: None }));
    assert!(events(&unit).is_empty());
}

#[test]
fn errors_of_configuration_are_not_recorded() {
    for (ste, reason) in [
        (Ste::default(), EventKind::C_BAD_STE),
        (
            Ste::stage1(PhysAddr::new(HOLE), crate::arch::smmuv3::layout::stream_table::CdTableFormat::Linear, 0)
                .with_eats(Eats::Full),
            EventKind::F_CD_FETCH,
        ),
    ] {
        let unit = unit(ste);
        assert_eq!(ask(&unit, PAGE, Access::Read), Err(aborted(reason)));
        assert!(events(&unit).is_empty());
    }
    let unit = unit(Ste::default());
    assert_eq!(go(&unit, PAGE), Err(aborted(EventKind::C_BAD_STE)));
    assert!(events(&unit).is_empty());
}

#[test]
fn while_the_unit_is_off() {
    let unit = unit(stage1().with_eats(Eats::Full));
    unit.write32(offset::CR0, 0b1_1100);
    settle(&unit);
    assert_eq!(ask(&unit, PAGE, Access::Read), Err(unsupported(Some(EventKind::F_BAD_ATS_TREQ))));
    assert_eq!(go(&unit, PAGE), Err(aborted(EventKind::F_TRANSL_FORBIDDEN)));
}

#[test]
fn split_stages() {
    let ste = stage1().nested_under(stage2()).with_eats(Eats::Split);
    assert_eq!(ste.config(), Config::Nested);
    let unit = unit(ste);
    let answer = ask(&unit, PAGE + 0x10, Access::Write).unwrap();
    assert_eq!((answer.phys, answer.prot), (PhysAddr::new(0x90_0010), Prot::RW), "an intermediate address");
    assert_eq!(go(&unit, 0x90_0010), Ok(0xa0_0010));
    assert_eq!(go(&unit, 0x91_0000), Err(aborted(EventKind::F_TRANSLATION)));
    let event = events(&unit)[0];
    assert_eq!((event.stage2, event.second_address), (true, 0x91_0000));
    // It needs ATSCHK.
    unit.write32(offset::CR0, 0b1101);
    settle(&unit);
    assert_eq!(ask(&unit, PAGE, Access::Read), Err(unsupported(Some(EventKind::F_BAD_ATS_TREQ))));
    // A stall is none of a translation request's.
    put_cd(&unit, 0, cd());
    put_ste(&unit, STREAM, ste);
}
