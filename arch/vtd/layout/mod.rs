//! Bits of registers and structures in memory, each defined once with its section.
