//! Tests of what both kinds of firmware come to.

extern crate std;

mod device_tree;
mod tree;

use std::boxed::Box;
use std::vec;
use std::vec::Vec;

use super::iort::samples::{
    BUS, ETHERNET, HOST, HOST_AT, ITS, OLD_SMMU, PLAIN_HOST, RMR, SMALL_SMMU, SMMU, everything, finish, fix_checksum,
};
use super::{Coherency, Firmware, Httu, Interrupt, MsiController, MsiTarget, Quirks};
use crate::arch::smmuv3::layout::StreamId;
use crate::device::Trust;
use crate::error::{Error, ParseError, ParseErrorKind, Result};
use crate::id::SourceId;
use crate::platform::{Arena, Frame};
use crate::prot::Prot;
use crate::region::RegionKind;

/// The index of the SMMU at 0x9050000, and of the one at 0x2b400000.
const MAIN: usize = 0;
const SMALL: usize = 1;

fn arena(frames: usize) -> &'static Arena {
    Arena::new(Box::leak(vec![Frame::ZERO; frames + 1].into_boxed_slice())).unwrap()
}

fn from(table: &[u8]) -> Result<Firmware<&'static Arena>> {
    Firmware::from_iort(arena(64), table)
}

#[test]
fn units_are_told_with_all_that_is_known() {
    let firmware = from(&everything()).unwrap();
    let [main, small] = firmware.units() else { panic!() };
    assert_eq!(main.base.as_u64(), 0x905_0000);
    assert_eq!((main.coherency, main.httu), (Some(Coherency::Coherent), Some(Httu::Access)));
    let wired = main.interrupts;
    assert_eq!((wired.event, wired.pri), (Some(Interrupt::Gsiv(106)), None));
    assert_eq!((wired.gerror, wired.sync), (Some(Interrupt::Gsiv(109)), Some(Interrupt::Gsiv(108))));
    assert_eq!(main.msi, Some(MsiTarget { controller: MsiController::Its(4), device_id: 0x2_0007 }));
    assert_eq!((main.quirks, main.proximity_domain), (Quirks::empty(), Some(3)));
    assert_eq!(small.base.as_u64(), 0x2b40_0000);
    assert_eq!((small.coherency, small.httu), (Some(Coherency::NonCoherent), Some(Httu::None)));
    assert_eq!((small.msi, small.quirks), (None, Quirks::BROKEN_PREFETCH));
}

#[test]
fn sources_have_streams_and_streams_sources() {
    let firmware = from(&everything()).unwrap();
    let stream = |segment, id| firmware.stream_of(SourceId::pci(segment, id)).map(|(unit, stream)| (unit, stream.0));
    assert_eq!(stream(0, 0x20), Some((MAIN, 0x1020)));
    assert_eq!(stream(0, 0xbfff), Some((SMALL, 0xbfff)));
    // One id too many, which belongs to a range that passes all SMMUs.
    assert_eq!(stream(0, 0xc000), None);
    assert_eq!((stream(7, 0), stream(7, 0xffff)), (Some((MAIN, 0x99)), Some((MAIN, 0x99))));
    assert_eq!(stream(8, 0), None);
    assert_eq!(firmware.stream_of(SourceId::platform(1, 77)), Some((SMALL, StreamId(77))));
    assert_eq!(firmware.stream_of(SourceId::platform(2, 77)), None);

    assert_eq!(firmware.source_of(MAIN, StreamId(0x1020)), Some(SourceId::pci(0, 0x20)));
    assert_eq!(firmware.source_of(SMALL, StreamId(0x8000)), Some(SourceId::pci(0, 0x8000)));
    assert_eq!(firmware.source_of(SMALL, StreamId(0xc000)), None);
    assert_eq!(firmware.source_of(MAIN, StreamId(0x99)), Some(SourceId::pci(7, 0)), "one of those that share it");
    assert_eq!(firmware.source_of(MAIN, StreamId(0x40)), Some(SourceId::platform(0, 0x40)));
    assert_eq!(firmware.source_of(SMALL, StreamId(0x40)), None);
    assert_eq!(firmware.source_of(2, StreamId(0x40)), None);
}

#[test]
fn who_shares_a_stream_is_not_alone() {
    let firmware = from(&everything()).unwrap();
    let alone = |segment, id| firmware.is_alone(SourceId::pci(segment, id));
    assert!(alone(0, 0x20) && alone(0, 0xbfff));
    // All functions of a host share one; of another host nothing is known.
    assert!(!alone(7, 0x20) && !alone(8, 0));
    // So do a function and a platform device.
    let mut ethernet = ETHERNET.to_vec();
    ethernet[69] = 0x80;
    let firmware = from(&finish(&[ITS, SMMU, SMALL_SMMU, OLD_SMMU, HOST, &ethernet])).unwrap();
    assert!(!firmware.is_alone(SourceId::pci(0, 0x8005)) && firmware.is_alone(SourceId::pci(0, 0x8006)));
    // A second host sends with the StreamIDs of the first.
    let mut second = HOST.to_vec();
    second[28] = 1;
    let firmware = from(&finish(&[ITS, SMMU, SMALL_SMMU, OLD_SMMU, HOST, &second])).unwrap();
    assert!(!firmware.is_alone(SourceId::pci(0, 0x20)) && !firmware.is_alone(SourceId::pci(1, 0x20)));
}

#[test]
fn a_function_that_two_hosts_claim_is_the_first_ones() {
    let mut second = PLAIN_HOST.to_vec();
    second[28] = 0;
    let firmware = from(&finish(&[ITS, SMMU, SMALL_SMMU, OLD_SMMU, HOST, &second])).unwrap();
    assert_eq!(firmware.stream_of(SourceId::pci(0, 0)), Some((MAIN, StreamId(0x1000))));
    assert_eq!(firmware.stream_of(SourceId::pci(0, 0xc000)), Some((MAIN, StreamId(0x99))));
    assert_eq!(firmware.source_of(MAIN, StreamId(0x99)), None, "00:00.0 does not send with it");
}

#[test]
fn pci_hosts_and_platform_devices_have_their_properties() {
    let firmware = from(&everything()).unwrap();
    let (ats, plain) = (SourceId::pci(0, 0x20), SourceId::pci(7, 0x20));
    assert!(firmware.ats_supported(ats) && !firmware.ats_supported(plain));
    assert!(!firmware.ats_supported(SourceId::pci(0, 0xc000)) && !firmware.ats_supported(SourceId::platform(0, 0x40)));
    assert_eq!((firmware.pasid_bits(ats), firmware.pasid_bits(plain)), (Some(16), None));
    let streams: Vec<_> = firmware.platform_streams().collect();
    let [first, second] = streams[..] else { panic!("{streams:?}") };
    assert_eq!((first.name, first.unit, first.stream), ("\\_SB.E0", 0, StreamId(0x40)));
    assert_eq!((second.name, second.unit, second.stream), ("\\_SB.E0", 1, StreamId(5)));
    assert_eq!((first.pasid_bits, first.stall), (8, true));
    let device = firmware.platform_device("\\_SB.E0", Trust::Trusted).unwrap();
    assert_eq!(device.sources, [SourceId::platform(0, 0x40), SourceId::platform(1, 5)]);
    assert_eq!(device.features.pasid_bits, 8);
    assert_eq!(firmware.pasid_bits(SourceId::platform(1, 5)), Some(8));
    for name in ["\\_SB.E", "\\_SB.MC", ""] {
        assert_eq!(firmware.platform_device(name, Trust::Trusted).err(), Some(Error::NoDevice));
    }
}

#[test]
fn regions_belong_to_streams() {
    let firmware = from(&everything()).unwrap();
    let of = |unit, stream| -> Vec<_> {
        let regions = firmware.regions(unit, StreamId(stream));
        regions.map(|region| (region.range.start().as_u64(), region.range.bytes().unwrap())).collect()
    };
    let both = [(0x9000_0000, 0x1_0000), (0x8000_0000, 0x1000)];
    assert_eq!((of(MAIN, 0x1010), of(MAIN, 0x1011), of(MAIN, 0x40)), (both.to_vec(), both.to_vec(), both.to_vec()));
    assert_eq!((of(MAIN, 0x100f), of(MAIN, 0x1012), of(MAIN, 0x41)), (vec![], vec![], vec![]));
    assert_eq!(of(SMALL, 0x40), []);
    let region = firmware.regions(MAIN, StreamId(0x40)).next().unwrap();
    assert_eq!((region.kind, region.prot), (RegionKind::Direct, Prot::RW | Prot::PRIV | Prot::CACHE));
    let holders: Vec<_> = firmware.streams_with_regions().collect();
    assert_eq!(holders, [(MAIN, StreamId(0x1010), StreamId(0x1011)), (MAIN, StreamId(0x40), StreamId(0x40))]);

    // Remapping permitted, device memory.
    let mut movable = RMR.to_vec();
    movable[16] = 0b01101;
    let firmware = from(&finish(&[ITS, SMMU, &movable])).unwrap();
    let region = firmware.regions(MAIN, StreamId(0x40)).next().unwrap();
    assert_eq!((region.kind, region.prot), (RegionKind::DirectRelaxable, Prot::RW | Prot::MMIO));
}

#[test]
fn streams_that_several_share_are_told_once_with_what_all_of_them_reserve() {
    // 0x1008 to 0x1018, around the two of the other; and 0x40, which the other has as well.
    let mut around = RMR.to_vec();
    (around[32], around[36]) = (0x10, 0x08);
    (around[71], around[91]) = (0xa0, 0xb0);
    for (nodes, parts) in [
        ([ITS, SMMU, RMR, &around], [(0x1010, 0x1011), (0x40, 0x40), (0x1008, 0x100f), (0x1012, 0x1018)]),
        ([ITS, SMMU, &around, RMR], [(0x1008, 0x100f), (0x1010, 0x1011), (0x1012, 0x1018), (0x40, 0x40)]),
    ] {
        let firmware = from(&finish(&nodes)).unwrap();
        let told: Vec<_> = firmware.streams_with_regions().collect();
        assert_eq!(told, parts.map(|(first, last)| (MAIN, StreamId(first), StreamId(last))));
        for (unit, first, last) in told {
            let shared = [0x1010, 0x40].contains(&first.0);
            for stream in first.0..=last.0 {
                assert_eq!(firmware.regions(unit, StreamId(stream)).count(), if shared { 4 } else { 2 });
            }
        }
    }
}

#[test]
fn ids_beyond_those_of_pci_are_left_out() {
    let mut host = HOST.to_vec();
    // The last range begins above 16 bits, the first ends there.
    host[83] = 1;
    host[46] = 7;
    host[60..80].copy_from_slice(&HOST[80..100]);
    host[61] = 0x70;
    host[65] = 0x0f;
    let firmware = from(&finish(&[ITS, SMMU, SMALL_SMMU, OLD_SMMU, &host])).unwrap();
    let stream = |id| firmware.stream_of(SourceId::pci(0, id)).map(|(unit, stream)| (unit, stream.0));
    assert_eq!((stream(0), stream(0x7fff)), (None, Some((MAIN, 0x1fff))));
    assert_eq!((stream(0x8000), stream(0xffff)), (Some((SMALL, 0x8000)), Some((SMALL, 0xffff))));
    assert_eq!(firmware.source_of(SMALL, StreamId(0x1_0000)), None);
}

#[test]
fn a_table_without_smmuv3_has_no_unit() {
    let mut host = PLAIN_HOST.to_vec();
    host[48] = 48;
    let firmware = from(&finish(&[ITS, &host])).unwrap();
    assert!(firmware.units().is_empty());
    assert_eq!(firmware.stream_of(SourceId::pci(7, 0)), None);
    let mut bus = BUS.to_vec();
    bus[52] = 48;
    let mut ethernet = ETHERNET.to_vec();
    (ethernet[52], ethernet[72], ethernet[73]) = (48, 48, 0);
    assert_eq!(from(&finish(&[ITS, &bus, &ethernet])).unwrap().platform_streams().count(), 0);
}

#[test]
fn malformed_tables_are_told() {
    let mut table = everything();
    table[HOST_AT as usize + 30] = 1;
    fix_checksum(&mut table);
    let error = ParseError { offset: HOST_AT + 28, kind: ParseErrorKind::Value };
    assert_eq!(from(&table).err(), Some(Error::Firmware(error)));
}

#[test]
fn every_failed_allocation_gives_all_frames_back() {
    let table = everything();
    let mut failures = 0;
    for frames in 1.. {
        let arena = arena(frames);
        match Firmware::from_iort(arena, &table) {
            Ok(firmware) => {
                assert_eq!(firmware.units().len(), 2);
                assert_eq!(arena.frames_in_use(), frames);
                drop(firmware);
                assert_eq!(arena.frames_in_use(), 0);
                break;
            }
            Err(error) => {
                assert_eq!(error, Error::NoMemory);
                assert_eq!(arena.frames_in_use(), 0);
                failures += 1;
            }
        }
    }
    assert_eq!(failures, 5, "six lists, a frame each");
}
