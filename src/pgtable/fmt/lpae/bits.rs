//! Descriptors bit by bit: DDI 0487, D8.3 "Translation table descriptor formats".

use crate::prot::Prot;

pub(super) const VALID: u64 = 1 << 0;
/// Set in tables, and in leaves of Arm's level 3.
pub(super) const NEXT: u64 = 1 << 1;
/// Accessed already: no fault, and nothing for hardware to set.
pub(super) const AF: u64 = 1 << 10;
/// One of a run of entries that may be cached as one (D8.6, "The Contiguous bit").
pub(super) const CONTIGUOUS: u64 = 1 << 52;
/// Ignored by hardware in tables, and left to software in leaves.
pub(super) const SOFTWARE: u64 = 1 << 55;

/// Inner shareable: every observer that is coherent. Other memory is taken as outer shareable anyway.
const SH_INNER: u64 = 3 << 8;
const SH_OUTER: u64 = 2 << 8;

/// Not global: tagged with the ASID.
const NOT_GLOBAL: u64 = 1 << 11;
/// AP\[1\]: unprivileged requests too.
const UNPRIVILEGED: u64 = 1 << 6;
/// AP\[2\].
const READ_ONLY: u64 = 1 << 7;
/// PXN and UXN.
const NO_EXECUTE: u64 = 3 << 53;
/// AttrIndx: a byte of [`LPAE_MAIR`].
const INDEX: u64 = 7 << 2;
const INDEX_WRITE_BACK: u64 = 0 << 2;
const INDEX_NON_CACHEABLE: u64 = 1 << 2;
const INDEX_DEVICE: u64 = 2 << 2;

/// The memory attributes that stage 1 leaves select by index, for the context that points to the table
/// (SMMUv3's `CD.MAIR0` and `CD.MAIR1`, low half first): 0 is normal memory, write-back, allocated on
/// reads and writes (0xff); 1 normal, non-cacheable (0x44); 2 device-nGnRE (0x04).
pub const LPAE_MAIR: u64 = 0x04_44_ff;

/// S2AP: read, and write.
const S2_READ: u64 = 1 << 6;
const S2_WRITE: u64 = 1 << 7;
/// XN\[1\] alone: not for any exception level, with and without the finer control of XN\[0\].
const S2_NO_EXECUTE: u64 = 1 << 54;
/// MemAttr.
const S2_MEMORY: u64 = 15 << 2;
const S2_WRITE_BACK: u64 = 15 << 2;
const S2_NON_CACHEABLE: u64 = 5 << 2;
const S2_DEVICE: u64 = 1 << 2;

/// What says of which kind memory is and how it is shared: AttrIndx or MemAttr, and SH. (Bit 5 is NS at
/// stage 1, and always clear.)
pub(super) const MEMORY: u64 = S2_MEMORY | INDEX | 3 << 8;

/// One of three values by the kind of memory, and how it is shared.
#[inline]
fn memory(prot: Prot, [write_back, non_cacheable, device]: [u64; 3]) -> u64 {
    if prot.contains(Prot::MMIO) {
        device | SH_OUTER
    } else if prot.contains(Prot::CACHE) {
        write_back | SH_INNER
    } else {
        non_cacheable | SH_OUTER
    }
}

/// What stage 1 says of `prot`, which permits something; `None` for writes without reads.
#[inline]
pub(super) fn stage1(prot: Prot) -> Option<u64> {
    if !prot.contains(Prot::READ) {
        return None;
    }
    let mut bits = NOT_GLOBAL | memory(prot, [INDEX_WRITE_BACK, INDEX_NON_CACHEABLE, INDEX_DEVICE]);
    if !prot.contains(Prot::WRITE) {
        bits |= READ_ONLY;
    }
    if !prot.contains(Prot::PRIV) {
        bits |= UNPRIVILEGED;
    }
    if prot.contains(Prot::NOEXEC) {
        bits |= NO_EXECUTE;
    }
    Some(bits)
}

#[inline]
pub(super) fn stage1_prot(entry: u64) -> Prot {
    let mut prot = Prot::READ;
    prot.set(Prot::WRITE, entry & READ_ONLY == 0);
    prot.set(Prot::PRIV, entry & UNPRIVILEGED == 0);
    prot.set(Prot::NOEXEC, entry & NO_EXECUTE != 0);
    prot.set(Prot::CACHE, entry & INDEX == INDEX_WRITE_BACK);
    prot.set(Prot::MMIO, entry & INDEX == INDEX_DEVICE);
    prot
}

/// What stage 2 says of `prot`, which permits something; `None` for privileged pages.
#[inline]
pub(super) fn stage2(prot: Prot) -> Option<u64> {
    if prot.contains(Prot::PRIV) {
        return None;
    }
    let mut bits = memory(prot, [S2_WRITE_BACK, S2_NON_CACHEABLE, S2_DEVICE]);
    if prot.contains(Prot::READ) {
        bits |= S2_READ;
    }
    if prot.contains(Prot::WRITE) {
        bits |= S2_WRITE;
    }
    if prot.contains(Prot::NOEXEC) {
        bits |= S2_NO_EXECUTE;
    }
    Some(bits)
}

#[inline]
pub(super) fn stage2_prot(entry: u64) -> Prot {
    let mut prot = Prot::empty();
    prot.set(Prot::READ, entry & S2_READ != 0);
    prot.set(Prot::WRITE, entry & S2_WRITE != 0);
    prot.set(Prot::NOEXEC, entry & S2_NO_EXECUTE != 0);
    prot.set(Prot::CACHE, entry & S2_MEMORY == S2_WRITE_BACK);
    prot.set(Prot::MMIO, entry & S2_MEMORY == S2_DEVICE);
    prot
}

/// An address of an entry as its bits: with the 64 KiB granule, 51:48 lie at 15:12.
#[inline]
pub(super) fn address<const G: u8>(phys: u64) -> u64 {
    if G == 16 { phys & low(48) | phys >> 36 & 0xf000 } else { phys }
}

/// The address in an entry.
#[inline]
pub(super) fn phys<const G: u8>(entry: u64) -> u64 {
    let address = entry & low(48) & !low(G);
    if G == 16 { address | (entry & 0xf000) << 36 } else { address }
}

const fn low(bits: u8) -> u64 {
    (1 << bits) - 1
}
