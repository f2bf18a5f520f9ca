//! Stream tables as a unit reads them.

use iommu::arch::smmuv3::layout::registers::{StreamTableFormat, StrtabBase, StrtabBaseCfg};
use iommu::arch::smmuv3::layout::{Cd, L1Std, Ste, StreamId};

use crate::hardware::Machine;

/// The entry that the unit finds for a stream, in what is visible to it (SMMU 3.3.1).
pub(crate) fn entry(machine: &Machine, stream: StreamId) -> Option<Ste> {
    let (base, cfg) = {
        let hardware = machine.hardware();
        (StrtabBase(hardware.stream_table).address().as_u64(), StrtabBaseCfg(hardware.stream_table_cfg))
    };
    assert!(u64::from(stream.0) >> cfg.log2_size() == 0);
    let table = match cfg.format() {
        StreamTableFormat::Linear => base + u64::from(stream.0) * 64,
        StreamTableFormat::TwoLevel { split } => {
            let descriptor = L1Std(machine.visible(base + u64::from(stream.0 >> split) * 8));
            assert_eq!(descriptor.entries_log2()?, split);
            descriptor.table().as_u64() + u64::from(stream.0 & ((1 << split) - 1)) * 64
        }
    };
    Some(Ste { words: core::array::from_fn(|word| machine.visible(table + word as u64 * 8)) })
}

/// The descriptor that an entry leads to.
pub(crate) fn descriptor(machine: &Machine, entry: Ste) -> Cd {
    let table = entry.cd_table().as_u64();
    Cd { words: core::array::from_fn(|word| machine.visible(table + word as u64 * 8)) }
}
