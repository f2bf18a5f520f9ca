//! Faults: what a device was refused, and why, in words.

use core::fmt;
use core::time::Duration;

use crate::addr::{Iova, PhysAddr};
use crate::id::{Pasid, SourceId};
use crate::platform::{Instant, Platform};
use crate::sync::Lock;

/// Faults that are kept until somebody takes them; later ones are counted as lost.
pub const FAULT_LOG_RECORDS: usize = 64;

/// Sources whose rate is watched at once. When one more faults, the one that was quiet longest is
/// forgotten.
pub const FAULT_WATCHED_SOURCES: usize = 16;

/// Faults of one source that are kept in each [`FAULT_WINDOW`]; more are counted as muted.
pub const FAULTS_PER_WINDOW: u32 = 10;

/// The time over which faults of a source are counted.
pub const FAULT_WINDOW: Duration = Duration::from_secs(1);

/// What a device wanted to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Access {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Fetch an instruction.
    Execute,
    /// Raise an interrupt.
    Interrupt,
    /// The hardware does not tell.
    Unknown,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Execute => "fetch",
            Self::Interrupt => "interrupt",
            Self::Unknown => "access",
        })
    }
}

/// What kind of refusal it was, the same for every backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum FaultKind {
    /// The device has no domain: it is blocked.
    Blocked,
    /// Nothing is mapped there, or the mapping does not permit this access. (VT-d's second stage
    /// does not tell the two apart.)
    Translation,
    /// The address is beyond what the domain can translate.
    AddressSize,
    /// A table of ours could not be read, or is malformed: a bug of the driver, or broken memory.
    Configuration,
    /// The device sent a kind of request that it may not send.
    Request,
    /// An interrupt was refused.
    Interrupt,
    /// None of these.
    Other,
}

/// Which of the requests that a unit holds is meant. Opaque: a unit gives it, and takes it back once.
///
/// ```
/// use iommu::StallTag;
/// assert_ne!(StallTag(1), StallTag(2));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StallTag(pub u64);

/// What becomes of a request that waits.
///
/// ```
/// use iommu::{FaultKind, FaultRecord, Iommu, StallAnswer, platform::Platform};
/// # fn page_in(_: &FaultRecord) -> iommu::Result<()> { Ok(()) }
/// fn answer<P: Platform>(iommu: &Iommu<P>, fault: &FaultRecord) -> iommu::Result<()> {
///     match (fault.stalled, page_in(fault)) {
///         (None, _) => Ok(()), // It was terminated already.
///         (Some(_), Ok(())) => iommu.answer_stall(fault, StallAnswer::Retry),
///         (Some(_), Err(_)) => iommu.answer_stall(fault, StallAnswer::Terminate),
///     }
/// }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StallAnswer {
    /// It is translated anew, and may fault again.
    Retry,
    /// It ends as if it had not waited: the device gets an error.
    Terminate,
}

/// One refused access.
///
/// ```
/// use iommu::{Access, FaultKind, FaultRecord, Iova, PhysAddr, SourceId};
/// let fault = FaultRecord {
///     unit: PhysAddr::new(0xfed9_0000),
///     source: SourceId::pci(0, 0x20),
///     pasid: None,
///     iova: Some(Iova::new(0x2_0000)),
///     access: Access::Write,
///     kind: FaultKind::Translation,
///     reason: 5,
///     text: "write not permitted",
///     stalled: None,
/// };
/// assert_eq!(
///     fault.to_string(),
///     "0000:00:04.0: write at 0x20000 refused: write not permitted (reason 0x5, unit 0xfed90000)"
/// );
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultRecord {
    /// Registers of the unit that refused.
    pub unit: PhysAddr,
    /// Who was refused; an alias may stand for several devices.
    pub source: SourceId,
    /// The PASID of the request, if it had one.
    pub pasid: Option<Pasid>,
    /// The address, as exact as the hardware tells (often the page only).
    pub iova: Option<Iova>,
    /// What was wanted.
    pub access: Access,
    /// What kind of refusal.
    pub kind: FaultKind,
    /// The hardware's number for the reason.
    pub reason: u32,
    /// The reason in words.
    pub text: &'static str,
    /// Set if the request waits until [`Iommu::answer_stall`](crate::Iommu::answer_stall).
    pub stalled: Option<StallTag>,
}

impl fmt::Display for FaultRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.source, self.access)?;
        if let Some(iova) = self.iova {
            write!(f, " at {iova}")?;
        }
        if let Some(pasid) = self.pasid {
            write!(f, " for PASID {:#x}", pasid.as_u32())?;
        }
        let what = if self.stalled.is_some() { "waits" } else { "refused" };
        write!(f, " {what}: {} (reason {:#x}, unit {})", self.text, self.reason, self.unit)
    }
}

/// How many faults nobody will read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LostFaults {
    /// The log was full.
    pub full: u64,
    /// Their source faulted too often.
    pub muted: u64,
    /// How often a unit had no room to record a fault; each time an unknown number was lost.
    pub overflows: u64,
}

/// Whether a unit still holds faults after it was asked for them.
///
/// ```
/// use iommu::FaultsLeft;
/// assert_eq!(FaultsLeft::None.max(FaultsLeft::Some), FaultsLeft::Some);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum FaultsLeft {
    /// It holds none: the next one raises its interrupt.
    #[default]
    None,
    /// They come faster than they are taken. No interrupt announces them: ask again soon, for
    /// instance from a timer, and meanwhile the device is as good as muted.
    Some,
}

/// What a unit says after it was asked for its faults.
///
/// ```
/// use iommu::{DrainedFaults, FaultsLeft};
/// assert_eq!(DrainedFaults::default(), DrainedFaults { left: FaultsLeft::None, overflows: 0 });
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DrainedFaults {
    /// Whether there are more.
    pub left: FaultsLeft,
    /// How often it had no room to record one.
    pub overflows: u64,
}

/// A bounded log of faults. Full, it counts what it loses; a source that storms is muted for the
/// rest of its [`FAULT_WINDOW`], so that it cannot crowd out the others.
#[derive(Debug, Default)]
pub struct FaultLog {
    /// Guards all of it. Taken in interrupt context; innermost.
    state: Lock<State>,
}

#[derive(Debug, Default)]
struct State {
    records: heapless::Deque<FaultRecord, FAULT_LOG_RECORDS>,
    watched: heapless::Vec<Watched, FAULT_WATCHED_SOURCES>,
    lost: LostFaults,
}

#[derive(Clone, Copy, Debug)]
struct Watched {
    source: SourceId,
    /// When its window began.
    since: Instant,
    /// Its latest fault.
    latest: Instant,
    count: u32,
}

impl FaultLog {
    /// Adds a fault, unless its source is muted or the log is full; tells whether it was added. Any
    /// context.
    pub fn push<P: Platform>(&self, platform: &P, record: FaultRecord) -> bool {
        let now = platform.now();
        let mut state = self.state.lock(platform);
        if state.count(record.source, now) > FAULTS_PER_WINDOW {
            state.lost.muted = state.lost.muted.saturating_add(1);
            false
        } else if state.records.push_back(record).is_err() {
            state.lost.full = state.lost.full.saturating_add(1);
            false
        } else {
            true
        }
    }

    /// Counts faults that a unit could not even record. Any context.
    pub fn add_overflows<P: Platform>(&self, platform: &P, overflows: u64) {
        if overflows > 0 {
            let mut state = self.state.lock(platform);
            state.lost.overflows = state.lost.overflows.saturating_add(overflows);
        }
    }

    /// Takes the oldest fault. Any context.
    pub fn pop<P: Platform>(&self, platform: &P) -> Option<FaultRecord> {
        self.state.lock(platform).records.pop_front()
    }

    /// How many were lost so far. Any context.
    pub fn lost<P: Platform>(&self, platform: &P) -> LostFaults {
        self.state.lock(platform).lost
    }
}

impl State {
    /// Counts a fault of `source` and tells how many there were in the current window.
    fn count(&mut self, source: SourceId, now: Instant) -> u32 {
        if let Some(watched) = self.watched.iter_mut().find(|watched| watched.source == source) {
            if now.since(watched.since) >= FAULT_WINDOW {
                *watched = Watched::new(source, now);
            }
            watched.latest = now;
            watched.count = watched.count.saturating_add(1);
            return watched.count;
        }
        if self.watched.is_full() {
            let quietest = self.watched.iter().enumerate().min_by_key(|(_, watched)| watched.latest);
            if let Some((index, _)) = quietest {
                self.watched.swap_remove(index);
            }
        }
        // There is room: one was taken out when the list was full.
        let _ = self.watched.push(Watched { count: 1, ..Watched::new(source, now) });
        1
    }
}

impl Watched {
    fn new(source: SourceId, now: Instant) -> Self {
        Self { source, since: now, latest: now, count: 0 }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;
    use std::boxed::Box;
    use std::vec;

    use super::{
        Access, FAULT_LOG_RECORDS, FAULT_WATCHED_SOURCES, FAULTS_PER_WINDOW, FaultKind, FaultLog, FaultRecord,
    };
    use crate::addr::PhysAddr;
    use crate::id::SourceId;
    use crate::platform::{Arena, Frame, Platform};

    fn fault(source: u16) -> FaultRecord {
        FaultRecord {
            unit: PhysAddr::new(0),
            source: SourceId::pci(0, source),
            pasid: None,
            iova: None,
            access: Access::Read,
            kind: FaultKind::Other,
            reason: 0,
            text: "",
            stalled: None,
        }
    }

    #[test]
    fn a_storm_is_muted_and_leaves_room_for_others() {
        let arena = Arena::new(Box::leak(vec![Frame::ZERO; 1].into_boxed_slice())).unwrap();
        let log = FaultLog::default();
        for _ in 0..1000 {
            log.push(&arena, fault(1));
        }
        log.push(&arena, fault(2));
        assert_eq!(log.lost(&arena).muted, 1000 - u64::from(FAULTS_PER_WINDOW));
        let mut last = None;
        while let Some(record) = log.pop(&arena) {
            last = Some(record.source);
        }
        assert_eq!(last, Some(SourceId::pci(0, 2)));
    }

    #[test]
    fn the_window_ends() {
        let arena = Arena::new(Box::leak(vec![Frame::ZERO; 1].into_boxed_slice())).unwrap();
        let log = FaultLog::default();
        for _ in 0..20 {
            log.push(&arena, fault(1));
        }
        // Each reading of an arena's clock takes a microsecond.
        for _ in 0..1_000_000 {
            arena.now();
        }
        while log.pop(&arena).is_some() {}
        log.push(&arena, fault(1));
        assert!(log.pop(&arena).is_some());
    }

    #[test]
    fn one_source_too_many_does_not_unmute_a_storm() {
        let arena = Arena::new(Box::leak(vec![Frame::ZERO; 1].into_boxed_slice())).unwrap();
        let log = FaultLog::default();
        for _ in 0..100 {
            log.push(&arena, fault(1));
        }
        // All others fault once, and the storm goes on; then one more has to be watched.
        for source in 2..=FAULT_WATCHED_SOURCES as u16 {
            log.push(&arena, fault(source));
        }
        log.push(&arena, fault(1));
        log.push(&arena, fault(99));
        let muted = log.lost(&arena).muted;
        assert!(!log.push(&arena, fault(1)), "the storm is still muted");
        assert_eq!(log.lost(&arena).muted, muted + 1);
        // The one that was quiet longest was forgotten: it starts anew.
        assert!(log.push(&arena, fault(2)));
    }

    #[test]
    fn a_full_log_counts_what_it_loses() {
        let arena = Arena::new(Box::leak(vec![Frame::ZERO; 1].into_boxed_slice())).unwrap();
        let log = FaultLog::default();
        for source in 0..FAULT_LOG_RECORDS as u16 + 5 {
            log.push(&arena, fault(source));
        }
        assert_eq!(log.lost(&arena).full, 5);
    }
}
