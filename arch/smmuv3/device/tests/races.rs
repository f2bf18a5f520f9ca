//! An invalidation that completes while a request is translated: what the request read before is not cached.

extern crate std;
use std::sync::Arc;

use super::{
    CDS, EVENTS, PAGE, S1_PAGE, STAGE1, STREAM, STREAMS, Unit, cd, execute, leaf, put_all, read, settle, stage1,
    submit, sync, translating,
};
use crate::arch::smmuv3::device::{DeviceConfig, InOrder};
use crate::arch::smmuv3::layout::Asid;
use crate::arch::smmuv3::layout::commands::{Command, Leaf, TlbRange};
use crate::arch::smmuv3::layout::registers::offset;
use crate::arch::smmuv3::layout::{Ste, Vmid};
use crate::platform::Registers;

/// While the word at `address` is being read, software changes words and invalidates.
fn change_while_read(unit: &Arc<Unit>, address: u64, at: u64, words: &'static [u64], command: Command) {
    let weak = Arc::downgrade(unit);
    unit.host().trap(address, move || {
        let unit = weak.upgrade().unwrap();
        put_all(&unit, at, words);
        execute(&unit, command);
    });
}

fn unit() -> Arc<Unit> {
    Arc::new(translating(stage1(), DeviceConfig::default(), InOrder))
}

#[test]
fn translations() {
    let unit = unit();
    let range = TlbRange::page(PAGE);
    let command = Command::TlbNhVa { vmid: Vmid(5), asid: Asid(7), range, leaf: Leaf::Only };
    let at = leaf(STAGE1, PAGE);
    change_while_read(&unit, at, at, &[0x91_0000 | S1_PAGE], command);
    assert_eq!(read(&unit, PAGE), Ok(0x90_0000), "it was on its way: drained");
    assert_eq!(read(&unit, PAGE), Ok(0x91_0000));
}

#[test]
fn tables_of_pages() {
    let unit = unit();
    unit.host().put(0x33_0000 + (PAGE >> 12 & 511) * 8, 0x92_0000 | S1_PAGE);
    let at = STAGE1 + 0x1000 + 4 * 8;
    change_while_read(&unit, at, at, &[0x33_0003], Command::TlbNhAll { vmid: Vmid(5) });
    assert_eq!(read(&unit, PAGE), Ok(0x90_0000));
    assert_eq!(read(&unit, PAGE), Ok(0x92_0000));
}

#[test]
fn stream_table_entries() {
    let unit = unit();
    let at = STREAMS + 3 * 64;
    static BYPASS: [u64; 8] = Ste::bypass().words;
    let command = Command::ConfigSte { stream: STREAM, leaf: Leaf::Only };
    change_while_read(&unit, at + 56, at, &BYPASS, command);
    let _ = read(&unit, PAGE);
    assert_eq!(read(&unit, PAGE), Ok(PAGE));
}

#[test]
fn context_descriptors() {
    let unit = unit();
    let command = Command::ConfigCd { stream: STREAM, substream: 0, leaf: Leaf::Only };
    change_while_read(&unit, CDS + 56, CDS, &[0], command);
    let _ = read(&unit, PAGE);
    assert!(read(&unit, PAGE).is_err());
    put_all(&unit, CDS, &cd().words);
}

#[test]
fn a_record_is_published_when_it_is_written() {
    let unit = unit();
    let weak = Arc::downgrade(&unit);
    unit.host().trap(EVENTS + 24, move || {
        let unit = weak.upgrade().unwrap();
        assert_eq!(unit.read32(offset::EVENTQ_PROD), 0);
        // Another one, which is written before: it waits for this one.
        assert!(read(&unit, PAGE + 0x2000).is_err());
        assert_eq!(unit.read32(offset::EVENTQ_PROD), 0);
        // And so does a CMD_SYNC.
        submit(&unit, sync());
        unit.run();
        assert_eq!(unit.read32(offset::CMDQ_CONS), 0);
    });
    assert!(read(&unit, PAGE + 0x1000).is_err());
    assert_eq!(unit.read32(offset::EVENTQ_PROD), 2);
    settle(&unit);
    assert_eq!(unit.read32(offset::CMDQ_CONS), 1);
}
