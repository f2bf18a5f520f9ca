//! What a unit in software chooses: the first of everything, or as a seed has it.

use iommu::bus::{Chooser, Fracture, InOrder, Precision, Retention, Seeded};

pub enum Choices {
    InOrder,
    Seeded(Seeded),
}

impl Choices {
    /// Those of a seed, or everything in order.
    pub fn of(seed: Option<u64>) -> Self {
        seed.map_or(Self::InOrder, |seed| Self::Seeded(Seeded::new(seed)))
    }

    fn chooser(&self) -> &dyn Chooser {
        match self {
            Self::InOrder => &InOrder,
            Self::Seeded(seeded) => seeded,
        }
    }
}

impl Chooser for Choices {
    fn choose(&self, choices: usize) -> usize {
        self.chooser().choose(choices)
    }

    fn retention(&self) -> Retention {
        self.chooser().retention()
    }

    fn precision(&self) -> Precision {
        self.chooser().precision()
    }

    fn fracture(&self) -> Fracture {
        self.chooser().fracture()
    }
}
