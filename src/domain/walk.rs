//! Going through the mappings of a domain.

use super::Domain;
use crate::addr::{Iova, IovaRange};
use crate::pgtable::Run;

/// The mappings of a domain inside a range, as runs of equal pages. Made by [`Domain::walk`].
///
/// Between two runs no claim on the domain is held: mappings that change meanwhile are seen or not.
#[derive(Clone, Debug)]
#[must_use]
pub struct Walk<'d> {
    domain: &'d Domain,
    next: Option<Iova>,
    last: Iova,
}

impl<'d> Walk<'d> {
    pub(super) fn new(domain: &'d Domain, range: IovaRange) -> Self {
        Self { domain, next: Some(range.start()), last: range.last() }
    }
}

impl Iterator for Walk<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let from = self.next.filter(|from| *from <= self.last)?;
        let mut run = self.domain.ops().next_run(from, self.last)?;
        // A table's end ends what one call finds, though the run may go on behind it.
        while let Some(more) = run
            .range
            .last()
            .checked_add(1)
            .filter(|after| *after <= self.last)
            .and_then(|after| self.domain.ops().next_run(after, self.last))
        {
            if run.extend(&more).is_break() {
                break;
            }
        }
        self.next = run.range.last().checked_add(1);
        Some(run)
    }
}
