//! The DMAR table: which units there are, and which devices they translate (VT-d section 8).
