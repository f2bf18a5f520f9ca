//! Time: the processor's time stamp counter, measured against the PC's timer.

use core::arch::x86_64::_rdtsc;

use iommu::platform::Instant;

use crate::port;

/// A clock that counts nanoseconds since it was made.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    zero: u64,
    /// Nanoseconds per tick, in units of 2^-32.
    scale: u64,
}

impl Clock {
    /// Measures the counter for 10 ms. `None` when the timer does not run.
    pub fn calibrate() -> Option<Self> {
        const NANOS: u64 = 10_000_000;
        const TIMER_HZ: u64 = 1_193_182;
        const SPEAKER: u16 = 0x61;
        let [low, high, ..] = (TIMER_HZ * NANOS / 1_000_000_000).to_le_bytes();
        // Channel 2 with its gate on and the speaker off, mode 0: the output rises at zero.
        port::write8(SPEAKER, port::read8(SPEAKER) & !2 | 1);
        port::write8(0x43, 0xb0);
        port::write8(0x42, low);
        port::write8(0x42, high);
        let zero = ticks();
        (0..10_000_000).find(|_| port::read8(SPEAKER) & 0x20 != 0)?;
        let scale = (NANOS << 32).checked_div(ticks() - zero)?;
        Some(Self { zero, scale })
    }

    /// Time since the clock was made.
    pub fn now(&self) -> Instant {
        let ticks = ticks().saturating_sub(self.zero);
        Instant::from_nanos(((u128::from(ticks) * u128::from(self.scale)) >> 32) as u64)
    }
}

fn ticks() -> u64 {
    // SAFETY: every 64-bit processor has the counter, and a kernel may read it.
    unsafe { _rdtsc() }
}
