//! What a unit in software chooses: as the fuzzer's bytes have it.

use std::sync::Mutex;

use iommu::bus::{Chooser, Fracture, Precision, Retention};

pub struct Choices(Mutex<Vec<u8>>);

impl Choices {
    /// The bytes are taken from the end; without any left, everything is in order.
    pub fn new(bytes: &[u8]) -> Self {
        Self(Mutex::new(bytes.to_vec()))
    }

    fn next(&self) -> u8 {
        self.0.lock().unwrap().pop().unwrap_or(0)
    }
}

impl Chooser for Choices {
    fn choose(&self, _: usize) -> usize {
        usize::from(self.next())
    }

    fn retention(&self) -> Retention {
        if self.next() & 31 == 31 { Retention::Evict } else { Retention::Keep }
    }

    fn precision(&self) -> Precision {
        if self.next() & 7 == 7 { Precision::Coarse } else { Precision::Exact }
    }

    fn fracture(&self) -> Fracture {
        if self.next() & 3 == 3 { Fracture::Pieces } else { Fracture::Whole }
    }
}
