//! The invalidation queue alone, with many batches in flight.

use iommu::PhysAddr;
use iommu::arch::vtd::driver::queue::Ticket;
use iommu::arch::vtd::driver::{Queue, QueueConfig, UnitRegisters};
use iommu::arch::vtd::layout::descriptors::{ContextScope, DeviceRange, Drain, IotlbScope, Request};
use iommu::arch::vtd::layout::registers::DescriptorWidth;
use iommu::arch::vtd::layout::{Cap, Descriptor, DomainId, Ecap};

use crate::input::Input;
use crate::kernel::trace;
use crate::memory::memory;
use crate::world::{self, Kernel};

const MAX_OPERATIONS: usize = 200;
/// Batches whose tickets are held.
const MAX_TICKETS: usize = 160;

struct State {
    registers: UnitRegisters<Kernel>,
    queue: Queue<Kernel>,
    /// Batches that were submitted, with the first quadwords of their requests.
    batches: Vec<(Ticket, Vec<u64>)>,
    /// Every request differs from the others.
    next: u16,
    device_tlbs: bool,
}

pub fn run(input: &mut Input<'_>) {
    // There is a queue, and every domain id is another one.
    let all_ids = Cap::from_bits_retain(6);
    let (scalable, device_tlbs) = world::with(|world| {
        world.template.root = 0;
        let capabilities = &mut world.template.capabilities[0];
        capabilities.cap = capabilities.cap.difference(Cap::from_bits_retain(7)) | all_ids;
        capabilities.ecap |= Ecap::QI;
        (capabilities.ecap.contains(Ecap::SMTS), capabilities.ecap.contains(Ecap::DT))
    });
    let Ok(registers) = UnitRegisters::map(Kernel, PhysAddr::new(0xfed9_0000)) else { return };
    let kind = input.u8();
    let width = if kind & 1 == 0 || !scalable { DescriptorWidth::Bits128 } else { DescriptorWidth::Bits256 };
    let config = QueueConfig { width, order: kind >> 1 & 7, ..QueueConfig::default() };
    let Ok(queue) = Queue::new(Kernel, config) else { return };
    let mut state = State { registers, queue, batches: Vec::new(), next: 0, device_tlbs };
    for _ in 0..MAX_OPERATIONS {
        if input.is_empty() {
            break;
        }
        world::with(|world| world.begin_operation());
        state.operate(input);
    }
    let State { registers, queue, .. } = state;
    world::with(|world| world.begin_operation());
    let stopped = queue.stop(&registers);
    drop(queue);
    world::with(|world| {
        if world.pristine {
            assert_eq!(stopped, Ok(()));
            assert_eq!(memory().frames_in_use(), 0, "frames are lost");
        }
    });
}

impl State {
    fn operate(&mut self, input: &mut Input<'_>) {
        let Self { registers, queue, .. } = self;
        let operation = input.u8() % 20;
        trace(format_args!("operation {operation}"));
        match operation {
            0 | 1 => {
                let started = queue.start(registers);
                trace(format_args!("start: {started:?}"));
            }
            2..9 => self.submit(input),
            9..12 => {
                if self.batches.is_empty() {
                    return;
                }
                let batch = self.batches.swap_remove(input.below(self.batches.len()));
                let done = queue.is_done(&batch.0);
                let outcome = self.wait(batch);
                let pristine = world::with(|world| world.pristine);
                assert!(outcome || !pristine || !done || !self.queue.is_running());
            }
            12 => {
                // A ticket that nobody redeems.
                if !self.batches.is_empty() {
                    drop(self.batches.swap_remove(input.below(self.batches.len())));
                }
            }
            13 => queue.recover(registers),
            14 => match input.u8() % 8 {
                0 => queue.fence(),
                1..4 => {
                    let stopped = queue.stop(registers);
                    trace(format_args!("stop: {stopped:?}"));
                }
                _ => {
                    let reset = queue.reset(registers);
                    trace(format_args!("reset: {reset:?}"));
                }
            },
            15 => std::mem::take(&mut self.batches).into_iter().for_each(|batch| {
                self.wait(batch);
            }),
            _ => world::with(|world| {
                let lies = world.units[0].trouble(input);
                world.spoil(lies);
            }),
        }
    }

    fn submit(&mut self, input: &mut Input<'_>) {
        if self.batches.len() >= MAX_TICKETS {
            return;
        }
        let kind = input.u8();
        let count = if kind < 0xf8 { kind & 7 } else { input.u8() };
        let requests: Vec<Descriptor> = (0..count)
            .map(|_| {
                self.next = self.next.wrapping_add(1);
                let domain = DomainId::new(self.next);
                let request = match input.u8() % 8 {
                    0 if self.device_tlbs => Request::DeviceTlb {
                        source: self.next,
                        physical_function: 0,
                        max_pending: 0,
                        range: DeviceRange::ALL,
                    },
                    1 => Request::Context(ContextScope::Domain(domain)),
                    _ => Request::Iotlb(IotlbScope::Domain(domain), Drain::empty()),
                };
                request.encode()
            })
            .collect();
        let words: Vec<u64> = requests.iter().map(|request| request.words[0]).collect();
        let submitted = self.queue.submit(&self.registers, &requests);
        trace(format_args!("submit {words:x?}: {submitted:?}"));
        if let Ok(ticket) = submitted {
            self.batches.push((ticket, words));
        }
    }

    /// A batch that is done was executed, every request of it.
    fn wait(&mut self, (ticket, words): (Ticket, Vec<u64>)) -> bool {
        let outcome = self.queue.wait(&self.registers, ticket);
        trace(format_args!("wait for {words:x?}: {outcome:?}"));
        world::with(|world| {
            if outcome.is_ok() && world::is_truthful() {
                for word in &words {
                    assert!(world.units[0].executed.contains(word), "{word:#x} was not executed");
                }
            }
        });
        outcome.is_ok()
    }
}
