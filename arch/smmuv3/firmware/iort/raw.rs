//! Fixed parts of the table's nodes as they lie in memory (DEN 0049, section 3).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::acpi::layouts;

layouts! {
    /// The ACPI header with what IORT adds to it.
    48 TableHeader {
        _signature: [u8; 4],
        _length: U32,
        revision: u8,
        _checksum: u8,
        _oem: [u8; 26],
        node_count: U32,
        node_offset: U32,
        _reserved: U32,
    }
    /// Begins every node. `length` counts this header, the body and the id mappings.
    16 NodeHeader {
        kind: u8,
        length: U16,
        revision: u8,
        identifier: U32,
        mapping_count: U32,
        mapping_offset: U32,
    }
    /// One id mapping.
    20 RawMapping {
        input_base: U32,
        id_count: U32,
        output_base: U32,
        output_reference: U32,
        flags: U32,
    }
    /// How the accesses of a device behave.
    8 RawMemoryAccess {
        cache_coherency: U32,
        hints: u8,
        _reserved: U16,
        flags: u8,
    }
    /// ITS group, without the identifiers that follow.
    4 ItsGroupBody {
        count: U32,
    }
    /// Named component, without the name that follows.
    13 NamedComponentBody {
        flags: U32,
        memory: RawMemoryAccess,
        address_bits: u8,
    }
    /// Root complex of any revision.
    16 RootComplexBody {
        memory: RawMemoryAccess,
        ats: U32,
        segment: U32,
    }
    /// Root complex from revision 1 on.
    4 RootComplexLimits {
        address_bits: u8,
        pasid: U16,
        _reserved: u8,
    }
    /// SMMUv1 or SMMUv2, without the interrupts that follow.
    44 SmmuBody {
        base: U64,
        span: U64,
        model: U32,
        flags: U32,
        global_interrupt_offset: U32,
        context_interrupt_count: U32,
        context_interrupt_offset: U32,
        pmu_interrupt_count: U32,
        pmu_interrupt_offset: U32,
    }
    /// SMMUv3 of any revision.
    44 SmmuV3Body {
        base: U64,
        flags: U32,
        _reserved: U32,
        vatos: U64,
        model: U32,
        event: U32,
        pri: U32,
        gerror: U32,
        sync: U32,
    }
    /// SMMUv3 from revision 1 on.
    8 SmmuV3Later {
        proximity_domain: U32,
        device_id_mapping: U32,
    }
    /// Performance monitor of any revision; revision 1 adds the base of page 1.
    16 PmcgBody {
        base: U64,
        overflow: U32,
        reference: U32,
    }
    /// Reserved memory, without the ranges that follow.
    12 RmrBody {
        flags: U32,
        range_count: U32,
        range_offset: U32,
    }
    /// One range of reserved memory.
    20 RawRange {
        base: U64,
        length: U64,
        _reserved: U32,
    }
}

impl TableHeader {
    pub(super) const NODE_COUNT: u32 = core::mem::offset_of!(Self, node_count) as u32;
    pub(super) const NODE_OFFSET: u32 = core::mem::offset_of!(Self, node_offset) as u32;
}
