//! What is wrong with a unit, or will be.

use std::sync::atomic::Ordering;

use iommu::arch::vtd::layout::registers::offset;

use crate::input::Input;
use crate::memory::memory;
use crate::unit::Unit;

#[derive(Clone, Default, Debug)]
pub struct Trouble {
    /// Descriptors until it stops fetching.
    pub stall_after: Option<u32>,
    /// Descriptors until it refuses one.
    pub refuse_after: Option<u32>,
    /// Devices, by the low bits of their requester ids, that do not answer.
    pub deaf_devices: u16,
    /// Devices that answer wrongly.
    pub broken_devices: u16,
    /// Commands it does not take.
    pub deaf: u32,
    /// It works only while somebody waits, by so many steps a turn; 0 for at once.
    pub lazy: u8,
    /// Register accesses until it is gone.
    pub gone_after: Option<u32>,
    /// What registers read instead: offset, value, and how often still.
    pub lies: Vec<(usize, u32, u16)>,
    /// All registers read at random: seed, and how often still.
    pub noise: Option<(u64, u16)>,
}

/// One more thing that is wrong with a unit. Tells whether it is a lie, rather than a failure that a
/// unit may have.
pub fn choose(trouble: &mut Trouble, unit: Option<&Unit>, input: &mut Input<'_>) -> bool {
    let kind = input.below(15);
    crate::kernel::trace(format_args!("trouble {kind}"));
    match kind {
        0 => trouble.stall_after = Some(u32::from(input.u8())),
        1 => trouble.refuse_after = Some(u32::from(input.u8())),
        2 => trouble.deaf_devices = input.u16(),
        3 => trouble.broken_devices = input.u16(),
        4 => trouble.deaf = input.u32(),
        5 | 6 => trouble.lazy = input.u8(),
        7 => trouble.gone_after = Some(u32::from(input.u16())),
        8 => *trouble = Trouble::default(),
        9 => {
            // A fault record that it never wrote, which is no more than noise in the log.
            let at = unit.map_or(0x220, Unit::fault_records) + usize::from(input.u8() & 3) * 16;
            for part in 0..4 {
                let full = if part == 3 { 1 << 31 } else { 0 };
                trouble.lies.push((at + part * 4, input.u32() | full, u16::from(input.u8())));
            }
        }
        // From here on it lies.
        10 => {
            let registers = [offset::IQH, offset::IQT, offset::FSTS, offset::GSTS, offset::PMEN, offset::IQERCD];
            let at = input.pick(&registers).map_or(0, |at| *at);
            trouble.lies.push((at, input.u32(), input.u16()));
            return true;
        }
        11 => {
            trouble.lies.push((usize::from(input.u16() & 0xffc), input.u32(), input.u16()));
            return true;
        }
        12 => {
            trouble.noise = Some((input.u64(), input.u16() | 1));
            return true;
        }
        13 => {
            let status = unit.map_or(0, |unit| unit.device.host().status.load(Ordering::Relaxed));
            let value = u64::from(input.u32());
            let _ = memory().update(status & !7, |word| Some(word & !0xffff_ffff | value));
            return true;
        }
        _ => {
            let queue = unit.map_or(0, |unit| unit.queue());
            let (word, value) = (u64::from(input.u16()) % 512, input.u64());
            let _ = memory().update(queue + word * 8, |_| Some(value));
            return true;
        }
    }
    false
}
