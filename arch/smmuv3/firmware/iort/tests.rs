//! Tests of the whole parser on tables written by hand.

extern crate std;

use std::string::ToString;
use std::vec::Vec;
use std::{format, vec};

use super::samples::{
    BUS_AT, ETHERNET_AT, EVERYTHING, FUTURE_AT, HOST_AT, ITS, ITS_AT, OLD_SMMU_AT, PLAIN_HOST_AT, PMCG_AT, RMR_AT,
    SMALL_SMMU_AT, SMMU_AT, everything, finish, fix_checksum,
};
use super::{Iort, MAX_NODES, MemoryFlags, Model, Node, NodeKind, SmmuV3Flags};
use crate::arch::smmuv3::layout::StreamId;
use crate::error::{ParseError, ParseErrorKind};

const SMMU: u64 = 0x905_0000;
const SMALL: u64 = 0x2b40_0000;

fn error_of(table: &[u8]) -> (u32, ParseErrorKind) {
    let ParseError { offset, kind } = Iort::parse(table).expect_err("a malformed table was accepted");
    (offset, kind)
}

/// Everything, with some bytes changed.
fn with(changes: &[(u32, u8)]) -> Vec<u8> {
    let mut table = everything();
    for &(at, byte) in changes {
        table[at as usize] = byte;
    }
    fix_checksum(&mut table);
    table
}

#[test]
fn everything_is_read_and_printed() {
    let table = everything();
    let iort = Iort::parse(&table).unwrap();
    assert_eq!(iort.revision(), 6);
    assert_eq!(
        iort.to_string(),
        "IORT revision 6
  48: ITS group 4 5
  76: SMMUv3 Generic registers 0x9050000, COHACC_OVERRIDE, PROXIMITY_VALID, DEVICE_ID_VALID
    0x0..=0xffff to 0x10000 at 48
    one id to 0x20007 at 48
  184: SMMUv3 HisiliconHi161x registers 0x2b400000
  244: SMMU model 3 registers 0x5000000..=0x5003fff
  324: PCI segment 0, ATS, PASID_FORWARDING
    0x8000..=0xc000 to 0x8000 at 184
    0xc000..=0xffff to 0xc000 at 48
    0x0..=0x7fff to 0x1000 at 76
  424: PCI segment 7
    one id to 0x99 at 76
  480: device \\_SB.E0, 8 bits of PASID, stalls
    one id to 0x40 at 76
    one id to 0x5 at 184
  560: device \\_SB.MC, 0 bits of PASID
    0x1..=0x40 to 0x4001 at 76
  620: PMCG registers 0x9070000 of 76
    one id to 0x20008 at 48
  680: RMR NormalWriteBack, PRIVILEGED, 0x90000000..=0x9000ffff, 0x80000000..=0x80000fff
    0x0..=0x1 to 0x1010 at 76
    one id to 0x40 at 76
  788: unknown type 7, 3 bytes"
    );
    let debug = format!("{iort:?}");
    assert!(debug.contains("name: \"\\_SB.E0\""), "{debug}");
    assert_eq!(iort.node_at(FUTURE_AT).unwrap().identifier, 8);
    assert!(iort.node_at(FUTURE_AT + 19).is_none() && iort.node_at(50).is_none() && iort.node_at(0).is_none());
}

#[test]
fn fields_are_where_the_specification_puts_them() {
    let table = everything();
    let iort = Iort::parse(&table).unwrap();
    let NodeKind::SmmuV3(smmu) = iort.node_at(SMMU_AT).unwrap().kind else { panic!() };
    assert_eq!((smmu.event, smmu.pri, smmu.gerror, smmu.sync), (106, 0, 109, 108));
    assert_eq!((smmu.httu, smmu.proximity_domain, smmu.device_id_mapping), (1, Some(3), Some(1)));
    assert!(smmu.flags.contains(SmmuV3Flags::COHACC_OVERRIDE));
    let NodeKind::SmmuV3(small) = iort.node_at(SMALL_SMMU_AT).unwrap().kind else { panic!() };
    assert_eq!((small.model, small.proximity_domain, small.device_id_mapping), (Model::HisiliconHi161x, None, None));
    let NodeKind::Smmu(old) = iort.node_at(OLD_SMMU_AT).unwrap().kind else { panic!() };
    assert!(old.coherent_walk && !old.dvm);
    let NodeKind::RootComplex(host) = iort.node_at(HOST_AT).unwrap().kind else { panic!() };
    assert_eq!((host.address_bits, host.pasid_bits), (Some(48), Some(16)));
    assert!(host.memory.coherent && host.memory.flags == MemoryFlags::CPM | MemoryFlags::DACS);
    let NodeKind::RootComplex(plain) = iort.node_at(PLAIN_HOST_AT).unwrap().kind else { panic!() };
    assert_eq!((plain.address_bits, plain.pasid_bits, plain.memory.coherent), (None, None, false));
    let NodeKind::NamedComponent(ethernet) = iort.node_at(ETHERNET_AT).unwrap().kind else { panic!() };
    assert_eq!((ethernet.address_bits, ethernet.pasid_bits, ethernet.stall_supported), (Some(40), 8, true));
}

#[test]
fn a_root_complex_of_revision_0_and_one_that_passes_no_pasid() {
    let mut bytes = [0; 36];
    (bytes[0], bytes[1], bytes[32]) = (2, 32, 0xff);
    let NodeKind::RootComplex(host) = Node::from_bytes(&bytes).unwrap().kind else { panic!() };
    assert_eq!(host.address_bits, None, "what follows the node is not part of it");
    let mut bytes = [0; 40];
    (bytes[0], bytes[1], bytes[3], bytes[33]) = (2, 40, 4, 16);
    let NodeKind::RootComplex(host) = Node::from_bytes(&bytes).unwrap().kind else { panic!() };
    assert_eq!(host.pasid_bits, Some(0));
}

#[test]
fn requester_ids_lead_to_stream_ids() {
    let table = everything();
    let iort = Iort::parse(&table).unwrap();
    let stream = |segment, id| {
        let host = iort.root_complexes(segment).next()?;
        iort.stream_of(&host, id).map(|(smmu, StreamId(stream))| (smmu.base.as_u64(), stream))
    };
    assert_eq!(stream(0, 0), Some((SMMU, 0x1000)));
    assert_eq!(stream(0, 0x7fff), Some((SMMU, 0x8fff)));
    assert_eq!(stream(0, 0x8000), Some((SMALL, 0x8000)));
    assert_eq!(stream(0, 0xbfff), Some((SMALL, 0xbfff)));
    // The range below counts one too many: the id is the first of a range that passes all SMMUs.
    assert_eq!(stream(0, 0xc000), None);
    assert_eq!(stream(0, 0xffff), None);
    assert_eq!(stream(0, 0x1_0000), None);
    assert_eq!(stream(7, 0x1234), Some((SMMU, 0x99)));
    assert_eq!(stream(1, 0), None);
}

#[test]
fn platform_devices_have_their_ids_and_buses_those_of_others() {
    let table = everything();
    let iort = Iort::parse(&table).unwrap();
    let ethernet = iort.node_at(ETHERNET_AT).unwrap();
    let own: Vec<_> = iort.streams(&ethernet).map(|(smmu, stream)| (smmu.base.as_u64(), stream)).collect();
    assert_eq!(own, [(SMMU, StreamId(0x40)), (SMALL, StreamId(5))]);
    assert!(iort.stream_of(&ethernet, 0).is_none());
    let bus = iort.node_at(BUS_AT).unwrap();
    assert_eq!(iort.streams(&bus).count(), 0);
    assert_eq!(iort.stream_of(&bus, 0x40).map(|(_, stream)| stream), Some(StreamId(0x4040)));
    assert!(iort.stream_of(&bus, 0x41).is_none() && iort.stream_of(&bus, 0).is_none());
}

#[test]
fn ids_lead_on_to_device_ids() {
    let table = everything();
    let iort = Iort::parse(&table).unwrap();
    let its = |found: Option<(super::ItsGroup<'_>, u32)>| found.map(|(group, id)| (group.identifiers().next(), id));
    let host = iort.node_at(HOST_AT).unwrap();
    assert_eq!(its(iort.device_id_of(&host, 0x20)), Some((Some(4), 0x1_1020)));
    // Past all SMMUs; and to one that maps nothing on.
    assert_eq!(its(iort.device_id_of(&host, 0xc001)), Some((Some(4), 0xc001)));
    assert_eq!(its(iort.device_id_of(&host, 0x8000)), None);
    // MSIs of the SMMU itself and of its counters; the single mapping is for no other id.
    assert_eq!(its(iort.own_device_id(&iort.node_at(SMMU_AT).unwrap())), Some((Some(4), 0x2_0007)));
    assert_eq!(its(iort.own_device_id(&iort.node_at(PMCG_AT).unwrap())), Some((Some(4), 0x2_0008)));
    assert_eq!(its(iort.own_device_id(&iort.node_at(SMALL_SMMU_AT).unwrap())), None);
    assert_eq!(its(iort.device_id_of(&iort.node_at(SMMU_AT).unwrap(), 0x1_0000)), None);
}

#[test]
fn a_table_cut_off_anywhere_is_truncated() {
    let table = everything();
    for length in 0..table.len() {
        assert_eq!(error_of(&table[..length]), (0, ParseErrorKind::Truncated), "at {length} bytes");
    }
}

#[test]
fn a_table_that_says_it_is_shorter_is_never_misread() {
    // Cut the table at every byte, with a length and a checksum that agree: the node that is cut, or
    // the first that is missing, is named.
    let table = everything();
    let starts: Vec<usize> =
        [ITS_AT, SMMU_AT, SMALL_SMMU_AT, OLD_SMMU_AT, HOST_AT, PLAIN_HOST_AT, ETHERNET_AT, BUS_AT, PMCG_AT, RMR_AT]
            .into_iter()
            .chain([FUTURE_AT])
            .map(|start| start as usize)
            .collect();
    for length in 48..table.len() {
        let mut cut = table[..length].to_vec();
        cut[4..8].copy_from_slice(&(length as u32).to_le_bytes());
        fix_checksum(&mut cut);
        let start = *starts.iter().rev().find(|start| **start <= length).unwrap();
        assert_eq!(error_of(&cut), (start as u32, ParseErrorKind::Length), "at {length} bytes");
    }
}

#[test]
fn bytes_behind_the_table_and_behind_its_nodes_are_none_of_its_business() {
    let mut table = everything();
    table.extend([0xff; 100]);
    assert!(Iort::parse(&table).is_ok());
    let fewer = with(&[(36, 10)]);
    assert_eq!(Iort::parse(&fewer).unwrap().nodes().count(), 10);
    let none = with(&[(36, 0), (40, 0)]);
    assert_eq!(Iort::parse(&none).unwrap().nodes().count(), 0);
}

#[test]
fn malformed_headers_are_told_apart() {
    assert_eq!(error_of(&with(&[(0, b'X')])), (0, ParseErrorKind::Signature));
    assert_eq!(error_of(&with(&[(4, 47), (5, 0)])), (4, ParseErrorKind::Length));
    assert_eq!(error_of(&with(&[(7, 0xff)])), (0, ParseErrorKind::Truncated));
    assert_eq!(error_of(&with(&[(40, 47)])), (40, ParseErrorKind::Value));
    assert_eq!(error_of(&with(&[(43, 0xff)])), (40, ParseErrorKind::Value));
    assert_eq!(error_of(&with(&[(37, 0x10)])), (36, ParseErrorKind::Capacity));
    let mut table = everything();
    table[20] ^= 1;
    assert_eq!(error_of(&table), (9, ParseErrorKind::Checksum));
}

#[test]
fn the_most_nodes_are_taken_and_one_more_is_not() {
    let most = vec![ITS; MAX_NODES as usize];
    assert_eq!(Iort::parse(&finish(&most)).unwrap().nodes().count(), MAX_NODES as usize);
    let beyond = vec![ITS; MAX_NODES as usize + 1];
    assert_eq!(error_of(&finish(&beyond)), (36, ParseErrorKind::Capacity));
}

#[test]
fn nodes_too_short_for_what_they_hold_are_named_by_their_place() {
    // Bytes of each node up to the end of what every revision and length field needs.
    let least = [28, 108, 60, 60, 100, 56, 80, 60, 60, 108, 16];
    for (index, node) in EVERYTHING.iter().enumerate() {
        for length in 0..=u8::try_from(node.len() + 1).unwrap() {
            let mut part = node.to_vec();
            part[1] = length;
            let mut nodes = EVERYTHING.to_vec();
            nodes.truncate(index);
            let start: usize = 48 + nodes.iter().map(|node| node.len()).sum::<usize>();
            nodes.push(&part);
            // References to nodes behind are not the question here.
            let result = Node::from_bytes(&part);
            if usize::from(length) > node.len() || usize::from(length) < least[index] {
                let error = result.map(|_| ()).expect_err("a node too short was accepted");
                assert_eq!(error.kind, ParseErrorKind::Length, "{node:?} with length {length}");
                let (offset, kind) = error_of(&finish(&nodes));
                assert_eq!((offset, kind), (start as u32 + error.offset, ParseErrorKind::Length));
                assert!(error.offset < 28, "{} with length {length}", node[0]);
            } else {
                assert!(result.is_ok(), "{node:?} with length {length}: {result:?}");
            }
        }
    }
}

#[test]
fn illegal_values_are_named_by_their_place() {
    use ParseErrorKind::{Length, Value};
    type Case<'a> = (&'a [(u32, u8)], u32, ParseErrorKind);
    let cases: &[Case<'_>] = &[
        // ITS group: too many services, and mappings.
        (&[(ITS_AT + 16, 4)], ITS_AT + 16, Length),
        (&[(ITS_AT + 8, 1)], ITS_AT + 8, Value),
        // SMMUv3: registers at zero, off their boundary, at the top of the space; no such mapping.
        (&[(SMMU_AT + 18, 0), (SMMU_AT + 19, 0)], SMMU_AT + 16, Value),
        (&[(SMMU_AT + 17, 0x10)], SMMU_AT + 16, Value),
        (
            &[
                (SMMU_AT + 20, 0xff),
                (SMMU_AT + 21, 0xff),
                (SMMU_AT + 22, 0xff),
                (SMMU_AT + 23, 0xff),
                (SMMU_AT + 19, 0xff),
                (SMMU_AT + 18, 0xff),
            ],
            SMMU_AT + 16,
            Value,
        ),
        (&[(SMMU_AT + 64, 2)], SMMU_AT + 64, Value),
        // SMMUv2: no register.
        (&[(OLD_SMMU_AT + 25, 0)], OLD_SMMU_AT + 24, Value),
        // Root complex: segment, address bits, PASID bits.
        (&[(HOST_AT + 30, 1)], HOST_AT + 28, Value),
        (&[(HOST_AT + 32, 65)], HOST_AT + 32, Value),
        (&[(HOST_AT + 33, 21)], HOST_AT + 33, Value),
        // Named component: PASID bits, address bits.
        (&[(ETHERNET_AT + 16, 21 << 1)], ETHERNET_AT + 16, Value),
        (&[(ETHERNET_AT + 28, 65)], ETHERNET_AT + 28, Value),
        // RMR: ranges inside the header, beyond the end, empty, beyond the top.
        (&[(RMR_AT + 24, 27)], RMR_AT + 24, Value),
        (&[(RMR_AT + 24, 69)], RMR_AT + 20, Length),
        (&[(RMR_AT + 20, 3)], RMR_AT + 20, Length),
        (&[(RMR_AT + 23, 0xff)], RMR_AT + 20, Length),
        (&[(RMR_AT + 78, 0)], RMR_AT + 76, Value),
        (&[(RMR_AT + 83, 0xff), (RMR_AT + 75, 0xff)], RMR_AT + 76, Value),
        // Mappings: inside what comes before them, beyond the end, ids beyond the top.
        (&[(HOST_AT + 12, 39)], HOST_AT + 12, Value),
        (&[(HOST_AT + 12, 41)], HOST_AT + 8, Length),
        (&[(HOST_AT + 8, 4)], HOST_AT + 8, Length),
        (&[(HOST_AT + 11, 0xff)], HOST_AT + 8, Length),
        (&[(HOST_AT + 43, 0xff), (HOST_AT + 47, 0xff)], HOST_AT + 44, Value),
        (&[(HOST_AT + 51, 0xff), (HOST_AT + 50, 0xff), (HOST_AT + 46, 1)], HOST_AT + 44, Value),
    ];
    for (changes, offset, kind) in cases {
        assert_eq!(error_of(&with(changes)), (*offset, *kind), "{changes:?}");
    }
    // A node of revision 4 has no flag: an index beyond the mappings says that there is none.
    let table = with(&[(SMMU_AT + 3, 4), (SMMU_AT + 64, 2)]);
    let NodeKind::SmmuV3(smmu) = Iort::parse(&table).unwrap().node_at(SMMU_AT).unwrap().kind else { panic!() };
    assert_eq!(smmu.device_id_mapping, None);
}

#[test]
fn what_overlaps_is_rejected() {
    let overlap = |changes: &[(u32, u8)]| error_of(&with(changes));
    // The second range of the host begins inside the first, at its first id, around it.
    assert_eq!(overlap(&[(HOST_AT + 60, 0xff), (HOST_AT + 61, 0xbf)]), (HOST_AT + 60, ParseErrorKind::Overlap));
    assert_eq!(overlap(&[(HOST_AT + 61, 0x80)]), (HOST_AT + 60, ParseErrorKind::Overlap));
    assert_eq!(overlap(&[(HOST_AT + 61, 0x70)]), (HOST_AT + 60, ParseErrorKind::Overlap));
    // The third, not in rising order, ends inside the first, or two ids too far.
    assert_eq!(overlap(&[(HOST_AT + 85, 0x81)]), (HOST_AT + 80, ParseErrorKind::Overlap));
    assert_eq!(overlap(&[(HOST_AT + 80, 2)]), (HOST_AT + 80, ParseErrorKind::Overlap));
    assert!(Iort::parse(&with(&[(HOST_AT + 80, 1)])).is_ok(), "one id is the usual mistake");
    // A single mapping of a host is for all ids, so there is no room for others, before or after it.
    for flags in [HOST_AT + 56, HOST_AT + 76, HOST_AT + 96] {
        let second = if flags == HOST_AT + 96 { HOST_AT + 80 } else { HOST_AT + 60 };
        assert_eq!(overlap(&[(flags, 1)]), (second, ParseErrorKind::Overlap));
    }
    // Memory ranges.
    assert_eq!(overlap(&[(RMR_AT + 91, 0x90)]), (RMR_AT + 88, ParseErrorKind::Overlap));
}

#[test]
fn references_to_nothing_and_to_the_wrong_node_are_rejected() {
    let reference = |at: u32, to: u32| {
        let [low, high, ..] = to.to_le_bytes();
        error_of(&with(&[(at, low), (at + 1, high)]))
    };
    let host = HOST_AT + 52;
    for nothing in [0, 47, ITS_AT + 1, FUTURE_AT + 19, 0xffff] {
        assert_eq!(reference(host, nothing), (host, ParseErrorKind::Reference));
        assert_eq!(reference(PMCG_AT + 28, nothing), (PMCG_AT + 28, ParseErrorKind::Reference));
    }
    // A host, to a host (itself: a loop), a device, counters, memory.
    for wrong in [HOST_AT, ETHERNET_AT, PMCG_AT, RMR_AT] {
        assert_eq!(reference(host, wrong), (host, ParseErrorKind::Reference));
    }
    // An SMMU, to itself, to another SMMU, back to a host.
    for wrong in [SMMU_AT, SMALL_SMMU_AT, OLD_SMMU_AT, HOST_AT, ETHERNET_AT] {
        assert_eq!(reference(SMMU_AT + 80, wrong), (SMMU_AT + 80, ParseErrorKind::Reference));
    }
    // Counters to an SMMU, memory to interrupts.
    assert_eq!(reference(PMCG_AT + 52, SMMU_AT), (PMCG_AT + 52, ParseErrorKind::Reference));
    assert_eq!(reference(RMR_AT + 40, ITS_AT), (RMR_AT + 40, ParseErrorKind::Reference));
    // The second of two mappings.
    assert_eq!(reference(ETHERNET_AT + 72, HOST_AT), (ETHERNET_AT + 72, ParseErrorKind::Reference));
    // What a node of the future takes is not known, so it may be referred to; ids end there.
    let [low, high, ..] = FUTURE_AT.to_le_bytes();
    let table = with(&[(host, low), (host + 1, high)]);
    let iort = Iort::parse(&table).unwrap();
    let host = iort.node_at(HOST_AT).unwrap();
    assert!(iort.stream_of(&host, 0x8000).is_none() && iort.device_id_of(&host, 0x8000).is_none());
}

#[test]
fn names_of_devices_end_at_nul_or_at_the_mappings() {
    let name = |bytes: &[u8]| {
        let NodeKind::NamedComponent(device) = Node::from_bytes(bytes).unwrap().kind else { panic!() };
        device.name.to_vec()
    };
    let mut node = [0; 40];
    (node[0], node[1], node[29], node[39]) = (1, 40, b'A', b'B');
    assert_eq!(name(&node), b"A");
    node[29..].fill(b'C');
    assert_eq!(name(&node), [b'C'; 11]);
    let mut mapped = [b'D'; 60];
    mapped[..29].fill(0);
    (mapped[0], mapped[1], mapped[8], mapped[12]) = (1, 60, 1, 40);
    mapped[40..].fill(0);
    mapped[40] = b'E';
    assert_eq!(name(&mapped), [b'D'; 11]);
}
