//! ACPI tables, taken from QEMU and finished as firmware would.
//!
//! QEMU hands its tables over in files of its configuration device, unlinked: pointers are offsets,
//! checksums are zero, and the file `etc/table-loader` says what firmware must do to them. [`AcpiTables`]
//! does all of it (allocate, add pointers, add checksums) and then finds tables as a kernel does, from
//! the root pointer. The only liberty: the tables are not put into guest RAM, so the addresses in them
//! are of no memory.

use std::collections::HashMap;

use iommu::PhysAddr;

use crate::bus::Width;
use crate::error::{Error, Result};
use crate::qemu::Qtest;
use crate::ram::GuestRam;

/// The tables of one machine.
#[derive(Clone, Debug)]
pub struct AcpiTables {
    files: HashMap<String, LoadedFile>,
}

#[derive(Clone, Debug)]
struct LoadedFile {
    address: u64,
    bytes: Vec<u8>,
}

/// File with the root pointer.
const ROOT_FILE: &str = "etc/acpi/rsdp";
/// Where the files pretend to lie.
const LOAD_BASE: u64 = 0x7f00_0000;
/// Length of a command of the loader.
const COMMAND_BYTES: usize = 128;
/// Length of a file's name.
const NAME_BYTES: usize = 56;

const TRUNCATED: Error = Error::Firmware("a file is too short");

impl AcpiTables {
    /// Loads the tables of the QEMU behind `qtest`, whose configuration device is as told.
    ///
    /// # Errors
    /// [`Error::Firmware`] for tables that do not hold together, and those of the connection.
    pub fn load(qtest: &Qtest, ram: &GuestRam, device: &ConfigDevice) -> Result<Self> {
        let device = ConfigFiles::new(qtest, ram, device)?;
        Self::link(&device.read("etc/table-loader")?, |name| device.read(name))
    }

    /// The bytes of the table with this signature, header included.
    ///
    /// # Errors
    /// [`Error::Firmware`] when there is none, or when something on the way to it is malformed.
    pub fn table(&self, signature: &[u8; 4]) -> Result<Vec<u8>> {
        let root = &self.files.get(ROOT_FILE).ok_or(Error::Firmware("no root pointer"))?.bytes;
        // ACPI 5.2.5.3: revision 0 has only the 32-bit pointer.
        let (list, entry_bytes) = match root.get(15) {
            Some(0) => (number(root, 16, 4)?, 4),
            _ => (number(root, 24, 8)?, 8),
        };
        let list = self.table_at(list)?;
        let entries = list.get(36..).ok_or(TRUNCATED)?;
        for entry in entries.chunks_exact(entry_bytes) {
            let table = self.table_at(number(entry, 0, entry_bytes)?)?;
            if table.starts_with(signature) {
                return Ok(table.to_vec());
            }
        }
        Err(Error::Firmware("no table with this signature"))
    }

    /// Runs the loader's commands over files that `read` gives.
    fn link(script: &[u8], read: impl Fn(&str) -> Result<Vec<u8>>) -> Result<Self> {
        let mut tables = Self { files: HashMap::new() };
        let mut next = LOAD_BASE;
        for command in script.chunks_exact(COMMAND_BYTES) {
            let file = text(command, 4)?;
            match number(command, 0, 4)? {
                1 => {
                    let bytes = read(&file)?;
                    let address = next.next_multiple_of(number(command, 60, 4)?.max(1));
                    next = address + bytes.len() as u64;
                    tables.files.insert(file, LoadedFile { address, bytes });
                }
                2 => {
                    let target = tables.file(&text(command, 60)?)?.address;
                    let (offset, bytes) = (number(command, 116, 4)? as usize, usize::from(command[120]));
                    let place = tables.file(&file)?.bytes.get_mut(offset..offset + bytes).ok_or(TRUNCATED)?;
                    let pointer = number(place, 0, bytes)? + target;
                    place.copy_from_slice(pointer.to_le_bytes().get(..bytes).ok_or(TRUNCATED)?);
                }
                3 => {
                    let [offset, start, bytes] = [60, 64, 68].map(|at| number(command, at, 4));
                    let (offset, start, bytes) = (offset? as usize, start? as usize, bytes? as usize);
                    let all = &mut tables.file(&file)?.bytes;
                    let sum = all.get(start..start + bytes).ok_or(TRUNCATED)?;
                    let sum = sum.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
                    let checksum = all.get_mut(offset).ok_or(TRUNCATED)?;
                    *checksum = checksum.wrapping_sub(sum);
                }
                // Tells QEMU an address, which nobody needs here; unknown commands are to be skipped.
                _ => {}
            }
        }
        Ok(tables)
    }

    fn file(&mut self, name: &str) -> Result<&mut LoadedFile> {
        self.files.get_mut(name).ok_or(Error::Firmware("a command names a file that was not allocated"))
    }

    fn table_at(&self, address: u64) -> Result<&[u8]> {
        let rest = self.files.values().find_map(|file| {
            let offset = usize::try_from(address.checked_sub(file.address)?).ok()?;
            file.bytes.get(offset..).filter(|rest| !rest.is_empty())
        });
        let rest = rest.ok_or(Error::Firmware("a pointer leads nowhere"))?;
        rest.get(..number(rest, 4, 4)? as usize).ok_or(TRUNCATED)
    }
}

/// A little-endian number of up to 8 bytes.
fn number(bytes: &[u8], offset: usize, length: usize) -> Result<u64> {
    let bytes = bytes.get(offset..offset + length).filter(|bytes| bytes.len() <= 8).ok_or(TRUNCATED)?;
    Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// The name at `offset`, which ends with a zero unless it fills its field.
fn text(bytes: &[u8], offset: usize) -> Result<String> {
    let name = bytes.get(offset..offset + NAME_BYTES).ok_or(TRUNCATED)?;
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// QEMU's configuration device.
#[derive(Clone, Copy, Debug)]
pub struct ConfigDevice {
    /// Its DMA register: two big-endian halves; writing the second starts a transfer.
    pub register: ConfigRegister,
    /// Guest RAM that nobody else uses: what is from 0x1000 to 0x8ffff behind this address.
    pub scratch: PhysAddr,
}

/// Where the register of DMA is.
#[derive(Clone, Copy, Debug)]
pub enum ConfigRegister {
    /// At this I/O port.
    Ports(u16),
    /// In memory.
    Memory(PhysAddr),
}

/// Where the request is put, from the start of the scratch memory.
const REQUEST: u64 = 0x1000;
/// Where data is put.
const DATA: u64 = 0x1_0000;
/// How much fits there.
const DATA_BYTES: usize = 0x8_0000;

/// The files of a configuration device, read through its DMA interface. (The data register would take
/// one command for each of some 130 000 bytes.)
struct ConfigFiles<'a> {
    qtest: &'a Qtest,
    ram: &'a GuestRam,
    device: &'a ConfigDevice,
    /// Selector and length of each file.
    directory: HashMap<String, (u16, usize)>,
}

impl<'a> ConfigFiles<'a> {
    const DIRECTORY: u16 = 0x19;
    /// Request: failed, read, select.
    const FAILED: u32 = 1 << 0;
    const READ: u32 = 1 << 1;
    const SELECT: u32 = 1 << 3;

    fn new(qtest: &'a Qtest, ram: &'a GuestRam, device: &'a ConfigDevice) -> Result<Self> {
        let mut device = Self { qtest, ram, device, directory: HashMap::new() };
        let big_endian = |bytes: &[u8]| bytes.iter().fold(0usize, |number, byte| number << 8 | usize::from(*byte));
        let count = big_endian(&device.transfer(Self::DIRECTORY, 4)?);
        let list = device.transfer(Self::DIRECTORY, 4 + 64 * count)?;
        for entry in list[4..].chunks_exact(64) {
            let selector = big_endian(&entry[4..6]) as u16;
            device.directory.insert(text(entry, 8)?, (selector, big_endian(&entry[..4])));
        }
        Ok(device)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let (selector, bytes) = *self.directory.get(name).ok_or(Error::Firmware("a file is missing"))?;
        self.transfer(selector, bytes)
    }

    fn transfer(&self, selector: u16, bytes: usize) -> Result<Vec<u8>> {
        if bytes > DATA_BYTES {
            return Err(Error::Firmware("a file is longer than expected"));
        }
        let [request_at, data_at] = [REQUEST, DATA].map(|offset| PhysAddr::new(self.device.scratch.as_u64() + offset));
        let control = u32::from(selector) << 16 | Self::SELECT | Self::READ;
        let mut request = [0; 16];
        request[..4].copy_from_slice(&control.to_be_bytes());
        request[4..8].copy_from_slice(&(bytes as u32).to_be_bytes());
        request[8..].copy_from_slice(&data_at.as_u64().to_be_bytes());
        self.ram.write(request_at, &request);
        for (offset, half) in [(0, request_at.as_u64() >> 32), (4, request_at.as_u64())] {
            let value = (half as u32).swap_bytes();
            match self.device.register {
                ConfigRegister::Ports(port) => self.qtest.port_out(port + offset, Width::Long, value)?,
                ConfigRegister::Memory(base) => {
                    self.qtest.write(base.as_u64() + u64::from(offset), Width::Long, u64::from(value))?;
                }
            }
        }
        let mut control = [0; 4];
        self.ram.read(request_at, &mut control);
        // The device writes zero when it is done, which it is before the port write returns.
        match u32::from_be_bytes(control) {
            0 => {}
            control if control & Self::FAILED != 0 => return Err(Error::Firmware("the configuration device failed")),
            _ => return Err(Error::TimedOut { doing: "the configuration device" }),
        }
        let mut data = vec![0; bytes];
        self.ram.read(data_at, &mut data);
        Ok(data)
    }
}
