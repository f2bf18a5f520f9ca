//! What descriptors permit (Arm ARM D8.4; SMMU 13.4).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use bitflags::bitflags;

use super::{Access, Privilege};

bitflags! {
    /// What is permitted to whom. Stages permit together what each of them does.
    ///
    /// ```
    /// use iommu::arch::smmuv3::device::walk::{Access, Permissions, Privilege};
    /// let permitted = Permissions::PRIVILEGED_READ | Permissions::PRIVILEGED_WRITE;
    /// assert!(permitted.permit(Access::Atomic, Privilege::Privileged));
    /// assert!(!permitted.permit(Access::Read, Privilege::Unprivileged));
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Permissions: u8 {
        /// Privileged requests may read data.
        const PRIVILEGED_READ = 1 << 0;
        /// Privileged requests may write.
        const PRIVILEGED_WRITE = 1 << 1;
        /// Privileged requests may read instructions.
        const PRIVILEGED_EXECUTE = 1 << 2;
        /// Unprivileged requests may read data.
        const UNPRIVILEGED_READ = 1 << 3;
        /// Unprivileged requests may write.
        const UNPRIVILEGED_WRITE = 1 << 4;
        /// Unprivileged requests may read instructions.
        const UNPRIVILEGED_EXECUTE = 1 << 5;
    }
}

impl Permissions {
    const READ: Self = Self::PRIVILEGED_READ.union(Self::UNPRIVILEGED_READ);
    const WRITE: Self = Self::PRIVILEGED_WRITE.union(Self::UNPRIVILEGED_WRITE);
    const PRIVILEGED: Self = Self::PRIVILEGED_READ.union(Self::PRIVILEGED_WRITE).union(Self::PRIVILEGED_EXECUTE);

    /// Whether somebody may do something.
    pub const fn permit(self, access: Access, privilege: Privilege) -> bool {
        let (read, write, execute) = match privilege {
            Privilege::Privileged => (Self::PRIVILEGED_READ, Self::PRIVILEGED_WRITE, Self::PRIVILEGED_EXECUTE),
            Privilege::Unprivileged => (Self::UNPRIVILEGED_READ, Self::UNPRIVILEGED_WRITE, Self::UNPRIVILEGED_EXECUTE),
        };
        match access {
            Access::Read => self.contains(read),
            Access::Write => self.contains(write),
            Access::Execute => self.contains(execute),
            Access::Atomic => self.contains(read.union(write)),
        }
    }

    /// Whether somebody may write and not read, which is all that an atomic operation lacks.
    pub(in crate::arch::smmuv3::device) const fn lack_read_only(self, access: Access, privilege: Privilege) -> bool {
        matches!(access, Access::Atomic) && self.permit(Access::Write, privilege)
    }
}

/// Whom a stage-1 table is for (SMMU 13.4.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ownership {
    /// NS-EL1 and NS-EL2-E2H.
    BothPrivileges,
    /// NS-EL2: every request is taken for privileged.
    OnePrivilege,
}

/// What CD says of permissions beyond the tables: WXN, PAN and EPAN. UWXN is not for AArch64 tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Controls {
    pub ownership: Ownership,
    pub no_execute_if_writable: bool,
    pub no_privileged_access: bool,
    pub enhanced: bool,
}

/// What a table descriptor of stage 1 leaves permitted (APTable, XNTable or UXNTable, PXNTable; Arm ARM D8.4.1).
pub(super) fn hierarchical(entry: u64, ownership: Ownership) -> Permissions {
    const PXN: u64 = 1 << 59;
    const XN: u64 = 1 << 60;
    const NOT_UNPRIVILEGED: u64 = 1 << 61;
    const READ_ONLY: u64 = 1 << 62;
    let mut left = Permissions::all();
    left.set(Permissions::WRITE, entry & READ_ONLY == 0);
    match ownership {
        Ownership::BothPrivileges => {
            if entry & NOT_UNPRIVILEGED != 0 {
                left.remove(Permissions::UNPRIVILEGED_READ | Permissions::UNPRIVILEGED_WRITE);
            }
            left.set(Permissions::PRIVILEGED_EXECUTE, entry & PXN == 0);
            left.set(Permissions::UNPRIVILEGED_EXECUTE, entry & XN == 0);
        }
        Ownership::OnePrivilege => {
            left.set(Permissions::PRIVILEGED_EXECUTE | Permissions::UNPRIVILEGED_EXECUTE, entry & XN == 0);
        }
    }
    left
}

/// What a leaf of stage 1 permits, under tables that leave `rights`.
pub(super) fn stage1(entry: u64, rights: Permissions, controls: &Controls) -> Permissions {
    const UNPRIVILEGED: u64 = 1 << 6;
    const READ_ONLY: u64 = 1 << 7;
    const PXN: u64 = 1 << 53;
    const XN: u64 = 1 << 54;
    let mut permitted = Permissions::all();
    permitted.set(Permissions::WRITE, entry & READ_ONLY == 0);
    if controls.ownership == Ownership::OnePrivilege {
        permitted.set(Permissions::PRIVILEGED_EXECUTE | Permissions::UNPRIVILEGED_EXECUTE, entry & XN == 0);
        permitted &= rights;
        if controls.no_execute_if_writable && permitted.contains(Permissions::PRIVILEGED_WRITE) {
            permitted.remove(Permissions::PRIVILEGED_EXECUTE | Permissions::UNPRIVILEGED_EXECUTE);
        }
        return permitted;
    }
    if entry & UNPRIVILEGED == 0 {
        permitted.remove(Permissions::UNPRIVILEGED_READ | Permissions::UNPRIVILEGED_WRITE);
    }
    permitted.set(Permissions::PRIVILEGED_EXECUTE, entry & PXN == 0);
    permitted.set(Permissions::UNPRIVILEGED_EXECUTE, entry & XN == 0);
    permitted &= rights;
    if permitted.contains(Permissions::UNPRIVILEGED_WRITE) {
        permitted.remove(Permissions::PRIVILEGED_EXECUTE);
    }
    // PAN looks at what the unprivileged may, before WXN.
    let mut open = permitted.intersects(Permissions::UNPRIVILEGED_READ | Permissions::UNPRIVILEGED_WRITE);
    open |= controls.enhanced && permitted.contains(Permissions::UNPRIVILEGED_EXECUTE);
    if controls.no_execute_if_writable {
        if permitted.contains(Permissions::PRIVILEGED_WRITE) {
            permitted.remove(Permissions::PRIVILEGED_EXECUTE);
        }
        if permitted.contains(Permissions::UNPRIVILEGED_WRITE) {
            permitted.remove(Permissions::UNPRIVILEGED_EXECUTE);
        }
    }
    if controls.no_privileged_access && open {
        permitted.remove(Permissions::PRIVILEGED.difference(Permissions::PRIVILEGED_EXECUTE));
    }
    permitted
}

/// Whether execute-never of stage 2 tells privileged from unprivileged (IDR3.XNX).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ExecuteNever {
    /// One bit, 54, for both.
    ForAll,
    /// Bits 54:53.
    ForEach,
}

/// What a leaf of stage 2 permits (S2AP, XN).
pub(super) fn stage2(entry: u64, execute_never: ExecuteNever) -> Permissions {
    const READ: u64 = 1 << 6;
    const WRITE: u64 = 1 << 7;
    let never = entry >> 53 & 0b11;
    let mut permitted = Permissions::empty();
    permitted.set(Permissions::READ, entry & READ != 0);
    permitted.set(Permissions::WRITE, entry & WRITE != 0);
    let (privileged, unprivileged) = match execute_never {
        ExecuteNever::ForAll => (never & 0b10 == 0, never & 0b10 == 0),
        ExecuteNever::ForEach => (matches!(never, 0b00 | 0b11), matches!(never, 0b00 | 0b01)),
    };
    permitted.set(Permissions::PRIVILEGED_EXECUTE, privileged);
    permitted.set(Permissions::UNPRIVILEGED_EXECUTE, unprivileged);
    permitted
}
