//! The command queue: which commands are valid, and which of them wait to be executed (SMMU 4).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use heapless::Vec;

use super::registers::Misuse;
use crate::arch::smmuv3::layout::commands::{COMMAND_WORDS, Command, Completion, TlbRange};
use crate::arch::smmuv3::layout::identification::{Idr0, Idr3, StallModel};
use crate::arch::smmuv3::layout::{Granule, Identification, StreamId};

/// Commands that a unit holds at once, consumed and not yet executed.
pub(super) const PENDING: usize = 16;

/// A command that cannot be executed (4.1.3, CERROR_ILL).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Illegal;

/// SSec.
const SECURE: u64 = 1 << 10;

/// What quadwords ask for. Where the specification lets a unit look at reserved fields, this one does.
pub(super) fn judge(id: &Identification, words: [u64; COMMAND_WORDS]) -> Result<Command, Illegal> {
    let command = Command::decode(words).ok_or(Illegal)?;
    let (idr0, [low, high]) = (id.idr0(), words);
    let (stage1, stage2) = (idr0.contains(Idr0::S1P), idr0.contains(Idr0::S2P));
    let valid = match command {
        Command::ConfigCd { .. } | Command::ConfigCdAll { .. } => stage1,
        Command::TlbNhAll { .. } | Command::TlbNhAsid { .. } => stage1,
        Command::TlbNhVa { range, .. } | Command::TlbNhVaa { range, .. } => stage1 && is_range(id, range),
        Command::TlbEl2All | Command::TlbEl2Asid { .. } => stage1 && idr0.contains(Idr0::HYP),
        Command::TlbEl2Va { range, .. } | Command::TlbEl2Vaa { range, .. } => {
            stage1 && idr0.contains(Idr0::HYP) && is_range(id, range)
        }
        Command::TlbS2Ipa { range, .. } => stage2 && is_range(id, range),
        Command::TlbS12Vmall { .. } => stage2,
        // Size, bits 5:0.
        Command::AtcInvalidate { .. } => idr0.contains(Idr0::ATS) && high & 0x3f <= 52,
        Command::PriResponse { .. } => idr0.contains(Idr0::PRI),
        Command::Resume { .. } | Command::StallTerminate { .. } => id.stall_model() != StallModel::TerminateOnly,
        _ => true,
    };
    let secure = match command {
        Command::PrefetchConfig { .. }
        | Command::PrefetchAddress { .. }
        | Command::ConfigSte { .. }
        | Command::ConfigSteRange { .. }
        | Command::ConfigCd { .. }
        | Command::ConfigCdAll { .. }
        | Command::ConfigAll
        | Command::Resume { .. }
        | Command::StallTerminate { .. } => low & SECURE != 0,
        _ => false,
    };
    // These have fields that are ignored, or hints.
    let ignores = matches!(
        command,
        Command::PrefetchConfig { .. }
            | Command::PrefetchAddress { .. }
            | Command::ConfigAll
            | Command::AtcInvalidate { .. }
            | Command::PriResponse { .. }
            | Command::Resume { .. }
            | Command::Sync { completion: Completion::None | Completion::Event }
    );
    let reserved = !ignores && command.encode() != words;
    if valid && !secure && !reserved { Ok(with_effective_ttl(id, command)) } else { Err(Illegal) }
}

/// Whether the fields of a range fit together (4.4.1.1).
fn is_range(id: &Identification, range: TlbRange) -> bool {
    match range.granule {
        None => range.ttl == 0 && range.num == 0 && range.scale == 0,
        Some(_) => {
            id.idr3().contains(Idr3::RIL) && (range.num != 0 || range.scale != 0 || effective_ttl(id, range) != 0)
        }
    }
}

/// TTL; that of a level that has no leaves is treated as 0.
fn effective_ttl(id: &Identification, range: TlbRange) -> u8 {
    match (range.granule, range.ttl) {
        (Some(Granule::Size16K), 1) if !id.has_wide_small_granules() => 0,
        (_, ttl) => ttl,
    }
}

fn with_effective_ttl(id: &Identification, command: Command) -> Command {
    let cut = |range| TlbRange { ttl: effective_ttl(id, range), ..range };
    match command {
        Command::TlbNhVa { vmid, asid, range, leaf } => Command::TlbNhVa { vmid, asid, range: cut(range), leaf },
        Command::TlbNhVaa { vmid, range, leaf } => Command::TlbNhVaa { vmid, range: cut(range), leaf },
        Command::TlbEl2Va { asid, range, leaf } => Command::TlbEl2Va { asid, range: cut(range), leaf },
        Command::TlbEl2Vaa { range, leaf } => Command::TlbEl2Vaa { range: cut(range), leaf },
        Command::TlbS2Ipa { vmid, range, leaf } => Command::TlbS2Ipa { vmid, range: cut(range), leaf },
        _ => command,
    }
}

/// What of a valid command is out of range, so that it need not act (4.1.7, 4.4), or unpredictable.
pub(super) fn misuse(id: &Identification, command: Command) -> Misuse {
    let stream = |stream: StreamId| stream.0.checked_shr(u32::from(id.stream_id_bits())).unwrap_or(0) == 0;
    let substream = |substream: u32| substream.checked_shr(u32::from(id.substream_id_bits())).unwrap_or(0) == 0;
    let asid = |asid: u16| id.idr0().contains(Idr0::ASID16) || asid <= 0xff;
    let vmid = |vmid: u16| match id.idr0().contains(Idr0::S2P) {
        true => id.idr0().contains(Idr0::VMID16) || vmid <= 0xff,
        false => vmid == 0,
    };
    let in_range = match command {
        Command::PrefetchConfig { stream: of, substream: sub }
        | Command::PrefetchAddress { stream: of, substream: sub, .. }
        | Command::AtcInvalidate { stream: of, substream: sub, .. }
        | Command::PriResponse { stream: of, substream: sub, .. } => stream(of) && sub.is_none_or(substream),
        Command::ConfigSte { stream: of, .. }
        | Command::ConfigSteRange { stream: of, .. }
        | Command::ConfigCdAll { stream: of }
        | Command::Resume { stream: of, .. }
        | Command::StallTerminate { stream: of } => stream(of),
        Command::ConfigCd { stream: of, substream: sub, .. } => stream(of) && substream(sub),
        Command::TlbNhAll { vmid: of } | Command::TlbS12Vmall { vmid: of } => vmid(of.0),
        Command::TlbNhAsid { vmid: of, asid: number } => vmid(of.0) && asid(number.0),
        Command::TlbNhVa { vmid: of, asid: number, range, .. } => vmid(of.0) && asid(number.0) && is_aligned(range),
        Command::TlbEl2Va { asid: number, range, .. } => asid(number.0) && is_aligned(range),
        Command::TlbEl2Asid { asid: number } => asid(number.0),
        Command::TlbEl2Vaa { range, .. } => is_aligned(range),
        Command::TlbNhVaa { vmid: of, range, .. } | Command::TlbS2Ipa { vmid: of, range, .. } => {
            vmid(of.0) && is_aligned(range)
        }
        _ => true,
    };
    if in_range { Misuse::empty() } else { Misuse::PARAMETER }
}

/// Whether a range begins where one of its level and granule may (4.4.1.1); else what it invalidates is
/// unpredictable.
pub(super) fn is_aligned(range: TlbRange) -> bool {
    let Some(granule) = range.granule else { return true };
    let below = match range.ttl {
        0 => 0,
        ttl => 3_u8.saturating_sub(ttl),
    };
    // Each level has as many bits as entries of 8 bytes fit in a granule.
    let bits = u32::from(granule.log2())
        .wrapping_add(u32::from(below).wrapping_mul(u32::from(granule.log2().wrapping_sub(3))));
    range.address.trailing_zeros() >= bits
}

/// A CMD_SYNC that was fetched and waits.
pub(super) type Waiting = Option<Completion>;

/// Commands that were consumed and not yet executed, oldest first, and the CMD_SYNC behind them.
pub(super) struct Pending {
    commands: Vec<Command, PENDING>,
    pub(super) sync: Waiting,
    /// A device did not answer a CMD_ATC_INV, of which the next CMD_SYNC will tell (3.9.1.4).
    pub(super) timed_out: bool,
}

impl Pending {
    pub(super) const fn new() -> Self {
        Self { commands: Vec::new(), sync: None, timed_out: false }
    }

    /// As after a reset.
    pub(super) fn clear(&mut self) {
        self.commands.clear();
        self.sync = None;
        self.timed_out = false;
    }

    /// Whether another one may be fetched: not beyond a CMD_SYNC.
    pub(super) fn has_room(&self) -> bool {
        self.sync.is_none() && !self.commands.is_full()
    }

    /// Whether all of them are executed.
    pub(super) fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.commands.is_full()
    }

    pub(super) fn len(&self) -> usize {
        self.commands.len()
    }

    /// Takes a command that was consumed.
    pub(super) fn push(&mut self, command: Command) {
        // There was room when it was fetched, and only one at a time is.
        let _ = self.commands.push(command);
    }

    /// The command at `index`.
    pub(super) fn get(&self, index: usize) -> Option<Command> {
        self.commands.get(index).copied()
    }

    /// The command at `index` is done.
    pub(super) fn finish(&mut self, index: usize) {
        if index < self.commands.len() {
            self.commands.remove(index);
        }
    }

    /// Whether the command at `index` may be executed now: nothing orders those between two CMD_SYNCs
    /// (4.7.3), but messages to one device leave in order.
    pub(super) fn is_legal(&self, index: usize) -> bool {
        let Some(posted) = self.commands.get(index).map(is_posted) else { return false };
        !posted || self.commands.get(..index).is_some_and(|before| !before.iter().any(is_posted))
    }
}

/// Whether the command is a message to a device.
fn is_posted(command: &Command) -> bool {
    matches!(command, Command::AtcInvalidate { .. } | Command::PriResponse { .. })
}
