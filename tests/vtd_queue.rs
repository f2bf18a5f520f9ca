//! The invalidation queue against a unit in software that misbehaves on demand.
#![cfg(all(feature = "vtd", not(loom)))]

#[path = "support/vtd_hardware.rs"]
mod hardware;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use hardware::{Machine, TimeOut, device, domain, global, hasty, patient};
use iommu::arch::vtd::driver::{Queue, QueueConfig, UnitRegisters, queue};
use iommu::arch::vtd::layout::Descriptor;
use iommu::arch::vtd::layout::descriptors::{Request, WaitFlags};
use iommu::arch::vtd::layout::registers::{DescriptorWidth, FaultStatus, Global, TableMode};
use iommu::platform::Platform;
use iommu::{BusyReason, Error, InvalidReason, InvalidationReason, PhysAddr, WaitReason};

fn failed(reason: InvalidationReason, request: Descriptor) -> Error {
    Error::Invalidation { reason, request: request.words[0] }
}

#[test]
fn batches_of_odd_sizes_wrap_around() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(patient());
    let mut expected = Vec::new();
    for round in 0..1000u16 {
        let batch: Vec<_> = (0..round % 13).map(|index| domain(round.wrapping_mul(13) + index)).collect();
        queue.run(&unit, &batch).unwrap();
        expected.extend(batch);
    }
    assert_eq!(machine.hardware().executed, expected);
    assert_eq!(machine.hardware().faults, 0);
}

#[test]
fn a_batch_longer_than_the_queue_is_split() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(patient());
    let batch: Vec<_> = (0..1500).map(domain).collect();
    queue.run(&unit, &batch).unwrap();
    assert_eq!(machine.hardware().executed, batch);
    assert_eq!(queue.largest_batch(), 253);
    let full: Vec<_> = (0..253).map(domain).collect();
    queue.run(&unit, &full).unwrap();
}

#[test]
fn many_producers_share_the_status_word() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(patient());
    machine.hardware().frozen = true;
    let next = AtomicU16::new(0);
    std::thread::scope(|scope| {
        let producers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    for round in 0..500 {
                        let batch: Vec<_> =
                            (0..round % 5 + 1).map(|_| domain(next.fetch_add(1, Ordering::Relaxed))).collect();
                        queue.run(&unit, &batch).unwrap();
                        let hardware = machine.hardware();
                        let done: HashSet<_> = hardware.executed.iter().map(|request| request.words[0]).collect();
                        assert!(batch.iter().all(|request| done.contains(&request.words[0])), "done too early");
                    }
                })
            })
            .collect();
        // The unit works now and then, when several batches have gathered.
        while producers.iter().any(|producer| !producer.is_finished()) {
            std::thread::sleep(Duration::from_micros(50));
            let mut hardware = machine.hardware();
            hardware.frozen = false;
            hardware.run();
            hardware.frozen = true;
        }
    });
    assert_eq!(machine.hardware().executed.len(), usize::from(next.into_inner()));
}

/// The sequence numbers in the status word mean something only because every wait is a fence.
#[test]
fn a_unit_as_lazy_as_allowed() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(hasty());
    machine.hardware().lazy = true;
    machine.hardware().frozen = true;
    let tickets: Vec<_> = (0..5).map(|id| queue.submit(&unit, &[domain(id), global()]).unwrap()).collect();
    assert!(!queue.is_done(&tickets[0]));
    machine.hardware().frozen = false;
    machine.hardware().run();
    assert!(tickets.iter().all(|ticket| queue.is_done(ticket)));
    for ticket in tickets {
        queue.wait(&unit, ticket).unwrap();
    }
}

#[test]
fn a_late_unit_is_waited_for() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(patient());
    machine.hardware().frozen = true;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            machine.hardware().frozen = false;
            machine.hardware().run();
        });
        queue.run(&unit, &[domain(1)]).unwrap();
    });
    assert_eq!(machine.hardware().executed, [domain(1)]);
}

#[test]
fn a_full_queue_waits_for_room() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(patient());
    machine.hardware().frozen = true;
    // 127 requests with their waits fill 254 of 256 slots; batches are limited too.
    let tickets: Vec<_> = (0..126).map(|id| queue.submit(&unit, &[domain(id)]).unwrap()).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            machine.hardware().frozen = false;
            machine.hardware().run();
        });
        queue.run(&unit, &[domain(200), domain(201)]).unwrap();
    });
    for ticket in tickets {
        queue.wait(&unit, ticket).unwrap();
    }
    let (unit, queue) = Machine::new().queue(hasty());
    unit.platform().hardware().frozen = true;
    let tickets: Vec<_> = (0..126).map(|id| queue.submit(&unit, &[domain(id)]).unwrap()).collect();
    assert_eq!(queue.submit(&unit, &[domain(0)]).unwrap_err(), Error::TimedOut(WaitReason::QueueSpace));
    assert_eq!(tickets.len(), queue::MAX_BATCHES - 2);
}

#[test]
fn a_refused_request_fails_its_batch_only() {
    for position in 0..4 {
        let machine = Machine::new();
        let (unit, queue) = machine.queue(patient());
        machine.hardware().refused = Some(0xbad);
        machine.hardware().frozen = true;
        let before = queue.submit(&unit, &[domain(1)]).unwrap();
        let mut batch = vec![domain(2), domain(3), domain(4)];
        batch.insert(position, domain(0xbad));
        let bad = queue.submit(&unit, &batch).unwrap();
        let after = queue.submit(&unit, &[domain(5)]).unwrap();
        machine.hardware().frozen = false;
        machine.hardware().run();
        assert_eq!(queue.wait(&unit, bad), Err(failed(InvalidationReason::Refused, domain(0xbad))));
        queue.wait(&unit, before).unwrap();
        queue.wait(&unit, after).unwrap();
        // What stood behind it in its batch counts as failed and is not executed.
        let expected: Vec<_> = [1].into_iter().chain(2..2 + position as u16).chain([5]).map(domain).collect();
        assert_eq!(machine.hardware().executed, expected);
        queue.run(&unit, &[domain(6)]).unwrap();
        queue.stop(&unit).unwrap();
    }
}

#[test]
fn several_refused_requests() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(patient());
    machine.hardware().refused = Some(0xbad);
    for round in 0..200 {
        let bad = [domain(0xbad), domain(round), domain(0xbad)];
        assert_eq!(queue.run(&unit, &bad), Err(failed(InvalidationReason::Refused, domain(0xbad))));
        queue.run(&unit, &[domain(round)]).unwrap();
    }
    assert_eq!(machine.hardware().executed.len(), 200);
}

#[test]
fn a_unit_that_refuses_waits_is_fenced() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(patient());
    machine.hardware().refuses_all = true;
    let error = queue.run(&unit, &[domain(1)]).unwrap_err();
    assert_eq!(error, failed(InvalidationReason::Refused, domain(1)));
    assert_eq!(queue.run(&unit, &[domain(1)]), Err(Error::Fenced));
    machine.hardware().refuses_all = false;
    queue.reset(&unit).unwrap();
    queue.run(&unit, &[domain(1)]).unwrap();
}

#[test]
fn a_device_that_does_not_answer_fails_its_batch_only() {
    for time_out in [TimeOut::AtOnce, TimeOut::AtWait].into_iter().chain((0..12).map(TimeOut::Prefetched)) {
        let machine = Machine::new();
        let (unit, queue) = machine.queue(patient());
        // So that the ring wraps somewhere in what follows.
        for _ in 0..83 {
            queue.run(&unit, &[global(), global()]).unwrap();
        }
        machine.hardware().executed.clear();
        machine.hardware().deaf = vec![7];
        machine.hardware().time_out = time_out;
        machine.hardware().frozen = true;
        let before = queue.submit(&unit, &[domain(1), device(1)]).unwrap();
        let bad = queue.submit(&unit, &[domain(2), device(1), device(7), domain(3)]).unwrap();
        let after: Vec<_> = (10..14).map(|id| queue.submit(&unit, &[domain(id), device(id)]).unwrap()).collect();
        machine.hardware().frozen = false;
        machine.hardware().run();
        assert_eq!(queue.wait(&unit, bad), Err(failed(InvalidationReason::DeviceTimeOut, device(7))), "{time_out:?}");
        queue.wait(&unit, before).unwrap();
        for (ticket, id) in after.into_iter().zip(10..) {
            queue.wait(&unit, ticket).unwrap();
            let executed = machine.hardware().executed.clone();
            assert!(executed.contains(&domain(id)) && executed.contains(&device(id)), "{time_out:?} {id}");
        }
        queue.run(&unit, &[domain(6)]).unwrap();
        queue.stop(&unit).unwrap();
    }
}

/// The ring is as full as it gets. What was fetched whole can always be repeated; a batch fetched in
/// part needs more room than it leaves, and fails if that is not there.
#[test]
fn repeating_in_a_full_ring() {
    for prefetched in [0, 1, 2, 60, 125, 126, 127, 253] {
        let machine = Machine::new();
        let (unit, queue) = machine.queue(patient());
        machine.hardware().deaf = vec![7];
        machine.hardware().time_out = TimeOut::Prefetched(prefetched);
        machine.hardware().frozen = true;
        let bad = queue.submit(&unit, &[device(7)]).unwrap();
        // 126 slots each; then there is no room for another batch.
        let good = [0, 1000].map(|id| {
            let batch: Vec<_> = (id..id + 125).map(domain).collect();
            (queue.submit(&unit, &batch).unwrap(), batch)
        });
        machine.hardware().frozen = false;
        machine.hardware().run();
        assert_eq!(queue.wait(&unit, bad), Err(failed(InvalidationReason::DeviceTimeOut, device(7))));
        for ((ticket, batch), fetched) in good.into_iter().zip([prefetched, prefetched.saturating_sub(126)]) {
            let outcome = queue.wait(&unit, ticket);
            if (1..125).contains(&fetched) {
                assert_eq!(outcome, Err(failed(InvalidationReason::TimedOut, batch[0])), "{prefetched}");
                continue;
            }
            assert_eq!(outcome, Ok(()), "{prefetched}");
            let hardware = machine.hardware();
            let executed: HashSet<_> = hardware.executed.iter().map(|request| request.words[0]).collect();
            assert!(batch.iter().all(|request| executed.contains(&request.words[0])), "{prefetched}");
        }
        queue.run(&unit, &[domain(1)]).unwrap();
    }
}

/// Devices that never answer, in batches of several producers, with a unit that fetches ahead: each
/// batch that is said to be done was executed whole, and each that failed had a deaf device or was
/// fetched in part.
#[test]
fn time_outs_among_many_producers() {
    for prefetched in [0, 1, 3, 7] {
        let machine = Machine::new();
        let (unit, queue) = machine.queue(patient());
        machine.hardware().deaf = vec![7];
        machine.hardware().refused = Some(0xbad);
        machine.hardware().time_out = TimeOut::Prefetched(prefetched);
        machine.hardware().frozen = true;
        std::thread::scope(|scope| {
            let produce = |producer: u16| {
                let (machine, unit, queue) = (&machine, &unit, &queue);
                move || {
                    for round in 0..150u16 {
                        let id = producer * 1000 + round * 3;
                        let mut batch = vec![domain(id), domain(id + 1), domain(id + 2)];
                        let fault = match round % 7 {
                            3 => Some((device(7), InvalidationReason::DeviceTimeOut)),
                            5 => Some((domain(0xbad), InvalidationReason::Refused)),
                            _ => None,
                        };
                        batch.extend(fault.map(|(request, _)| request));
                        let outcome = queue.run(unit, &batch);
                        match fault {
                            Some((request, reason)) => assert_eq!(outcome, Err(failed(reason, request))),
                            None => {
                                assert_eq!(outcome, Ok(()));
                                let hardware = machine.hardware();
                                assert!(batch.iter().all(|request| hardware.executed.contains(request)));
                            }
                        }
                    }
                }
            };
            let producers: Vec<_> = (1..4).map(|producer| scope.spawn(produce(producer))).collect();
            while producers.iter().any(|producer| !producer.is_finished()) {
                std::thread::sleep(Duration::from_micros(50));
                let mut hardware = machine.hardware();
                hardware.frozen = false;
                hardware.run();
                hardware.frozen = true;
            }
        });
        assert!(queue.is_running());
    }
}

/// The unit names a device, or (`0`) does not; in the second case the oldest batch to a device is it.
#[test]
fn the_device_that_the_unit_names() {
    for (named, expected) in [(8, [Ok(()), Err(8)]), (0, [Err(9), Ok(())]), (0x55, [Err(9), Ok(())])] {
        let machine = Machine::new();
        let (unit, queue) = machine.queue(patient());
        machine.hardware().frozen = true;
        let tickets = [9, 8].map(|source| queue.submit(&unit, &[domain(1), device(source)]).unwrap());
        {
            // All was fetched, and lost.
            let mut hardware = machine.hardware();
            hardware.head = hardware.tail;
            hardware.faults = FaultStatus::ITE.bits();
            hardware.error = named << 32;
            hardware.frozen = false;
        }
        let outcomes = tickets.map(|ticket| queue.wait(&unit, ticket));
        let dead = |source| failed(InvalidationReason::DeviceTimeOut, device(source));
        assert_eq!(outcomes, expected.map(|outcome| outcome.map_err(dead)), "{named}");
    }
}

#[test]
fn two_devices_that_do_not_answer() {
    for prefetched in 0..8 {
        let machine = Machine::new();
        let (unit, queue) = machine.queue(patient());
        machine.hardware().deaf = vec![7, 8];
        machine.hardware().time_out = TimeOut::Prefetched(prefetched);
        machine.hardware().frozen = true;
        let tickets =
            [vec![device(7)], vec![device(8)], vec![domain(1)]].map(|batch| queue.submit(&unit, &batch).unwrap());
        machine.hardware().frozen = false;
        machine.hardware().run();
        let outcomes = tickets.map(|ticket| queue.wait(&unit, ticket));
        let dead = |source| Err(failed(InvalidationReason::DeviceTimeOut, device(source)));
        assert_eq!(outcomes, [dead(7), dead(8), Ok(())], "{prefetched}");
        assert!(machine.hardware().executed.contains(&domain(1)));
    }
}

#[test]
fn a_time_out_fences_until_reset() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(hasty());
    machine.hardware().frozen = true;
    let first = queue.submit(&unit, &[domain(1), device(3)]).unwrap();
    let second = queue.submit(&unit, &[domain(2)]).unwrap();
    let third = queue.submit(&unit, &[domain(3)]).unwrap();
    assert_eq!(queue.wait(&unit, first), Err(failed(InvalidationReason::TimedOut, device(3))));
    assert_eq!(queue.wait(&unit, second), Err(Error::Fenced));
    assert_eq!(queue.submit(&unit, &[domain(4)]).unwrap_err(), Error::Fenced);
    assert!(!queue.is_running());
    // It cannot be turned off while it stands.
    assert_eq!(queue.reset(&unit), Err(Error::TimedOut(WaitReason::Register)));
    machine.hardware().frozen = false;
    machine.hardware().run();
    queue.reset(&unit).unwrap();
    // Done or not: whoever asks after a reset must not rely on it.
    assert!(queue.is_done(&third));
    queue.run(&unit, &[domain(5)]).unwrap();
    assert_eq!(machine.hardware().executed.last(), Some(&domain(5)));
}

#[test]
fn a_reset_gives_up_what_is_in_flight() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(hasty());
    machine.hardware().refuses_all = true;
    let lost = queue.submit(&unit, &[domain(1)]).unwrap();
    let also_lost = queue.submit(&unit, &[domain(2)]).unwrap();
    queue.fence();
    // Nothing that stands in the ring is taken, so that the unit runs dry only by replacement.
    machine.hardware().refuses_all = false;
    machine.hardware().refused = Some(1);
    queue.reset(&unit).unwrap();
    queue.run(&unit, &[domain(3)]).unwrap();
    // Their waits came through in the end, but the first request never did.
    for ticket in [lost, also_lost] {
        assert_eq!(queue.wait(&unit, ticket), Err(Error::Fenced));
    }
}

#[test]
fn a_broken_completion_is_told_from_silence() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(hasty());
    // Reported, but nothing was lost.
    machine.hardware().faults = FaultStatus::ICE.bits();
    queue.recover(&unit);
    assert_eq!(machine.hardware().faults, 0);
    queue.run(&unit, &[device(1)]).unwrap();
    // Reported, and the batch never ends.
    machine.hardware().frozen = true;
    let ticket = queue.submit(&unit, &[device(2)]).unwrap();
    machine.hardware().faults = FaultStatus::ICE.bits();
    assert_eq!(queue.wait(&unit, ticket), Err(failed(InvalidationReason::CompletionError, device(2))));
}

#[test]
fn failures_that_nobody_asks_for_fence_in_the_end() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(patient());
    machine.hardware().refused = Some(0xbad);
    for _ in 0..queue::MAX_FAILURES {
        let ticket = queue.submit(&unit, &[domain(0xbad)]).unwrap();
        queue.recover(&unit);
        assert!(queue.is_done(&ticket));
        drop(ticket);
    }
    queue.run(&unit, &[domain(1)]).unwrap();
    let last = queue.submit(&unit, &[domain(0xbad)]).unwrap();
    assert_eq!(queue.wait(&unit, last), Err(Error::Fenced));
    queue.reset(&unit).unwrap();
    queue.run(&unit, &[domain(1)]).unwrap();
}

#[test]
fn starts_from_what_firmware_left() {
    let machine = Machine::new();
    {
        let mut hardware = machine.hardware();
        hardware.status = (Global::QIE | Global::IRE | Global::RTP).bits();
        (hardware.head, hardware.tail) = (17, 17);
        hardware.faults = 0x70;
    }
    let (unit, queue) = machine.queue(hasty());
    queue.run(&unit, &[domain(1)]).unwrap();
    // One-shot bits are not repeated, others are (11.4.4.1).
    let expected = [Global::IRE, Global::IRE | Global::QIE].map(|command| command.bits());
    assert_eq!(machine.hardware().commands, expected);
    assert_eq!(queue.start(&unit), Err(Error::Busy(BusyReason::InUse)));
}

#[test]
fn stopped_queues_give_their_memory_back_and_running_ones_keep_it() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(hasty());
    assert_eq!(machine.frames_in_use(), 2);
    queue.stop(&unit).unwrap();
    assert_eq!(queue.submit(&unit, &[]).unwrap_err(), Error::Fenced);
    assert_eq!(queue.stop(&unit), Ok(()));
    queue.start(&unit).unwrap();
    queue.run(&unit, &[domain(1)]).unwrap();
    queue.stop(&unit).unwrap();
    drop(queue);
    assert_eq!(machine.frames_in_use(), 0);

    let (_unit, queue) = machine.queue(QueueConfig { order: 2, ..hasty() });
    assert_eq!(queue.largest_batch(), 1021);
    drop(queue);
    assert_eq!(machine.frames_in_use(), 5, "the unit may still read the ring");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(hasty());
    let wait = Request::Wait { flags: WaitFlags::FENCE, address: PhysAddr::new(0), data: 0 }.encode();
    let invalid = Error::Invalid(InvalidReason::Configuration);
    assert_eq!(queue.submit(&unit, &[domain(1), wait]).unwrap_err(), invalid);
    let config = QueueConfig { order: 8, ..hasty() };
    assert_eq!(Queue::new(machine.clone(), config).err(), Some(invalid));
    let wide = Queue::new(machine, QueueConfig { width: DescriptorWidth::Bits256, ..hasty() }).unwrap();
    assert_eq!(wide.largest_batch(), 125);
}

#[test]
fn commands_are_bounded_and_repeat_what_is_on() {
    let machine = Machine::new();
    let (unit, _queue) = machine.queue(hasty());
    assert!(!unit.is_translating().unwrap());
    unit.set_root_table(PhysAddr::new(0x7000), TableMode::Legacy).unwrap();
    assert_eq!(machine.hardware().root, 0x7000);
    unit.enable_translation().unwrap();
    assert!(unit.is_translating().unwrap());
    unit.disable_translation().unwrap();
    unit.flush_write_buffer().unwrap();
    let expected = [Global::QIE, Global::QIE | Global::RTP, Global::QIE | Global::TE, Global::QIE];
    assert_eq!(machine.hardware().commands, expected.map(|command| command.bits()));
    machine.hardware().deaf_to_commands = true;
    assert_eq!(unit.enable_translation(), Err(Error::TimedOut(WaitReason::Register)));
    machine.hardware().gone = Some(u64::MAX);
    assert_eq!(unit.enable_translation(), Err(Error::NoDevice));
    assert_eq!(unit.is_translating(), Err(Error::NoDevice));
}

/// A unit that is gone, and one whose every register is nonsense: errors, and in time.
#[test]
fn units_that_answer_nonsense() {
    for value in [u64::MAX, 0x5555_5555_5555_5555, 0x0000_0070_0000_0070] {
        let machine = Machine::new();
        let (unit, queue) = machine.queue(hasty());
        let ticket = {
            machine.hardware().frozen = true;
            queue.submit(&unit, &[domain(1), device(1)]).unwrap()
        };
        machine.hardware().gone = Some(value);
        assert!(queue.wait(&unit, ticket).is_err());
        let _ = queue.stop(&unit);
        let _ = queue.reset(&unit);
        let _ = nonsense(&unit, &queue);
    }
}

fn nonsense<P: Platform>(unit: &UnitRegisters<P>, queue: &Queue<P>) -> iommu::Result<()> {
    queue.run(unit, &[domain(1)])?;
    queue.recover(unit);
    Ok(())
}
