//! Translation requests and translated requests (VT-d 4.2, Table 30).

use super::scalable::{DTE, PASIDE, configured};
use super::{DEVICE, ROOT, Unit, read, top, unit, with, write};
use crate::arch::vtd::device::{DeviceConfig, Request};
use crate::arch::vtd::layout::registers::{Global, offset};
use crate::arch::vtd::layout::{Cap, Ecap};
use crate::bus::AddressType;
use crate::platform::Registers;
use crate::prot::Prot;

fn asks(request: Request) -> Request {
    Request { address_type: AddressType::TranslationRequest, ..request }
}

fn translated(request: Request) -> Request {
    Request { address_type: AddressType::Translated, ..request }
}

/// Legacy mode with TT 1.
fn started(ecap: Ecap) -> Unit {
    let unit = unit(DeviceConfig { host_address_bits: 46, ..with(Cap::empty(), Ecap::DT | ecap) });
    unit.legacy_context(DEVICE, top(0) | 1 << 2 | 1, 0x702);
    unit.set_root(ROOT);
    unit.set(Global::TE);
    unit
}

/// Address, permissions and size of an answer.
fn told(unit: &Unit, request: Request) -> Result<(u64, Prot, u8), u8> {
    let answer = unit.translate(&asks(request)).map_err(|blocked| blocked.reason.0)?;
    Ok((answer.phys.as_u64(), answer.prot, answer.page_bits))
}

#[test]
fn answers_tell_what_is_permitted() {
    let unit = started(Ecap::NWFS);
    unit.map(0, 3, 0x5000, 0, 0x7000 | 3);
    unit.map(0, 3, 0x6000, 0, 0x8000 | 1);
    unit.map(0, 3, 0x20_0000, 1, 0x40_0000 | 0x83);
    for _ in 0..2 {
        assert_eq!(told(&unit, write(0x5000)), Ok((0x7000, Prot::RW, 12)));
        assert_eq!(told(&unit, read(0x5000)), Ok((0x7000, Prot::READ, 12)), "no-write flag");
        assert_eq!(told(&unit, write(0x6000)), Ok((0x8000, Prot::READ, 12)));
        assert_eq!(told(&unit, write(0x21_0000)), Ok((0x41_0000, Prot::RW, 21)));
        assert_eq!(told(&unit, write(0x9000)).map(|answer| answer.1), Ok(Prot::empty()));
        assert_eq!(told(&unit, write(1 << 50)).map(|answer| answer.1), Ok(Prot::empty()), "LGN.1.1");
    }
    assert_eq!(unit.read32(offset::FSTS), 0, "none of that is a fault");
    let without_flag = started(Ecap::empty());
    without_flag.map(0, 3, 0x5000, 0, 0x7000 | 3);
    assert_eq!(told(&without_flag, read(0x5000)), Ok((0x7000, Prot::RW, 12)), "the flag is ignored");
}

#[test]
fn answers_come_from_the_iotlb() {
    let unit = started(Ecap::empty());
    unit.map(0, 3, 0x5000, 0, 0x7000 | 3);
    unit.goes(read(0x5000)).unwrap();
    unit.map(0, 3, 0x5000, 0, 0);
    assert_eq!(told(&unit, write(0x5000)), Ok((0x7000, Prot::RW, 12)));
}

#[test]
fn the_interrupt_range_is_special() {
    let unit = started(Ecap::NWFS);
    assert_eq!(told(&unit, write(0xfee0_0000)).map(|answer| answer.1), Ok(Prot::WRITE), "S.1");
    assert_eq!(told(&unit, read(0xfee0_0000)).map(|answer| answer.1), Ok(Prot::empty()), "S.2");
    unit.map(0, 3, 0xfee0_0000, 1, 0xfee0_0000 | 0x83);
    assert_eq!(told(&unit, write(0xfef0_0000)), Err(0xe), "a page of which a part is there");
    assert_eq!(unit.goes(write(0xfef0_0000)), Ok(0xfef0_0000));
    assert_eq!(unit.goes(translated(write(0xfee0_0000))), Err(0xe), "LGN.4");
}

#[test]
fn translated_requests_pass_where_the_entry_permits_them() {
    let unit = started(Ecap::empty());
    assert_eq!(unit.goes(translated(write(0x3fff_ffff_f000))), Ok(0x3fff_ffff_f000));
    assert_eq!(unit.goes(translated(write(0x4000_0000_0000))), Err(4), "LGN.1.2");
    // TT 0, and its record: AT is 10b.
    unit.legacy_context(0x18, top(0) | 1, 0x702);
    unit.write64(0x228, 1 << 63);
    let other = Request { source: 0x18, ..write(0x5000) };
    assert_eq!(unit.goes(translated(other)), Err(0xd), "LCT.5");
    assert_eq!((unit.read64(0x220), unit.read64(0x228)), (0x5000, 0xa000_000d_0000_0018));
    unit.write64(0x228, 1 << 63);
    assert_eq!(unit.goes(asks(other)), Err(0xd));
    assert_eq!(unit.read64(0x228), 0xd000_000d_0000_0018);
    unit.unset(Global::TE);
    assert_eq!((unit.goes(translated(write(0x5000))), unit.goes(asks(write(0x5000)))), (Err(0), Err(0)), "4.2.1");
}

#[test]
fn scalable_mode() {
    let unit = unit(configured(Cap::empty()));
    unit.start_scalable(PASIDE | DTE);
    unit.map(0, 3, 0x5000, 0, 0x7000 | 3);
    let of = |pasid, request| Request { pasid: Some(pasid), ..request };
    assert_eq!(told(&unit, write(0x5000)), Ok((0x7000, Prot::RW, 12)));
    for request in [write(0x6000), of(1, write(0x5000)), of(2, write(0x5000)), of(64, write(0x5000))] {
        assert_eq!(told(&unit, request).map(|answer| answer.1), Ok(Prot::empty()), "{request:?}");
    }
    assert_eq!(unit.read32(offset::FSTS), 0);
    assert_eq!(unit.goes(translated(write(0x5000))), Ok(0x5000));
    assert_eq!(unit.goes(of(1, translated(write(0x5000)))), Err(0x49), "SCT.10");
    unit.scalable_context(0x4000 | PASIDE | 1, 0);
    unit.process(&[[0x11, 0]]);
    assert_eq!(unit.goes(translated(write(0x5000))), Err(0x44), "SCT.5");
    assert_eq!(told(&unit, write(0x5000)), Err(0x44));
}

#[test]
fn translated_requests_with_pasid() {
    const EPTR: u64 = 1 << 6;
    let config = configured(Cap::empty());
    let unit = unit(DeviceConfig { ecap: config.ecap | Ecap::PTRS, ..config });
    unit.start_scalable(PASIDE | DTE | EPTR);
    let of = |pasid, request| Request { pasid: Some(pasid), ..request };
    // No PASID table is asked (4.2.5), but the directory has 128 entries of 64 PASIDs each.
    assert_eq!(unit.goes(of(8191, translated(write(0x5000)))), Ok(0x5000));
    assert_eq!(unit.goes(of(8192, translated(write(0x5000)))), Err(0x46), "SCT.7");
    assert_eq!(unit.goes(of(0, translated(write(0x5000)))), Err(0x48), "SCT.9");
}
