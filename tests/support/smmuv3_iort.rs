//! An IORT in bytes (DEN 0049).

/// Requester ids and their StreamIDs: first id, how many, StreamID of the first.
pub(crate) type Mapping = (u32, u32, u32);

/// Whether a PCI host passes ATS on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    Plain,
    WithAts,
}

/// A memory range that streams use on firmware's behalf: first byte, bytes, StreamID.
pub(crate) type Reserved = (u64, u64, u32);

/// A platform device: its name, and the StreamID it has.
pub(crate) struct Component {
    pub(crate) name: &'static str,
    pub(crate) stream: u32,
    pub(crate) bears_stalls: bool,
}

/// A table with one SMMUv3, coherent or not, a PCI host, and reserved memory.
pub(crate) fn iort(coherent: u32, host: Host, mappings: &[Mapping], reserved: &[Reserved]) -> Vec<u8> {
    iort_with(coherent, host, mappings, reserved, &[])
}

/// As [`iort`], with platform devices.
pub(crate) fn iort_with(
    coherent: u32,
    host: Host,
    mappings: &[Mapping],
    reserved: &[Reserved],
    components: &[Component],
) -> Vec<u8> {
    const UNIT: u32 = 48;
    let mut nodes = Vec::new();
    // An SMMUv3 of revision 0: 60 bytes, no mapping.
    node(&mut nodes, 4, 0, 60, 0, 0);
    long(&mut nodes, 0x0905_0000);
    words(&mut nodes, &[coherent, 0, 0, 0, 0, 0, 0, 0, 0]);
    // A PCI host of revision 0, segment 0, and its mappings.
    node(&mut nodes, 2, 0, 32 + 20 * mappings.len(), mappings.len(), 32);
    words(&mut nodes, &[1, 3 << 24, u32::from(host == Host::WithAts), 0]);
    for (first, count, stream) in mappings {
        words(&mut nodes, &[*first, count - 1, *stream, UNIT, 0]);
    }
    for (start, bytes, stream) in reserved {
        // Reserved memory of revision 3, write-back: one range at 28, one mapping at 48.
        node(&mut nodes, 6, 3, 68, 1, 48);
        words(&mut nodes, &[5 << 2, 1, 28]);
        long(&mut nodes, *start);
        long(&mut nodes, *bytes);
        words(&mut nodes, &[0, 0, 0, *stream, UNIT, 1]);
    }
    for component in components {
        // A named component of revision 4: 13 bytes, the name, one mapping.
        let at = (16 + 13 + component.name.len() + 1).next_multiple_of(4);
        let start = nodes.len();
        node(&mut nodes, 1, 4, at + 20, 1, at as u32);
        words(&mut nodes, &[u32::from(component.bears_stalls), 1, 3 << 24]);
        nodes.push(64);
        nodes.extend(component.name.bytes());
        nodes.resize(start + at, 0);
        words(&mut nodes, &[0, 0, component.stream, UNIT, 1]);
    }
    let mut table = b"IORT".to_vec();
    words(&mut table, &[48 + nodes.len() as u32]);
    table.extend([6, 0]);
    table.extend(*b"HANDMDSAMPLE  ");
    words(&mut table, &[1, 0, 1, (2 + reserved.len() + components.len()) as u32, 48, 0]);
    table.extend(nodes);
    table[9] = table.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    table
}

/// Type, length, revision, identifier, mappings and where they are.
fn node(table: &mut Vec<u8>, kind: u8, revision: u8, bytes: usize, mappings: usize, at: u32) {
    table.push(kind);
    table.extend((bytes as u16).to_le_bytes());
    table.push(revision);
    words(table, &[table.len() as u32, mappings as u32, at]);
}

fn words(table: &mut Vec<u8>, words: &[u32]) {
    table.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}

fn long(table: &mut Vec<u8>, value: u64) {
    table.extend(value.to_le_bytes());
}
