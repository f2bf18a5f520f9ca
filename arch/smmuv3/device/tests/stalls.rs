//! Requests that wait (SMMU 3.12.2, 4.7.1, 4.7.2).

use super::{
    PAGE, S1_PAGE, STAGE1, STREAM, Unit, cd, events, execute, leaf, put_cd, read, settle, stage1, translating,
};
use crate::arch::smmuv3::device::{Access, Blocked, DeviceConfig, InOrder, Outcome, Request};
use crate::arch::smmuv3::layout::StreamId;
use crate::arch::smmuv3::layout::commands::{Command, Resume};
use crate::arch::smmuv3::layout::events::EventKind;
use crate::arch::smmuv3::layout::registers::offset;
use crate::platform::Registers;

const MISSING: u64 = PAGE + 0x1000;

fn unit(config: DeviceConfig) -> Unit {
    let unit = translating(stage1(), config, InOrder);
    put_cd(&unit, 0, cd().stalling());
    unit
}

fn stalled(tag: u16) -> Blocked {
    Blocked { outcome: Outcome::Stalled(tag), reason: Some(EventKind::F_TRANSLATION) }
}

fn resumed(unit: &Unit) -> std::vec::Vec<(u16, Resume)> {
    core::mem::take(&mut unit.host().resumed.lock().unwrap())
}

extern crate std;

#[test]
fn a_request_waits_until_it_is_resumed() {
    let unit = unit(DeviceConfig::default());
    assert_eq!(read(&unit, MISSING), Err(stalled(0)));
    assert_eq!(read(&unit, MISSING), Err(stalled(1)));
    let event = events(&unit)[1];
    assert_eq!((event.kind, event.stall), (EventKind::F_TRANSLATION, Some(1)));
    unit.host().put(leaf(STAGE1, MISSING), 0x91_0000 | S1_PAGE);
    // The StreamID must fit.
    execute(&unit, Command::Resume { stream: StreamId(4), tag: 1, action: Resume::Retry });
    execute(&unit, Command::Resume { stream: STREAM, tag: 2, action: Resume::Retry });
    assert!(resumed(&unit).is_empty());
    execute(&unit, Command::Resume { stream: STREAM, tag: 1, action: Resume::Retry });
    assert_eq!(resumed(&unit), [(1, Resume::Retry)]);
    assert_eq!(read(&unit, MISSING), Ok(0x91_0000));
    execute(&unit, Command::Resume { stream: STREAM, tag: 1, action: Resume::Retry });
    assert!(resumed(&unit).is_empty(), "once");
    execute(&unit, Command::Resume { stream: STREAM, tag: 0, action: Resume::Terminate });
    assert_eq!(resumed(&unit), [(0, Resume::Terminate)]);
}

#[test]
fn without_raz_requests_are_aborted() {
    let mut config = DeviceConfig::default();
    config.identification.idr0 |= 1 << 26;
    let unit = unit(config);
    assert_eq!(read(&unit, MISSING), Err(stalled(0)));
    execute(&unit, Command::Resume { stream: STREAM, tag: 0, action: Resume::Terminate });
    assert_eq!(resumed(&unit), [(0, Resume::Abort)]);
}

#[test]
fn all_of_a_stream_are_terminated() {
    let unit = unit(DeviceConfig::default());
    super::put_ste(&unit, StreamId(4), stage1());
    assert_eq!(read(&unit, MISSING), Err(stalled(0)));
    assert_eq!(unit.translate(&Request::new(StreamId(4), MISSING, Access::Read)), Err(stalled(1)));
    assert_eq!(read(&unit, MISSING), Err(stalled(2)));
    execute(&unit, Command::StallTerminate { stream: STREAM });
    assert_eq!(resumed(&unit), [(0, Resume::Abort), (2, Resume::Abort)]);
    unit.write32(offset::CR0, 0b1100);
    settle(&unit);
    assert_eq!(resumed(&unit), [(1, Resume::Abort)]);
}

#[test]
fn only_so_many_wait() {
    let mut config = DeviceConfig::default();
    config.identification.idr5 = config.identification.idr5 & 0xffff | 2 << 16;
    let unit = unit(config);
    assert_eq!(read(&unit, MISSING), Err(stalled(0)));
    assert_eq!(read(&unit, MISSING), Err(stalled(1)));
    assert_eq!(read(&unit, MISSING).unwrap_err().outcome, Outcome::Busy);
    execute(&unit, Command::Resume { stream: STREAM, tag: 0, action: Resume::Abort });
    assert_eq!(read(&unit, MISSING), Err(stalled(0)));
}

#[test]
fn what_cannot_be_told_is_tried_again() {
    let unit = unit(DeviceConfig::default());
    for tag in 0..9 {
        assert_eq!(read(&unit, MISSING), Err(stalled(tag)));
    }
    settle(&unit);
    assert_eq!(unit.read32(offset::EVENTQ_PROD), 8, "a stall is no overflow");
    // Software knows nothing of it.
    execute(&unit, Command::Resume { stream: STREAM, tag: 8, action: Resume::Retry });
    assert!(resumed(&unit).is_empty());
    assert_eq!(events(&unit).len(), 8);
    settle(&unit);
    assert_eq!(resumed(&unit), [(8, Resume::Retry)]);
    assert_eq!(read(&unit, MISSING), Err(stalled(8)));
    assert_eq!(events(&unit)[0].stall, Some(8));
}
