//! The driver half: programs a VT-d unit.
