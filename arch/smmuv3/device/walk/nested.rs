//! A request through the stages that its stream has (SMMU 3.4, 13.4, 15).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use super::stage1::{Stage1, stage1};
use super::stage2::{self, Intermediate, stage2};
use super::{
    Attributes, Context, Fault, Leaf, Lookup, Permissions, Retained, StructureCache, is_beyond, low_bits, output_size,
};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::device::Host;
use crate::arch::smmuv3::layout::Identification;
use crate::arch::smmuv3::layout::events::{EventKind, FaultClass};

/// Where a request goes, and what a TLB may keep of it, tagged as [`Context::tags`] says.
///
/// ```
/// use iommu::arch::smmuv3::device::walk::{Attributes, Translation};
/// let passes = Translation::untranslated(Attributes::INCOMING);
/// assert_eq!((passes.translate(0x1234).as_u64(), passes.block_bits), (0x1234, 64));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The first byte of the block, behind the unit.
    pub output: PhysAddr,
    /// log2 of the bytes of the naturally aligned block around the address for which this holds: what both
    /// stages map alike. 64 when none translates.
    pub block_bits: u8,
    /// The same, if the runs that descriptors tell of are taken at their word
    /// ([`Leaf::contiguous_bits`]).
    pub contiguous_bits: u8,
    /// What stage 1 made of the address.
    pub stage1: Option<Leaf>,
    /// What stage 2 made of that.
    pub stage2: Option<Leaf>,
    /// What all stages permit.
    pub permissions: Permissions,
    /// The type of memory.
    pub attributes: Attributes,
}

impl Translation {
    /// That of a request that no stage translates.
    pub const fn untranslated(attributes: Attributes) -> Self {
        Self {
            output: PhysAddr::new(0),
            block_bits: 64,
            contiguous_bits: 64,
            stage1: None,
            stage2: None,
            permissions: Permissions::all(),
            attributes,
        }
    }

    /// Where `address` goes, which must be of the block that was walked for.
    pub const fn translate(&self, address: u64) -> PhysAddr {
        PhysAddr::new(self.output.as_u64() | address & low_bits(self.block_bits))
    }

    /// Whether it may be kept.
    pub fn retained(&self) -> Retained {
        let kept = |leaf: Option<Leaf>| leaf.is_none_or(|leaf| leaf.retained == Retained::Freely);
        if kept(self.stage1) && kept(self.stage2) { Retained::Freely } else { Retained::Not }
    }
}

/// Translates the address of a request, for which `lookup` says what the STE has made of it
/// ([`overridden`](super::overridden)).
///
/// Reads at most 35 descriptors.
///
/// # Errors
/// F_ADDR_SIZE where stage 1 is bypassed; those of [`super::stage1::stage1`] and
/// [`super::stage2::stage2`].
pub fn translate<H: Host + ?Sized, C: StructureCache + ?Sized>(
    host: &H,
    identification: &Identification,
    context: &Context,
    lookup: &Lookup,
    cache: &mut C,
) -> Result<Translation, Fault> {
    let ste = &context.ste;
    let incoming = Attributes::incoming(identification, ste);
    let first = match &context.cd {
        Some(cd) => {
            let root = Stage1 { ste, cd, world: context.world };
            Some(stage1(host, identification, &root, lookup, cache)?)
        }
        // 3.4: the size of an intermediate address is that of a physical one.
        None if is_beyond(lookup.address, output_size(identification)) => {
            return Err(Fault::stage1(EventKind::F_ADDR_SIZE));
        }
        None => None,
    };
    if !ste.config().has_stage2() {
        return Ok(compose(identification, context, incoming, (first, None), lookup));
    }
    let (address, attributes) = match &first {
        Some(leaf) => (leaf.translate(lookup.address), Attributes::from_mair(leaf.memory, leaf.shareability)),
        None => (lookup.address, incoming),
    };
    let Lookup { access, privilege, goal, .. } = *lookup;
    let what = Intermediate { address, class: FaultClass::Input, access, privilege, goal, attributes };
    let second = stage2(host, identification, ste, &what, cache)?;
    Ok(compose(identification, context, incoming, (first, Some(second)), lookup))
}

/// Puts together what the stages made of the address of `lookup`, also for who kept that of each of them.
pub fn compose(
    identification: &Identification,
    context: &Context,
    incoming: Attributes,
    (first, second): (Option<Leaf>, Option<Leaf>),
    lookup: &Lookup,
) -> Translation {
    let mut result = Translation { stage1: first, stage2: second, ..Translation::untranslated(incoming) };
    let mut address = lookup.address;
    if let Some(leaf) = first {
        address = leaf.translate(address);
        result.block_bits = leaf.bits;
        result.contiguous_bits = leaf.contiguous_bits;
        result.permissions = leaf.permissions;
        result.attributes = Attributes::from_mair(leaf.memory, leaf.shareability);
    }
    if let Some(leaf) = second {
        address = leaf.translate(address);
        result.block_bits = result.block_bits.min(leaf.bits);
        result.contiguous_bits = result.contiguous_bits.min(leaf.contiguous_bits);
        result.permissions &= leaf.permissions;
        result.attributes = stage2::attributes(identification, &context.ste, result.attributes, &leaf);
    }
    result.output = PhysAddr::new(address & !low_bits(result.block_bits));
    result
}
