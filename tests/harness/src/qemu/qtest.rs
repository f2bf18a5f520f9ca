//! A client of QEMU's qtest protocol: one line a command, one line the answer.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use super::process::Output;
use crate::bus::Width;
use crate::error::{Error, Result};

/// How long an answer may take. QEMU answers within microseconds unless it hangs.
const TIMEOUT: Duration = Duration::from_secs(10);

/// An interrupt line that changed, as QEMU reports it after `irq_intercept_in` or `_out`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IrqEvent {
    /// Number of the line.
    pub line: u32,
    /// Whether it was raised.
    pub raised: bool,
}

/// A synchronous connection to a QEMU. Any number of threads may use it; each command waits for its
/// answer. After a failure that leaves the connection out of step every call fails.
pub struct Qtest {
    connection: Mutex<Connection>,
    output: Output,
    /// Whether the loss of the connection is told on standard error: it is a surprise then, and the
    /// driver under test, which sees it first, has no way to tell it.
    announced: AtomicBool,
}

struct Connection {
    stream: BufReader<UnixStream>,
    irqs: VecDeque<IrqEvent>,
    lost: bool,
}

impl Qtest {
    /// Speaks over `stream`; `output` is what that QEMU prints, for errors.
    ///
    /// # Errors
    /// [`Error::Io`] when the socket takes no time-outs.
    pub fn new(stream: UnixStream, output: Output) -> Result<Self> {
        let limited = stream.set_read_timeout(Some(TIMEOUT)).and_then(|()| stream.set_write_timeout(Some(TIMEOUT)));
        limited.map_err(Error::io("setting the time-outs of the qtest socket"))?;
        let connection = Connection { stream: BufReader::new(stream), irqs: VecDeque::new(), lost: false };
        Ok(Self { connection: Mutex::new(connection), output, announced: AtomicBool::new(false) })
    }

    /// Sends one command and gives what follows `OK` in its answer.
    ///
    /// # Errors
    /// [`Error::Refused`] for any other answer; [`Error::Exited`], [`Error::TimedOut`] and
    /// [`Error::Io`] when the connection is lost by this, [`Error::Disconnected`] when it was before.
    pub fn command(&self, command: &str) -> Result<String> {
        let mut connection = self.lock();
        if connection.lost {
            return Err(Error::Disconnected);
        }
        let reply = connection.exchange(command).map_err(|error| {
            connection.lost = true;
            let error = self.explain(error);
            if self.announced.load(Ordering::Relaxed) {
                eprintln!("qtest `{command}`: {error}");
            }
            error
        })?;
        match reply.strip_prefix("OK") {
            Some(rest) => Ok(rest.trim().to_owned()),
            None => Err(Error::Refused { command: command.to_owned(), reply }),
        }
    }

    /// Reads memory as the processor sees it.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn read(&self, address: u64, width: Width) -> Result<u64> {
        self.number(&format!("read{} {address:#x}", letter(width)))
    }

    /// Writes memory as the processor sees it.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn write(&self, address: u64, width: Width, value: u64) -> Result<()> {
        self.command(&format!("write{} {address:#x} {value:#x}", letter(width))).map(drop)
    }

    /// Reads an I/O port, 1, 2 or 4 bytes wide.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn port_in(&self, port: u16, width: Width) -> Result<u32> {
        self.number(&format!("in{} {port:#x}", letter(width))).map(|value| value as u32)
    }

    /// Writes an I/O port, 1, 2 or 4 bytes wide.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn port_out(&self, port: u16, width: Width, value: u32) -> Result<()> {
        self.command(&format!("out{} {port:#x} {value:#x}", letter(width))).map(drop)
    }

    /// Takes the interrupts that were reported since the last call, oldest first.
    pub fn take_irqs(&self) -> Vec<IrqEvent> {
        self.lock().irqs.drain(..).collect()
    }

    /// From now on the loss of the connection is told on standard error.
    pub fn announce_loss(&self) {
        self.announced.store(true, Ordering::Relaxed);
    }

    /// From now on it is no news that QEMU is gone, as at first.
    pub fn expect_loss(&self) {
        self.announced.store(false, Ordering::Relaxed);
    }

    fn number(&self, command: &str) -> Result<u64> {
        let reply = self.command(command)?;
        let number = match reply.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => reply.parse(),
        };
        number.map_err(|_| Error::Refused { command: command.to_owned(), reply })
    }

    fn explain(&self, error: io::Error) -> Error {
        match error.kind() {
            // Both are seen when the time-out of a socket passes.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::TimedOut { doing: "an answer of QEMU" },
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                Error::Exited { output: self.output.read() }
            }
            _ => Error::Io { doing: "the qtest socket", source: error },
        }
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Connection {
    /// One command out, one answer in; interrupts that come between are kept.
    fn exchange(&mut self, command: &str) -> io::Result<String> {
        self.stream.get_mut().write_all(format!("{command}\n").as_bytes())?;
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 || !line.ends_with('\n') {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match parse_irq(line.trim_end()) {
                Some(event) => self.irqs.push_back(event),
                None => return Ok(line.trim_end().to_owned()),
            }
        }
    }
}

impl fmt::Debug for Qtest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qtest").field("lost", &self.lock().lost).finish()
    }
}

/// The letter that the protocol appends to a command for this width.
fn letter(width: Width) -> char {
    match width {
        Width::Byte => 'b',
        Width::Word => 'w',
        Width::Long => 'l',
        Width::Quad => 'q',
    }
}

/// `IRQ raise 4` or `IRQ lower 4`.
fn parse_irq(line: &str) -> Option<IrqEvent> {
    let (verb, number) = line.strip_prefix("IRQ ")?.split_once(' ')?;
    Some(IrqEvent { line: number.parse().ok()?, raised: verb == "raise" })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;
    use std::thread::{self, JoinHandle};

    use super::{IrqEvent, Output, Qtest};
    use crate::bus::Width;
    use crate::error::Error;

    /// A peer that answers the commands it receives with these lines, and then closes.
    fn peer(answers: &'static [&'static str]) -> (Qtest, JoinHandle<Vec<String>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let heard = thread::spawn(move || {
            let mut lines = BufReader::new(theirs.try_clone().unwrap()).lines();
            let answer = |answer| {
                let line = lines.next().unwrap().unwrap();
                (&theirs).write_all(str::as_bytes(answer)).unwrap();
                line
            };
            answers.iter().copied().map(answer).collect()
        });
        (Qtest::new(ours, Output::none()).unwrap(), heard)
    }

    #[test]
    fn interrupts_between_are_kept() {
        let (qtest, heard) = peer(&["IRQ raise 7\nOK 0x10\n", "IRQ lower 7\nOK\n"]);
        assert_eq!(qtest.read(0x1000, Width::Long).unwrap(), 0x10);
        qtest.port_out(0xcf8, Width::Long, 5).unwrap();
        let seen = [IrqEvent { line: 7, raised: true }, IrqEvent { line: 7, raised: false }];
        assert_eq!(qtest.take_irqs(), seen);
        assert_eq!(heard.join().unwrap(), ["readl 0x1000", "outl 0xcf8 0x5"]);
    }

    #[test]
    fn a_refusal_is_told_and_a_lost_connection_stays_lost() {
        let (qtest, heard) = peer(&["FAIL Unknown command\n", "OK cut"]);
        assert!(matches!(qtest.command("what"), Err(Error::Refused { .. })));
        assert!(matches!(qtest.command("endianness"), Err(Error::Exited { .. })));
        heard.join().unwrap();
        assert!(matches!(qtest.command("endianness"), Err(Error::Disconnected)));
    }
}
