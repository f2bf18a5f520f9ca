//! PCI configuration space, as far as DMA isolation needs it.
