//! The serial line, and the way out.

use core::fmt::{self, Write};

use crate::port;

const COM1: u16 = 0x3f8;
/// QEMU's `isa-debug-exit` makes its exit status of this port's value: `value << 1 | 1`.
const DEBUG_EXIT: u16 = 0xf4;

/// `println!`, to the serial line. Any context.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => { $crate::console::print_line(format_args!($($argument)*)) };
}

/// How the machine is switched off.
#[derive(Clone, Copy)]
pub enum Outcome {
    /// Exit status 33.
    Pass = 0x10,
    /// Exit status 35.
    Fail = 0x11,
}

/// Sets the line to 115200 baud, 8 data bits, no parity, FIFOs on, no interrupts.
pub fn init() {
    for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7)] {
        port::write8(COM1 + register, value);
    }
}

/// What `println!` calls.
pub fn print_line(line: fmt::Arguments<'_>) {
    let _ = writeln!(Serial, "{line}");
}

/// Switches the machine off.
pub fn exit(outcome: Outcome) -> ! {
    println!("RESULT {}", if matches!(outcome, Outcome::Pass) { "PASS" } else { "FAIL" });
    port::write32(DEBUG_EXIT, outcome as u32);
    loop {
        core::hint::spin_loop(); // a machine without that port
    }
}

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        const LINE_STATUS: u16 = COM1 + 5;
        const TRANSMITTER_EMPTY: u8 = 1 << 5;
        for byte in text.bytes() {
            // A line that is never ready must not stop the kernel.
            for _ in 0..100_000 {
                if port::read8(LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
                    break;
                }
            }
            port::write8(COM1, byte);
        }
        Ok(())
    }
}
