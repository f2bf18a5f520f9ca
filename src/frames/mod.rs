//! Containers in frames: they grow with the machine and need no heap.
