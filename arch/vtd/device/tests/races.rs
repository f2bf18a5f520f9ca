//! An invalidation that completes while a request is translated: what the request read before is not cached.

extern crate std;
use std::sync::Arc;

use super::scalable::{PASIDE, configured};
use super::{DEVICE, Unit, WAIT, read, tables, top, unit};
use crate::arch::vtd::device::{DeviceConfig, Request};
use crate::arch::vtd::layout::Cap;

/// While the word at `address` is being read, software changes it to `new` and invalidates.
fn change_while_read(unit: &Arc<Unit>, address: u64, new: u64, descriptor: [u64; 2]) {
    let weak = Arc::downgrade(unit);
    unit.host().trap(address, move || {
        let unit = weak.upgrade().unwrap();
        unit.host().poke(address, new);
        unit.process(&[descriptor, WAIT]);
    });
}

fn legacy() -> Arc<Unit> {
    let unit = Arc::new(unit(DeviceConfig::default()));
    unit.start_legacy();
    unit.start_queue();
    unit.map(0, 3, 0x5000, 0, 0x7000 | 3);
    unit
}

#[test]
fn translations() {
    let unit = legacy();
    change_while_read(&unit, tables(0) + 5 * 8, 0x8000 | 3, [0x7_0032, 0x5000 | 1 << 6]);
    assert_eq!(unit.goes(read(0x5000)), Ok(0x7000), "it was on its way: drained");
    assert_eq!(unit.goes(read(0x5000)), Ok(0x8000));
}

#[test]
fn tables_of_pages() {
    let unit = legacy();
    unit.map(1, 3, 0x6000, 0, 0x9000 | 3);
    change_while_read(&unit, tables(0) + 0x1000, tables(1) | 3, [0x7_0032, 0x5000]);
    let _ = unit.goes(read(0x5000));
    assert_eq!(unit.goes(read(0x6000)), Ok(0x9000));
}

#[test]
fn context_entries() {
    let unit = legacy();
    unit.map(1, 3, 0x6000, 0, 0x9000 | 3);
    change_while_read(&unit, 0x2000 + u64::from(DEVICE) * 16, top(1) | 1, [0x11, 0]);
    let _ = unit.goes(read(0x5000));
    assert_eq!(unit.goes(read(0x6000)), Ok(0x9000));
}

#[test]
fn pasid_entries() {
    let unit = Arc::new(unit(configured(Cap::empty())));
    unit.start_scalable(PASIDE);
    unit.map(2, 0x67, 0x6000, 0, 0x9000 | 0x67);
    // The first stage's table, in the third quadword of the entry of PASID 1.
    change_while_read(&unit, 0x5000 + 64 + 16, top(2), [0x1_0009_0017, 0]);
    let request = Request { pasid: Some(1), ..read(0x6000) };
    let _ = unit.goes(request);
    assert_eq!(unit.goes(request), Ok(0x9000));
}
