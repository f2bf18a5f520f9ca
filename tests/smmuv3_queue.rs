//! The command queue against a unit in software that misbehaves on demand.
#![cfg(all(feature = "smmuv3", not(loom)))]

#[allow(dead_code)]
#[path = "support/smmuv3_hardware.rs"]
mod hardware;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hardware::{Machine, SYNC, device, hasty, page, patient};
use iommu::arch::smmuv3::driver::{CommandQueue, QueueConfig, SmmuRegisters, queue};
use iommu::arch::smmuv3::layout::commands::Completion;
use iommu::arch::smmuv3::layout::registers::Gerror;
use iommu::arch::smmuv3::layout::{Command, StreamId};
use iommu::pgtable::WalkerCoherency;
use iommu::platform::Platform;
use iommu::{BusyReason, Error, InvalidReason, InvalidationReason, PhysAddr, WaitReason};

fn failed(reason: InvalidationReason, command: Command) -> Error {
    Error::Invalidation { reason, request: command.encode()[0] }
}

fn sized(log2_entries: u8, config: QueueConfig) -> QueueConfig {
    QueueConfig { log2_entries, ..config }
}

const BAD: u64 = 0xbad;

#[test]
fn batches_of_odd_sizes_wrap_around_in_queues_of_all_sizes() {
    for log2_entries in 1..=9 {
        for needs_cleans in [false, true] {
            let machine = Machine::with_cleans(needs_cleans);
            let coherency = if needs_cleans { WalkerCoherency::NeedsClean } else { WalkerCoherency::Snoops };
            let (unit, queue) = machine.queue(QueueConfig { coherency, ..sized(log2_entries, patient()) });
            assert_eq!(queue.largest_batch(), (1 << log2_entries) - 1);
            assert_eq!(queue.base().log2_size(), log2_entries);
            let mut expected = Vec::new();
            for round in 0..120 {
                let batch: Vec<_> = (0..round % 13).map(|index| page(round * 13 + index)).collect();
                queue.run(&unit, &batch).unwrap();
                expected.extend(batch);
            }
            assert_eq!(machine.hardware().executed, expected, "{log2_entries}");
            assert!(!machine.hardware().stands());
        }
    }
}

#[test]
fn a_batch_longer_than_the_queue_is_split() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(sized(3, patient()));
    let batch: Vec<_> = (0..1500).map(page).collect();
    queue.run(&unit, &batch).unwrap();
    assert_eq!(machine.hardware().executed, batch);
    machine.hardware().executed.clear();
    machine.hardware().refused = Some(page(700));
    assert_eq!(queue.run(&unit, &batch), Err(failed(InvalidationReason::Refused, page(700))));
    assert_eq!(machine.hardware().executed, batch[..700]);
}

#[test]
fn many_producers_share_one_queue() {
    for log2_entries in [3, 5, 8] {
        let machine = Machine::new();
        let (unit, queue) = machine.queue(sized(log2_entries, patient()));
        machine.freeze();
        let next = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let producers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        for round in 0..50 {
                            let batch: Vec<_> =
                                (0..round % 5 + 1).map(|_| page(next.fetch_add(1, Ordering::Relaxed))).collect();
                            queue.run(&unit, &batch).unwrap();
                            let hardware = machine.hardware();
                            let done: HashSet<_> = hardware.executed.iter().map(|command| command.encode()).collect();
                            assert!(batch.iter().all(|command| done.contains(&command.encode())), "done too early");
                        }
                    })
                })
                .collect();
            // The unit works now and then, for a few commands.
            while producers.iter().any(|producer| !producer.is_finished()) {
                std::thread::sleep(Duration::from_micros(20));
                let mut hardware = machine.hardware();
                hardware.steps = Some(7);
                hardware.run();
                hardware.steps = Some(0);
            }
        });
        assert_eq!(machine.hardware().executed.len() as u64, next.into_inner());
    }
}

#[test]
fn one_reading_of_the_register_serves_all() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(patient());
    let tickets: Vec<_> = (0..20).map(|number| queue.submit(&unit, &[page(number)]).unwrap()).collect();
    machine.hardware().cons_reads = 0;
    for ticket in tickets.into_iter().rev() {
        queue.wait(&unit, ticket).unwrap();
    }
    assert_eq!(machine.hardware().cons_reads, 1);
}

#[test]
fn a_late_unit_is_waited_for() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(patient());
    machine.freeze();
    let ticket = queue.submit(&unit, &[page(1)]).unwrap();
    assert!(!queue.is_done(&unit, &ticket));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            machine.thaw();
        });
        queue.wait(&unit, ticket).unwrap();
    });
    assert_eq!(machine.hardware().executed, [page(1)]);
}

/// What was executed counts, not what was begun.
#[test]
fn a_batch_is_not_done_before_its_last_sync() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(patient());
    machine.freeze();
    let ticket = queue.submit(&unit, &[page(1), SYNC, device(1)]).unwrap();
    for _ in 0..3 {
        let mut hardware = machine.hardware();
        hardware.steps = Some(1);
        hardware.run();
        drop(hardware);
        assert!(!queue.is_done(&unit, &ticket));
    }
    machine.thaw();
    assert!(queue.is_done(&unit, &ticket));
    queue.wait(&unit, ticket).unwrap();
}

#[test]
fn a_full_queue_waits_for_room() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(sized(4, patient()));
    machine.freeze();
    // All 16 slots are used.
    let tickets: Vec<_> = (0..8).map(|number| queue.submit(&unit, &[page(number)]).unwrap()).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            machine.thaw();
        });
        queue.run(&unit, &[page(200), page(201)]).unwrap();
    });
    for ticket in tickets {
        queue.wait(&unit, ticket).unwrap();
    }
    let machine = Machine::new();
    let (unit, queue) = machine.queue(sized(4, hasty()));
    machine.freeze();
    let tickets: Vec<_> = (0..8).map(|number| queue.submit(&unit, &[page(number)]).unwrap()).collect();
    assert_eq!(queue.submit(&unit, &[page(0)]).unwrap_err(), Error::TimedOut(WaitReason::QueueSpace));
    machine.thaw();
    for ticket in tickets {
        queue.wait(&unit, ticket).unwrap();
    }
}

#[test]
fn a_refused_command_fails_its_batch_only() {
    for needs_cleans in [false, true] {
        for position in 0..4 {
            let machine = Machine::with_cleans(needs_cleans);
            let coherency = if needs_cleans { WalkerCoherency::NeedsClean } else { WalkerCoherency::Snoops };
            let (unit, queue) = machine.queue(QueueConfig { coherency, ..patient() });
            machine.hardware().refused = Some(page(BAD));
            machine.freeze();
            let before = queue.submit(&unit, &[page(1)]).unwrap();
            let mut batch = vec![page(2), page(3), page(4)];
            batch.insert(position, page(BAD));
            let bad = queue.submit(&unit, &batch).unwrap();
            let after = queue.submit(&unit, &[page(5)]).unwrap();
            machine.thaw();
            assert_eq!(queue.wait(&unit, bad), Err(failed(InvalidationReason::Refused, page(BAD))));
            queue.wait(&unit, before).unwrap();
            queue.wait(&unit, after).unwrap();
            // What stood behind it in its batch counts as failed and is not executed.
            let expected: Vec<_> = [1].into_iter().chain(2..2 + position as u64).chain([5]).map(page).collect();
            assert_eq!(machine.hardware().executed, expected);
            queue.run(&unit, &[page(6)]).unwrap();
            queue.stop(&unit).unwrap();
        }
    }
}

#[test]
fn several_refused_commands() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(sized(3, patient()));
    machine.hardware().refused = Some(page(BAD));
    for round in 0..200 {
        let bad = [page(BAD), page(round), page(BAD)];
        assert_eq!(queue.run(&unit, &bad), Err(failed(InvalidationReason::Refused, page(BAD))));
        queue.run(&unit, &[page(round)]).unwrap();
    }
    assert_eq!(machine.hardware().executed.len(), 200);
}

#[test]
fn a_unit_that_refuses_syncs_is_fenced() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(patient());
    machine.hardware().refuses_all = true;
    assert_eq!(queue.run(&unit, &[page(1)]), Err(failed(InvalidationReason::Refused, page(1))));
    assert_eq!(queue.run(&unit, &[]), Err(Error::Fenced));
    assert!(queue.is_fenced());
    machine.hardware().refuses_all = false;
    queue.reset(&unit).unwrap();
    queue.run(&unit, &[page(1)]).unwrap();
}

#[test]
fn a_queue_that_cannot_be_read_is_fenced() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(patient());
    queue.run(&unit, &[page(1)]).unwrap();
    machine.hardware().aborts = true;
    assert_eq!(queue.run(&unit, &[page(2)]), Err(Error::Fenced));
    assert!(machine.hardware().stands(), "the unit must not go on");
    machine.hardware().aborts = false;
    queue.reset(&unit).unwrap();
    queue.run(&unit, &[page(3)]).unwrap();
    assert_eq!(machine.hardware().executed, [page(1), page(3)]);
}

#[test]
fn a_unit_in_service_failure_mode_is_fenced() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(patient());
    machine.freeze();
    machine.hardware().gerror ^= Gerror::SFM_ERR.bits();
    assert_eq!(queue.run(&unit, &[page(2)]), Err(Error::Fenced));
}

#[test]
fn a_device_that_does_not_answer_fails_its_batch_only() {
    for log2_entries in [4, 8] {
        let machine = Machine::new();
        let (unit, queue) = machine.queue(sized(log2_entries, patient()));
        // So that the ring wraps somewhere in what follows.
        for _ in 0..83 {
            queue.run(&unit, &[page(0), page(0)]).unwrap();
        }
        machine.hardware().executed.clear();
        machine.hardware().silent = vec![7];
        machine.freeze();
        let before = queue.submit(&unit, &[page(1), SYNC, device(1)]).unwrap();
        let bad = queue.submit(&unit, &[page(2), SYNC, device(2), device(7), device(3)]).unwrap();
        let after = queue.submit(&unit, &[page(3), SYNC, device(7)]).unwrap();
        machine.thaw();
        assert_eq!(queue.wait(&unit, bad), Err(failed(InvalidationReason::DeviceTimeOut, device(2))));
        // Each of the three may be the one, those of the batch before are not.
        let expected: HashSet<_> = [2, 3, 7].map(StreamId).into();
        assert_eq!(queue.take_silent_devices().into_iter().collect::<HashSet<_>>(), expected);
        queue.wait(&unit, before).unwrap();
        assert_eq!(queue.wait(&unit, after), Err(failed(InvalidationReason::DeviceTimeOut, device(7))));
        assert_eq!(queue.take_silent_devices().as_slice(), [StreamId(7)]);
        assert!(queue.take_silent_devices().is_empty());
        let expected = [page(1), device(1), page(2), device(2), device(3), page(3)];
        assert_eq!(machine.hardware().executed, expected);
        queue.run(&unit, &[page(6)]).unwrap();
        queue.stop(&unit).unwrap();
    }
}

/// A producer who finds the ring full of what was fetched does not write over what is to be told.
#[test]
fn a_full_ring_keeps_the_names_of_silent_devices() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(sized(3, patient()));
    machine.hardware().silent = vec![1, 2, 3];
    machine.freeze();
    let bad = queue.submit(&unit, &[device(1), device(2), device(3), page(1)]).unwrap();
    // The unit stands at the CMD_SYNC, and all before it is fetched.
    machine.thaw();
    assert!(machine.hardware().stands());
    queue.run(&unit, &[page(2), page(3), page(4)]).unwrap();
    assert_eq!(queue.wait(&unit, bad), Err(failed(InvalidationReason::DeviceTimeOut, device(1))));
    assert_eq!(queue.take_silent_devices().len(), 3);
}

#[test]
fn silent_devices_that_nobody_takes_fence_in_the_end() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(patient());
    machine.hardware().silent = (0..100).collect();
    for stream in 0..queue::MAX_SILENT_DEVICES as u32 {
        let error = failed(InvalidationReason::DeviceTimeOut, device(stream));
        assert_eq!(queue.run(&unit, &[device(stream)]), Err(error));
    }
    assert_eq!(queue.run(&unit, &[device(99)]), Err(Error::Fenced));
    assert_eq!(queue.take_silent_devices().len(), queue::MAX_SILENT_DEVICES);
}

/// A unit that blames devices which were not asked, or stands where it cannot.
#[test]
fn errors_that_make_no_sense_fence() {
    for (cons, error) in [(0, 3), (1, 3), (1, 0), (0, 4), (0, 0x7f), (7, 1), (2, 1)] {
        let machine = Machine::new();
        let (unit, queue) = machine.queue(patient());
        machine.freeze();
        let ticket = queue.submit(&unit, &[page(1)]).unwrap();
        {
            let mut hardware = machine.hardware();
            hardware.cons = cons | error << 24;
            hardware.gerror ^= Gerror::CMDQ_ERR.bits();
        }
        let outcome = queue.wait(&unit, ticket);
        // At position 2 it is past the batch.
        assert_eq!(outcome, if cons == 2 { Ok(()) } else { Err(Error::Fenced) }, "{cons} {error}");
        queue.recover(&unit);
        assert!(queue.is_fenced(), "{cons} {error}");
    }
}

/// Batches that fail among many producers: each that is said to be done was executed whole, and each
/// that failed had a reason.
#[test]
fn failures_among_many_producers() {
    for log2_entries in [4, 8] {
        let machine = Machine::new();
        let (unit, queue) = machine.queue(sized(log2_entries, patient()));
        machine.hardware().silent = vec![7];
        machine.hardware().refused = Some(page(BAD));
        machine.freeze();
        std::thread::scope(|scope| {
            let produce = |producer: u64| {
                let (machine, unit, queue) = (&machine, &unit, &queue);
                move || {
                    for round in 0..100 {
                        let number = producer * 1000 + round * 3;
                        let mut batch = vec![page(number), page(number + 1), page(number + 2)];
                        let fault = match round % 7 {
                            3 => Some((device(7), InvalidationReason::DeviceTimeOut)),
                            5 => Some((page(BAD), InvalidationReason::Refused)),
                            _ => None,
                        };
                        batch.extend(fault.map(|(command, _)| command));
                        let outcome = queue.run(unit, &batch);
                        match fault {
                            Some((command, reason)) => assert_eq!(outcome, Err(failed(reason, command))),
                            None => {
                                assert_eq!(outcome, Ok(()));
                                let hardware = machine.hardware();
                                assert!(batch.iter().all(|command| hardware.executed.contains(command)));
                            }
                        }
                    }
                }
            };
            let producers: Vec<_> = (1..4).map(|producer| scope.spawn(produce(producer))).collect();
            while producers.iter().any(|producer| !producer.is_finished()) {
                std::thread::sleep(Duration::from_micros(20));
                let mut hardware = machine.hardware();
                hardware.steps = Some(5);
                hardware.run();
                hardware.steps = Some(0);
            }
        });
        assert!(queue.is_running());
        assert_eq!(queue.take_silent_devices().as_slice(), [StreamId(7)]);
    }
}

#[test]
fn a_time_out_fences_until_reset() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(hasty());
    machine.freeze();
    let first = queue.submit(&unit, &[page(1), SYNC, device(3)]).unwrap();
    let second = queue.submit(&unit, &[page(2)]).unwrap();
    let third = queue.submit(&unit, &[page(3)]).unwrap();
    // It gets as far as the last CMD_SYNC of the first batch.
    machine.hardware().steps = Some(3);
    machine.hardware().run();
    assert_eq!(queue.wait(&unit, second), Err(failed(InvalidationReason::TimedOut, device(3))));
    assert_eq!(queue.wait(&unit, first), Err(Error::Fenced));
    assert_eq!(queue.submit(&unit, &[page(4)]).unwrap_err(), Error::Fenced);
    assert!(!queue.is_running());
    machine.hardware().deaf_to_commands = true;
    assert!(queue.is_fenced());
    queue.fence();
    machine.hardware().deaf_to_commands = false;
    machine.hardware().steps = None;
    queue.reset(&unit).unwrap();
    // Done or not: whoever asks after a reset must not rely on it.
    assert!(queue.is_done(&unit, &third));
    assert_eq!(queue.wait(&unit, third), Err(Error::Fenced));
    queue.run(&unit, &[page(5)]).unwrap();
    assert_eq!(machine.hardware().executed, [page(1), device(3), page(5)]);
}

#[test]
fn a_reset_gives_up_what_is_in_flight_wherever_it_stands() {
    for log2_entries in [1, 2, 3, 8] {
        for begin in 0..9 {
            let machine = Machine::new();
            let (unit, queue) = machine.queue(sized(log2_entries, hasty()));
            for number in 0..begin {
                queue.run(&unit, &[page(number)]).unwrap();
            }
            machine.hardware().executed.clear();
            machine.freeze();
            let lost = queue.submit(&unit, &[page(11)]).unwrap();
            queue.fence();
            machine.hardware().steps = None;
            queue.reset(&unit).unwrap();
            assert_eq!(queue.wait(&unit, lost), Err(Error::Fenced));
            let batch: Vec<_> = (0..11).map(page).collect();
            queue.run(&unit, &batch).unwrap();
            assert_eq!(machine.hardware().executed, batch);
        }
    }
}

/// What was done before a reset stays done, and what failed failed.
#[test]
fn a_reset_of_a_queue_that_is_empty_gives_up_nothing() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(patient());
    machine.hardware().refused = Some(page(BAD));
    let good = queue.submit(&unit, &[page(1)]).unwrap();
    let bad = queue.submit(&unit, &[page(BAD)]).unwrap();
    queue.recover(&unit);
    queue.reset(&unit).unwrap();
    queue.wait(&unit, good).unwrap();
    assert_eq!(queue.wait(&unit, bad), Err(failed(InvalidationReason::Refused, page(BAD))));
}

#[test]
fn failures_that_nobody_asks_for_fence_in_the_end() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(patient());
    machine.hardware().refused = Some(page(BAD));
    for _ in 0..queue::MAX_FAILURES {
        let ticket = queue.submit(&unit, &[page(BAD)]).unwrap();
        queue.recover(&unit);
        assert!(queue.is_done(&unit, &ticket));
        drop(ticket);
    }
    queue.run(&unit, &[page(1)]).unwrap();
    let last = queue.submit(&unit, &[page(BAD)]).unwrap();
    assert_eq!(queue.wait(&unit, last), Err(Error::Fenced));
    queue.reset(&unit).unwrap();
    queue.run(&unit, &[page(1)]).unwrap();
}

#[test]
fn starts_from_what_firmware_left() {
    let machine = Machine::new();
    {
        let mut hardware = machine.hardware();
        (hardware.prod, hardware.cons) = (17, 17);
        hardware.gerror = Gerror::CMDQ_ERR.bits();
    }
    let (unit, queue) = machine.queue(hasty());
    queue.run(&unit, &[page(1)]).unwrap();
    assert_eq!(queue.start(&unit), Err(Error::Busy(BusyReason::InUse)));
    // A queue of somebody else is on, and stands.
    let (other_unit, other) = machine.stopped_queue(sized(3, hasty()));
    machine.hardware().refused = Some(page(2));
    drop(queue.submit(&unit, &[page(2)]).unwrap());
    other.start(&other_unit).unwrap();
    other.run(&other_unit, &[page(3)]).unwrap();
    assert_eq!(machine.hardware().executed, [page(1), page(3)]);
}

#[test]
fn stopped_queues_give_their_memory_back_and_running_ones_keep_it() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(hasty());
    assert_eq!(machine.frames_in_use(), 1);
    // Nobody waits for it.
    drop(queue.submit(&unit, &[page(7)]).unwrap());
    queue.stop(&unit).unwrap();
    assert!(!machine.hardware().is_enabled());
    assert_eq!(queue.submit(&unit, &[]).unwrap_err(), Error::Fenced);
    assert_eq!(queue.stop(&unit), Ok(()));
    queue.start(&unit).unwrap();
    queue.run(&unit, &[page(1)]).unwrap();
    queue.stop(&unit).unwrap();
    assert_eq!(machine.hardware().executed, [page(7), page(1)]);
    drop(queue);
    assert_eq!(machine.frames_in_use(), 0);

    let (_unit, queue) = machine.queue(sized(10, hasty()));
    drop(queue);
    assert_eq!(machine.frames_in_use(), 4, "the unit may still read the ring");
}

/// A queue that is turned off has done what was submitted.
#[test]
fn a_stop_waits_for_what_is_in_flight() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(patient());
    machine.freeze();
    let ticket = queue.submit(&unit, &[page(1)]).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            machine.thaw();
        });
        queue.stop(&unit).unwrap();
    });
    queue.wait(&unit, ticket).unwrap();
    assert_eq!(machine.hardware().executed, [page(1)]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let machine = Machine::new();
    let (unit, queue) = machine.queue(hasty());
    let interrupt = Completion::Interrupt { address: PhysAddr::new(0), data: 0, attributes: 0, shareability: 0 };
    let invalid = Error::Invalid(InvalidReason::Configuration);
    for completion in [interrupt, Completion::Event] {
        assert_eq!(queue.submit(&unit, &[page(1), Command::Sync { completion }]).unwrap_err(), invalid);
    }
    for log2_entries in [0, 20, 255] {
        assert_eq!(CommandQueue::new(machine.clone(), sized(log2_entries, hasty())).err(), Some(invalid));
    }
}

/// A unit that is gone, and one whose every register is nonsense: errors, and in time.
#[test]
fn units_that_answer_nonsense() {
    for value in [u32::MAX, 0x5555_5555, 0x0005_5555, 1] {
        let machine = Machine::new();
        let (unit, queue) = machine.queue(hasty());
        let ticket = {
            machine.freeze();
            queue.submit(&unit, &[page(1), device(1)]).unwrap()
        };
        machine.hardware().gone = Some(value);
        assert!(queue.wait(&unit, ticket).is_err(), "{value:#x}");
        let _ = queue.stop(&unit);
        let _ = queue.reset(&unit);
        let _ = nonsense(&unit, &queue);
    }
}

fn nonsense<P: Platform>(unit: &SmmuRegisters<P>, queue: &CommandQueue<P>) -> iommu::Result<()> {
    queue.run(unit, &[page(1)])?;
    queue.recover(unit);
    Ok(())
}
