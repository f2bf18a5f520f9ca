//! Legacy mode: the context entry itself translates a requester's requests (VT-d 3.4.2).

use super::context::Context;
use super::site;
use super::translation::{Cached, Translation};
use super::unit::{Changed, VtdUnit};
use crate::arch::vtd::layout::ContextEntry;
use crate::platform::Platform;

impl<P: Platform> VtdUnit<P> {
    /// Makes a context entry say `new`, or makes it absent.
    ///
    /// It passes through absent: it holds the table in one half and the domain id in the other, and
    /// hardware must not see both halves change.
    pub(super) fn change_context(&self, context: &Context<'_, P>, requester: u16, new: Option<Translation>) -> Changed {
        let before = context.withdraw().map(Cached::of_context_entry);
        let gone = before.map_or(Ok(()), |cached| self.forget_context(requester, cached));
        context.clear();
        let Some(new) = new.filter(|_| gone.is_ok()) else { return Changed { before, gone, shown: None } };
        context.publish(self.context_entry(new));
        let shown = if self.capabilities().caches_absent() {
            self.forget_absent_context(requester, new.cached())
        } else {
            self.flush_write_buffer(site::PRESENT_WRITE_BUFFER)
        };
        Changed { before, gone, shown: Some(shown) }
    }

    pub(super) fn context_entry(&self, translation: Translation) -> ContextEntry {
        translation.context_entry(self.capabilities())
    }
}
