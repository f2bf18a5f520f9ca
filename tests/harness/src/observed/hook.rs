//! From stores to hardware memory to whoever observes it.

use std::ops::Range;
use std::sync::{Arc, Once, RwLock, Weak};

use iommu::PhysAddr;
use iommu::hwmem::observe;

use super::ObservedMemory;

struct Observed {
    /// Where the RAM lies in this process, and its physical address.
    addresses: Range<usize>,
    phys: u64,
    memory: Weak<ObservedMemory>,
}

static OBSERVED: RwLock<Vec<Observed>> = RwLock::new(Vec::new());

/// Stores to the RAM of `memory` are told to it as long as it lives.
pub(super) fn register(memory: &Arc<ObservedMemory>) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| observe::set_hook(stored));
    let mut observed = OBSERVED.write().unwrap_or_else(|poisoned| poisoned.into_inner());
    observed.retain(|observed| observed.memory.strong_count() > 0);
    for range in memory.ram().ranges() {
        if let Some(start) = memory.ram().pointer(range.start()) {
            let first = start.as_ptr() as usize;
            let bytes = range.bytes().map_or(usize::MAX, |bytes| bytes as usize);
            let addresses = first..first.saturating_add(bytes);
            observed.push(Observed { addresses, phys: range.start().as_u64(), memory: Arc::downgrade(memory) });
        }
    }
}

fn stored(address: usize, change: &mut dyn FnMut() -> Option<u64>) {
    let found = {
        let observed = OBSERVED.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        observed.iter().find(|observed| observed.addresses.contains(&address)).and_then(|observed| {
            let phys = observed.phys + (address - observed.addresses.start) as u64;
            Some((observed.memory.upgrade()?, PhysAddr::new(phys)))
        })
    };
    match found {
        Some((memory, phys)) => memory.store(phys, change),
        None => {
            change();
        }
    }
}
