//! What is wrong with a unit, or will be.

use iommu::arch::smmuv3::layout::registers::{Cr0, Gerror, offset};

use crate::host::Refusal;
use crate::input::Input;
use crate::memory::memory;
use crate::unit::Unit;

#[derive(Clone, Default, Debug)]
pub struct Trouble {
    /// Commands until it stops fetching.
    pub stall_after: Option<u32>,
    /// Commands until it refuses one, and how.
    pub refuse_after: Option<(u32, Refusal)>,
    /// Devices, by the low bits of their StreamIDs, that do not answer.
    pub deaf_devices: u16,
    /// Bits of CR0 that it does not take over.
    pub deaf: u32,
    /// It works only while somebody waits, by so many steps a turn; 0 for at once.
    pub lazy: u8,
    /// Register accesses until it is gone.
    pub gone_after: Option<u32>,
    /// GBPA and IRQ_CTRL are not taken over either.
    pub deaf_besides: bool,
    /// Global errors that show on top of those there are.
    pub errors: u32,
    /// What registers read instead: offset, value, and how often still.
    pub lies: Vec<(usize, u32, u16)>,
    /// All registers read at random: seed, and how often still.
    pub noise: Option<(u64, u16)>,
}

/// One more thing that is wrong with a unit. Tells whether it is a lie, rather than a failure that a
/// unit may have.
pub fn choose(trouble: &mut Trouble, unit: Option<&Unit>, input: &mut Input<'_>) -> bool {
    let kind = input.below(17);
    crate::kernel::trace(format_args!("trouble {kind}"));
    match kind {
        0 => trouble.stall_after = Some(u32::from(input.u8())),
        1 => trouble.refuse_after = Some((u32::from(input.u8()), Refusal::Illegal)),
        2 => trouble.refuse_after = Some((u32::from(input.u8()), Refusal::Abort)),
        3 => trouble.deaf_devices = input.u16(),
        4 => (trouble.deaf, trouble.deaf_besides) = (u32::from(input.u8()) & Cr0::all().bits(), input.u8() & 1 != 0),
        5 | 6 => trouble.lazy = input.u8(),
        7 => trouble.gone_after = Some(u32::from(input.u16())),
        8 => *trouble = Trouble::default(),
        9 => {
            // Events that it never wrote, which are no more than noise in the log.
            let (events, entries) = unit.map_or((0, 1), Unit::events);
            let (at, count) = (u64::from(input.u16()) % entries, 1 + u64::from(input.u8() & 7));
            for word in (0..count * 4).map(|word| (at * 4 + word) % (entries * 4)) {
                let value = input.u64();
                let _ = memory().update(events + word * 8, |_| Some(value));
            }
            let end = unit.map_or(0, Unit::event_prod) ^ u32::from(input.u8());
            trouble.lies.push((offset::EVENTQ_PROD, end, u16::from(input.u8())));
        }
        10 => trouble.errors = input.u32() & (Gerror::all() - Gerror::CMDQ_ERR).bits(),
        // From here on it lies.
        11 => {
            let registers = [
                offset::CMDQ_CONS,
                offset::CMDQ_PROD,
                offset::GERROR,
                offset::GERRORN,
                offset::CR0ACK,
                offset::GBPA,
                offset::IRQ_CTRLACK,
                offset::EVENTQ_PROD,
                offset::EVENTQ_CONS,
            ];
            let at = input.pick(&registers).map_or(0, |at| *at);
            trouble.lies.push((at, input.u32(), input.u16()));
            return true;
        }
        12 => {
            trouble.lies.push((usize::from(input.u16() & 0xffc), input.u32(), input.u16()));
            return true;
        }
        13 => {
            trouble.noise = Some((input.u64(), input.u16() | 1));
            return true;
        }
        14 => {
            // An error, and where the queue stands then: not far from where it does.
            let cons = unit.map_or(0, Unit::command_cons) ^ u32::from(input.u8());
            let error = u32::from(input.u8() & 7);
            trouble.lies.push((offset::CMDQ_CONS, cons & 0xf_ffff | error << 24, u16::from(input.u8())));
            trouble.errors = Gerror::CMDQ_ERR.bits();
            return true;
        }
        15 => trouble.errors = input.u32(),
        _ => {
            let queue = unit.map_or(0, Unit::queue);
            let (word, value) = (u64::from(input.u16()) % 512, input.u64());
            let _ = memory().update(queue + word * 8, |_| Some(value));
            return true;
        }
    }
    kind == 15
}
