//! Requests that wait for an answer (SMMU 3.12.2, 4.7.1).
//!
//! A unit must be answered once for each event that says so, and not for any other number. So who was
//! told of which is kept here. A stream that is attached to something else, or blocked, has those that it
//! left terminated one by one: CMD_STALL_TERM would also end requests whose events are not read yet, for
//! which an answer would follow (4.7.1).
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use crate::arch::smmuv3::layout::commands::Resume;
use crate::arch::smmuv3::layout::{Command, StreamId};
use crate::error::{Error, InvalidReason, Result};
use crate::fault::{StallAnswer, StallTag};
use crate::platform::Platform;
use crate::sync::Lock;
use crate::sync::atomic::{Ordering, fence};

/// Requests that wait at a time in one unit; one more is terminated.
pub(super) const MAX_HELD_STALLS: usize = 64;

/// Whether requests of a stream may wait now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Holds {
    /// They may.
    Yes,
    /// It was attached to something else meanwhile, or is blocked.
    No,
}

/// The requests of one unit that wait.
#[derive(Debug, Default)]
pub(super) struct HeldStalls {
    /// Innermost.
    list: Lock<heapless::Vec<(StreamId, u16), MAX_HELD_STALLS>>,
}

/// Executes a command.
pub(super) type Execute<'a> = dyn FnMut(Command) -> Result<()> + 'a;

impl HeldStalls {
    /// Takes note of a request that waits, as an event has said: gives the tag under which the kernel will
    /// answer it, or terminates it if it may not wait. `holds` tells what its stream is attached to. Any
    /// context.
    pub(super) fn hold<P: Platform>(
        &self,
        platform: &P,
        (stream, tag): (StreamId, u16),
        holds: impl Fn() -> Holds,
        execute: &mut Execute<'_>,
    ) -> Option<StallTag> {
        let noted = holds() == Holds::Yes && self.list.lock(platform).push((stream, tag)).is_ok();
        // Whoever attaches the stream to something else looks here afterwards.
        fence(Ordering::SeqCst);
        if noted && holds() == Holds::Yes {
            return Some(tag_of(stream, tag));
        }
        if !noted || self.take(platform, stream, tag) {
            // A unit that does not do it is fenced.
            let _ = execute(resume(stream, tag, StallAnswer::Terminate));
        }
        None
    }

    /// Answers a request. Any context.
    ///
    /// # Errors
    /// [`InvalidReason::NotWaiting`] when none waits under this tag; those of `execute`, after which it may
    /// be answered again.
    pub(super) fn answer<P: Platform>(
        &self,
        platform: &P,
        tag: StallTag,
        answer: StallAnswer,
        execute: &mut Execute<'_>,
    ) -> Result<()> {
        let (stream, tag) = (StreamId((tag.0 >> 16) as u32), tag.0 as u16);
        if !self.take(platform, stream, tag) {
            return Err(Error::Invalid(InvalidReason::NotWaiting));
        }
        execute(resume(stream, tag, answer)).inspect_err(|_| self.put_back(platform, stream, tag))
    }

    /// Terminates the requests of a stream that has been attached to something else, or blocked, and the
    /// unit told so. Any context.
    ///
    /// # Errors
    /// Those of `execute`: some wait on.
    pub(super) fn terminate<P: Platform>(
        &self,
        platform: &P,
        stream: StreamId,
        execute: &mut Execute<'_>,
    ) -> Result<()> {
        // What the stream is attached to is known before this look.
        fence(Ordering::SeqCst);
        while let Some(tag) = self.next_of(platform, stream) {
            let terminated = execute(resume(stream, tag, StallAnswer::Terminate));
            terminated.inspect_err(|_| self.put_back(platform, stream, tag))?;
        }
        Ok(())
    }

    /// Translation was turned off, which has terminated all of them. Task only.
    pub(super) fn clear<P: Platform>(&self, platform: &P) {
        self.list.lock(platform).clear();
    }

    fn take<P: Platform>(&self, platform: &P, stream: StreamId, tag: u16) -> bool {
        let mut list = self.list.lock(platform);
        let found = list.iter().position(|held| *held == (stream, tag));
        found.map(|index| list.swap_remove(index)).is_some()
    }

    fn next_of<P: Platform>(&self, platform: &P, stream: StreamId) -> Option<u16> {
        let mut list = self.list.lock(platform);
        let found = list.iter().position(|(of, _)| *of == stream)?;
        Some(list.swap_remove(found).1)
    }

    /// If others took its place meanwhile, it waits until translation goes off.
    fn put_back<P: Platform>(&self, platform: &P, stream: StreamId, tag: u16) {
        let _ = self.list.lock(platform).push((stream, tag));
    }
}

fn tag_of(stream: StreamId, tag: u16) -> StallTag {
    StallTag(u64::from(stream.0) << 16 | u64::from(tag))
}

fn resume(stream: StreamId, tag: u16, answer: StallAnswer) -> Command {
    let action = match answer {
        StallAnswer::Retry => Resume::Retry,
        StallAnswer::Terminate => Resume::Abort,
    };
    Command::Resume { stream, tag, action }
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;
    use core::cell::Cell;
    use std::boxed::Box;
    use std::vec;
    use std::vec::Vec;

    use super::{HeldStalls, Holds, MAX_HELD_STALLS, resume};
    use crate::arch::smmuv3::layout::commands::Resume;
    use crate::arch::smmuv3::layout::{Command, StreamId};
    use crate::error::{Error, InvalidReason};
    use crate::fault::{StallAnswer, StallTag};
    use crate::platform::{Arena, Frame};

    const STREAM: StreamId = StreamId(0xffff_fff0);
    const NOT_WAITING: Error = Error::Invalid(InvalidReason::NotWaiting);

    fn platform() -> &'static Arena {
        Arena::new(Box::leak(vec![Frame::ZERO; 1].into_boxed_slice())).unwrap()
    }

    #[test]
    fn a_request_is_answered_once() {
        let (platform, held, mut done) = (platform(), HeldStalls::default(), Vec::new());
        let mut execute = |command| {
            done.push(command);
            Ok(())
        };
        let [first, second] = [7, 0xffff].map(|tag| held.hold(&platform, (STREAM, tag), || Holds::Yes, &mut execute));
        let (first, second) = (first.unwrap(), second.unwrap());
        held.answer(&platform, second, StallAnswer::Terminate, &mut execute).unwrap();
        held.answer(&platform, first, StallAnswer::Retry, &mut execute).unwrap();
        for tag in [first, second, StallTag(1), StallTag(u64::MAX)] {
            assert_eq!(held.answer(&platform, tag, StallAnswer::Retry, &mut execute), Err(NOT_WAITING));
        }
        let of = |tag, action| Command::Resume { stream: STREAM, tag, action };
        assert_eq!(done, [of(0xffff, Resume::Abort), of(7, Resume::Retry)]);
    }

    #[test]
    fn what_may_not_wait_is_terminated() {
        let (platform, held, mut done) = (platform(), HeldStalls::default(), Vec::new());
        let mut execute = |command| {
            done.push(command);
            Ok(())
        };
        assert_eq!(held.hold(&platform, (STREAM, 1), || Holds::No, &mut execute), None);
        // It is attached to something else while the event is read.
        let looks = Cell::new(0);
        let meanwhile = || {
            looks.set(looks.get() + 1);
            if looks.get() == 1 { Holds::Yes } else { Holds::No }
        };
        assert_eq!(held.hold(&platform, (STREAM, 2), meanwhile, &mut execute), None);
        for tag in 0..MAX_HELD_STALLS as u16 {
            assert!(held.hold(&platform, (STREAM, 100 + tag), || Holds::Yes, &mut execute).is_some());
        }
        assert_eq!(held.hold(&platform, (STREAM, 3), || Holds::Yes, &mut execute), None);
        assert_eq!(done, [1, 2, 3].map(|tag| resume(STREAM, tag, StallAnswer::Terminate)));
    }

    #[test]
    fn a_stream_that_goes_takes_its_requests_along() {
        let (platform, held, mut done) = (platform(), HeldStalls::default(), Vec::new());
        let mut none = |_| -> Result<(), Error> { panic!("nothing to do") };
        let other = StreamId(5);
        for tag in 0..3 {
            held.hold(&platform, (STREAM, tag), || Holds::Yes, &mut none);
            held.hold(&platform, (other, tag), || Holds::Yes, &mut none);
        }
        let mut execute = |command| {
            done.push(command);
            Ok(())
        };
        held.terminate(&platform, STREAM, &mut execute).unwrap();
        assert_eq!(done.len(), 3);
        assert!((0..3).all(|tag| done.contains(&resume(STREAM, tag, StallAnswer::Terminate))));
        let tag = StallTag(u64::from(STREAM.0) << 16);
        assert_eq!(held.answer(&platform, tag, StallAnswer::Retry, &mut none), Err(NOT_WAITING));
        let tag = StallTag(u64::from(other.0) << 16);
        assert_eq!(held.answer(&platform, tag, StallAnswer::Retry, &mut |_| Ok(())), Ok(()));
    }

    #[test]
    fn an_answer_that_fails_can_be_given_again() {
        let (platform, held) = (platform(), HeldStalls::default());
        let tag = held.hold(&platform, (STREAM, 1), || Holds::Yes, &mut |_| Ok(())).unwrap();
        let mut fails = |_| Err(Error::Fenced);
        assert_eq!(held.answer(&platform, tag, StallAnswer::Retry, &mut fails), Err(Error::Fenced));
        assert_eq!(held.terminate(&platform, STREAM, &mut fails), Err(Error::Fenced));
        assert_eq!(held.answer(&platform, tag, StallAnswer::Retry, &mut |_| Ok(())), Ok(()));
    }
}
