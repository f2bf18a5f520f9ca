use std::sync::Arc;

use iommu::{PhysAddr, PhysRange};

use super::{Adversary, Event, FREED, ObservedMemory, Reader};
use crate::ram::GuestRam;

const FRAME: PhysAddr = PhysAddr::new(0x1000);
/// Two words in different lines.
const DATA: PhysAddr = PhysAddr::new(0x1000);
const FLAG: PhysAddr = PhysAddr::new(0x1100);

/// A frame of zeros that everybody sees.
fn memory(adversary: Adversary) -> Arc<ObservedMemory> {
    let range = PhysRange::from_len(PhysAddr::new(0x1000), 0x4000).unwrap();
    let memory = ObservedMemory::new(Arc::new(GuestRam::private(&[range]).unwrap()), adversary);
    memory.allocated(FRAME, 0);
    memory.publish();
    memory.clean(FRAME, 4096);
    memory.told();
    memory
}

fn store(memory: &ObservedMemory, at: PhysAddr, value: u64) {
    memory.store(at, &mut || {
        memory.word(at).unwrap().store(value, std::sync::atomic::Ordering::SeqCst);
        Some(value)
    });
}

/// What a device may see of a flag and then of the data, by every adversary.
fn outcomes(reader: Reader, driver: impl Fn(&ObservedMemory)) -> Vec<(u64, u64)> {
    let mut outcomes: Vec<_> = (0..64)
        .map(|seed| {
            let memory = memory(Adversary::from_seed(seed));
            driver(&memory);
            assert_eq!(memory.violations(), Vec::<String>::new());
            (memory.read(FLAG, reader).unwrap(), memory.read(DATA, reader).unwrap())
        })
        .collect();
    outcomes.sort();
    outcomes.dedup();
    outcomes
}

#[test]
fn with_a_barrier_a_message_is_there_when_the_flag_is() {
    let seen = outcomes(Reader::Snoops, |memory| {
        store(memory, DATA, 1);
        memory.publish();
        store(memory, FLAG, 1);
    });
    assert_eq!(seen, [(0, 0), (0, 1), (1, 1)]);
}

#[test]
fn without_a_barrier_the_flag_may_come_first() {
    let seen = outcomes(Reader::Snoops, |memory| {
        store(memory, DATA, 1);
        store(memory, FLAG, 1);
    });
    assert_eq!(seen, [(0, 0), (0, 1), (1, 0), (1, 1)]);
}

#[test]
fn a_register_write_follows_barriers_and_is_none() {
    let seen = outcomes(Reader::Snoops, |memory| {
        store(memory, DATA, 1);
        memory.publish();
        store(memory, FLAG, 1);
        memory.told();
    });
    assert_eq!(seen, [(0, 1), (1, 1)]);
}

#[test]
fn a_word_is_seen_in_order() {
    for seed in 0..32 {
        let memory = memory(Adversary::from_seed(seed));
        (1..=9).for_each(|value| store(&memory, DATA, value));
        let mut before = 0;
        for _read in 0..9 {
            let seen = memory.read(DATA, Reader::Snoops).unwrap();
            assert!(seen >= before);
            before = seen;
        }
    }
}

#[test]
fn two_words_may_be_torn_and_a_store_of_both_is_not() {
    let pair = |change: fn(&ObservedMemory)| -> Vec<[u64; 2]> {
        let mut seen: Vec<_> = (0..64)
            .map(|seed| {
                let memory = memory(Adversary::from_seed(seed));
                change(&memory);
                memory.read_pair(DATA, Reader::Snoops).unwrap()
            })
            .collect();
        seen.sort();
        seen.dedup();
        seen
    };
    let high = PhysAddr::new(DATA.as_u64() + 8);
    let torn = pair(|memory| {
        store(memory, PhysAddr::new(DATA.as_u64() + 8), 1);
        store(memory, DATA, 1);
    });
    assert_eq!(torn, [[0, 0], [0, 1], [1, 0], [1, 1]]);
    let whole = pair(|memory| memory.store_pair(DATA, [1, 1], &mut || {}));
    assert_eq!(whole, [[0, 0], [1, 1]]);
    // Two reads, of which the second comes later, are no one access.
    for seed in 0..64 {
        let memory = memory(Adversary::from_seed(seed));
        memory.store_pair(DATA, [1, 1], &mut || {});
        let (first, second) = (memory.read(high, Reader::Snoops), memory.read(DATA, Reader::Snoops));
        assert!(first <= second);
    }
}

#[test]
fn a_walker_that_does_not_snoop_sees_what_was_cleaned() {
    let dirty = |memory: &ObservedMemory| {
        store(memory, DATA, 1);
        memory.publish();
        store(memory, FLAG, 1);
        memory.publish();
        memory.told();
    };
    assert_eq!(outcomes(Reader::Snoops, dirty), [(1, 1)]);
    // Lines are evicted as they like, whatever barriers say.
    assert_eq!(outcomes(Reader::ReadsMemory, dirty), [(0, 0), (0, 1), (1, 0), (1, 1)]);
    let cleaned = |memory: &ObservedMemory| {
        dirty(memory);
        // The whole line.
        memory.clean(PhysAddr::new(DATA.as_u64() + 56), 8);
    };
    assert_eq!(outcomes(Reader::ReadsMemory, cleaned), [(0, 1), (1, 1)]);
}

#[test]
fn a_line_is_written_back_in_one_piece() {
    let (low, high) = (DATA, PhysAddr::new(DATA.as_u64() + 8));
    for reader in [Reader::Snoops, Reader::ReadsMemory] {
        let mut seen: Vec<_> = (0..64)
            .map(|seed| {
                let memory = memory(Adversary::from_seed(seed));
                store(&memory, high, 1);
                memory.publish();
                store(&memory, low, 1);
                memory.read_pair(low, reader).unwrap()
            })
            .collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen, [[0, 0], [0, 1], [1, 1]]);
    }
}

#[test]
fn write_buffers_keep_what_was_cleaned_until_they_are_flushed() {
    let memory = memory(Adversary::Stalest);
    memory.hold_write_buffers();
    store(&memory, DATA, 1);
    memory.clean(DATA, 8);
    store(&memory, DATA, 2);
    assert_eq!(memory.read(DATA, Reader::ReadsMemory), Some(0));
    memory.flush_write_buffers();
    assert_eq!(memory.read(DATA, Reader::ReadsMemory), Some(1), "what was stored since is not cleaned");
}

#[test]
fn a_new_frame_is_stale_until_its_zeros_are_there() {
    let memory = memory(Adversary::Stalest);
    let new = PhysAddr::new(0x2000);
    memory.allocated(new, 0);
    assert_eq!(memory.read(new, Reader::Snoops), Some(FREED));
    assert_eq!(memory.violations().len(), 1);
    memory.publish();
    memory.told();
    assert_eq!(memory.read(new, Reader::Snoops), Some(0));
    assert_eq!(memory.read(new, Reader::ReadsMemory), Some(FREED));
    memory.clean(new, 8);
    assert_eq!(memory.read(new, Reader::ReadsMemory), Some(0));
    assert_eq!(memory.violations().len(), 2);
}

#[test]
fn freed_frames_are_poison_and_reading_or_writing_them_is_held_against_the_driver() {
    let memory = memory(Adversary::Newest);
    store(&memory, DATA, 7);
    memory.freed(FRAME, 0);
    assert_eq!(memory.read(DATA, Reader::Snoops), Some(FREED));
    memory.write32(FLAG, 1).unwrap();
    assert_eq!(memory.violations().len(), 2);
}

#[test]
fn what_the_device_writes_everybody_sees() {
    let memory = memory(Adversary::Stalest);
    store(&memory, DATA, 1);
    memory.write32(PhysAddr::new(DATA.as_u64() + 4), 2).unwrap();
    assert_eq!(memory.read(DATA, Reader::ReadsMemory), Some(2 << 32 | 1));
    // A locked access looks at what was stored last, and so does whoever reads after it.
    store(&memory, DATA, 5);
    assert_eq!(memory.read(DATA, Reader::Snoops), Some(2 << 32 | 1));
    assert_eq!(memory.compare_exchange(DATA, 2 << 32 | 1, 9), Some(false));
    assert_eq!(memory.read(DATA, Reader::Snoops), Some(5));
    assert_eq!(memory.compare_exchange(DATA, 5, 9), Some(true));
    assert_eq!(memory.word(DATA).unwrap().load(std::sync::atomic::Ordering::SeqCst), 9);
    assert_eq!(memory.read(PhysAddr::new(0x9000), Reader::Snoops), None);
}

#[test]
fn threads_have_barriers_of_their_own() {
    let memory = memory(Adversary::Stalest);
    store(&memory, DATA, 1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            store(&memory, FLAG, 1);
            memory.publish();
            memory.told();
        });
    });
    assert_eq!((memory.read(FLAG, Reader::Snoops), memory.read(DATA, Reader::Snoops)), (Some(1), Some(0)));
}

#[test]
fn a_probe_comes_between_two_stores() {
    let memory = memory(Adversary::Newest);
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (inside, list) = (memory.clone(), seen.clone());
    memory.set_probe(Some(Arc::new(move |event| {
        // No event of its own.
        inside.told();
        list.lock().unwrap().push((event, inside.read(DATA, Reader::Snoops).unwrap()));
    })));
    store(&memory, DATA, 1);
    memory.publish();
    store(&memory, DATA, 2);
    memory.set_probe(None);
    assert_eq!(*seen.lock().unwrap(), [(Event::Store, 1), (Event::Publish, 1), (Event::Store, 2)]);
}

/// The real thing: hardware memory of the crate, through the platform.
#[cfg(observed)]
#[test]
fn stores_of_a_driver_are_seen_through_its_platform() {
    use iommu::PciAddress;
    use iommu::hwmem::FrameTable;
    use iommu::platform::Platform;

    use crate::bus::{Bus, Width};
    use crate::{FramePool, MachinePlatform, Result};

    struct NoBus;
    impl Bus for NoBus {
        fn read(&self, _: PhysAddr, _: Width) -> Result<u64> {
            Ok(u64::MAX)
        }
        fn write(&self, _: PhysAddr, _: Width, _: u64) -> Result<()> {
            Ok(())
        }
        fn config_read32(&self, _: PciAddress, _: u16) -> Result<u32> {
            Ok(u32::MAX)
        }
        fn config_write32(&self, _: PciAddress, _: u16, _: u32) -> Result<()> {
            Ok(())
        }
    }

    let range = PhysRange::from_len(PhysAddr::new(0x1000), 0x4000).unwrap();
    let ram = Arc::new(GuestRam::private(&[range]).unwrap());
    let memory = ObservedMemory::new(ram.clone(), Adversary::Stalest);
    let platform = MachinePlatform::with_observed(Arc::new(NoBus), FramePool::new(ram, range), memory.clone());
    let table = FrameTable::new(platform.clone(), 0, PhysAddr::new(u64::MAX)).unwrap();
    platform.publish();
    memory.told();
    let at = PhysAddr::new(table.phys().as_u64() + 24);
    table.view().entry(3).store(7);
    assert_eq!(memory.read(at, Reader::Snoops), Some(0));
    assert_eq!(table.view().entry(3).compare_exchange(8, 9), Err(7));
    platform.publish();
    memory.told();
    assert_eq!(memory.read(at, Reader::Snoops), Some(7));
    assert_eq!(memory.read(at, Reader::ReadsMemory), Some(FREED));
    drop(table);
    assert_eq!(memory.read(at, Reader::Snoops), Some(FREED));
}
