//! What a mapping permits.

bitflags::bitflags! {
    /// What a mapping permits and how it behaves (Linux's `IOMMU_READ` and so on, with the same
    /// numbers).
    ///
    /// ```
    /// use iommu::Prot;
    /// let prot = Prot::READ | Prot::WRITE;
    /// assert!(prot.contains(Prot::READ));
    /// assert_eq!(Prot::RW, prot);
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Prot: u32 {
        /// The device may read.
        const READ = 1;
        /// The device may write.
        const WRITE = 2;
        /// Accesses snoop the processor's caches, where that is a choice of the mapping.
        const CACHE = 4;
        /// The device may not execute.
        const NOEXEC = 8;
        /// The target is device memory, not RAM.
        const MMIO = 16;
        /// Only privileged requests are permitted.
        const PRIV = 32;
        /// Read and write.
        const RW = Self::READ.bits() | Self::WRITE.bits();
    }
}
