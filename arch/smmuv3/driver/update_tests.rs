//! Every plan between every two entries, seen by hardware at every moment.

extern crate std;
use std::vec;
use std::vec::Vec;

use super::{Passage, Plan, Step, Structure, WORDS, Words};
use crate::addr::PhysAddr;
use crate::arch::smmuv3::layout::context::Half;
use crate::arch::smmuv3::layout::stream_table::{CdTableFormat, Config, DefaultSubstream, Eats, Stage2};
use crate::arch::smmuv3::layout::{Asid, Cd, Granule, Ste, Vmid};

/// What hardware does with requests, told by the fields that it looks at; MEV is not among them, and
/// EATS only where it is neither off nor full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    /// V = 0.
    Invalid,
    /// Config = abort.
    Abort,
    Stream {
        config: Config,
        /// MemAttr to INSTCFG.
        attributes: u64,
        /// Split EATS or more.
        eats: Option<Eats>,
        /// S1ContextPtr, S1CDMax, its attributes, S1STALLD.
        stage1: Option<(PhysAddr, u8, u64, bool)>,
        /// S1Fmt and S1DSS.
        substreams: Option<(CdTableFormat, DefaultSubstream)>,
        vmid: Option<Vmid>,
        stage2: Option<Stage2>,
    },
    Context {
        asid: Asid,
        /// TTB, TSZ and the like of the halves that are walked.
        lower: Option<(PhysAddr, u64)>,
        upper: Option<(PhysAddr, u64)>,
        ips: u64,
        /// A, R, S.
        faults: [bool; 3],
        mair: u64,
    },
}

/// An entry whose meaning a test can tell.
trait Meaning: Structure + PartialEq + core::fmt::Debug {
    fn seen(self) -> Seen;
}

impl Meaning for Ste {
    fn seen(self) -> Seen {
        let config = self.config();
        if !self.is_valid() {
            return Seen::Invalid;
        } else if config == Config::Abort {
            return Seen::Abort;
        }
        let stage1 = (self.cd_table(), self.cd_max(), self.words[1] & 0xfc, self.disables_stalls());
        let substreams = (self.cd_format(), self.default_substream());
        let translates = config != Config::Bypass;
        Seen::Stream {
            config,
            attributes: self.words[1] >> 32 & 0xf_ffff,
            eats: Some(self.eats()).filter(|eats| translates && !matches!(eats, Eats::Off | Eats::Full)),
            stage1: config.has_stage1().then_some(stage1),
            substreams: (config.has_stage1() && self.cd_max() > 0).then_some(substreams),
            vmid: translates.then_some(self.vmid()),
            stage2: config.has_stage2().then_some(self.stage2_fields()),
        }
    }
}

impl Meaning for Cd {
    fn seen(self) -> Seen {
        if !self.is_valid() {
            return Seen::Invalid;
        }
        let half = |half, shift: u32| {
            let table = self.table(half);
            let shape = self.words[0] >> shift & 0x3fff | u64::from(table.hierarchy_disabled) << 32;
            (!table.walk_disabled).then_some((table.table, shape))
        };
        Seen::Context {
            asid: self.asid(),
            lower: half(Half::Lower, 0),
            upper: half(Half::Upper, 16),
            ips: self.ips(),
            faults: [self.aborts(), self.records(), self.stalls()],
            mair: self.memory_attributes(),
        }
    }
}

const TABLES: [PhysAddr; 2] = [PhysAddr::new(0x7_1000), PhysAddr::new(0xa_2000)];

const fn second(vmid: u16, table: PhysAddr) -> Stage2 {
    Stage2 {
        vmid: Vmid(vmid),
        table,
        t0sz: 24,
        sl0: 1,
        tg: 0,
        ps: 5,
        cacheability: 1,
        shareability: 3,
        access_flag_fault_disabled: true,
        record: true,
        stall: false,
    }
}

const fn stage1(table: PhysAddr) -> Ste {
    Ste::stage1(table, CdTableFormat::Linear, 0)
}

const fn substreams(table: PhysAddr, default: DefaultSubstream) -> Ste {
    Ste::stage1(table, CdTableFormat::TwoLevel4K, 10).with_default_substream(default)
}

/// Streams of all kinds, without flags.
fn plain_streams() -> Vec<Ste> {
    use DefaultSubstream::{Bypass, Substream0, Terminate};
    let mut streams = vec![Ste::default(), Ste::abort(), Ste::bypass()];
    for table in TABLES {
        streams.push(stage1(table));
        streams.push(stage1(table).with_vmid(Vmid(1)));
        streams.extend([CdTableFormat::Linear, CdTableFormat::TwoLevel64K].map(|shape| Ste::stage1(table, shape, 4)));
        streams.extend([Terminate, Bypass, Substream0].map(|default| substreams(table, default)));
        for vmid in [0, 1, 2] {
            streams.push(Ste::stage2(second(vmid, table)));
            streams.push(Ste::stage2(Stage2 { t0sz: 16, sl0: 2, ..second(vmid, table) }));
            streams.extend(TABLES.map(|cds| stage1(cds).nested_under(second(vmid, table))));
            streams.push(substreams(TABLES[0], Bypass).nested_under(second(vmid, table)));
        }
    }
    streams
}

/// The same with flags; and what an earlier entry has left behind, where nobody looks.
fn streams() -> Vec<Ste> {
    let mut streams = plain_streams();
    for stream in plain_streams() {
        streams.push(stream.with_merged_events());
        if stream.config() != Config::Bypass && stream.config() != Config::Abort {
            streams.push(stream.with_eats(Eats::Full));
        }
        if stream.config().has_stage1() {
            streams.push(stream.with_stalls_disabled());
            streams.push(stream.with_stalls_disabled().with_eats(Eats::Full).with_merged_events());
        }
        if stream.config() == Config::Nested {
            streams.push(stream.with_eats(Eats::Split));
        }
        if !stream.config().has_stage2() {
            let mut left = stream;
            left.words[3] = 0x5_5000;
            streams.push(left);
        }
    }
    streams.push(invalid(stage1(TABLES[0])));
    streams
}

fn invalid<S: Structure>(entry: S) -> S {
    let mut words: Words = entry.into();
    words[0] &= !S::V;
    words.into()
}

fn context(asid: u16, table: PhysAddr) -> Cd {
    Cd::new(Asid(asid), table, Granule::Size4K, 48, 44).with_memory_attributes(0xff).recording()
}

/// As an address space that is shared with a processor has it: other memory attributes, ASID, size.
fn shared(asid: u16, table: PhysAddr) -> Cd {
    Cd::new(Asid(asid), table, Granule::Size64K, 52, 48)
        .with_memory_attributes(0xff_4404)
        .recording()
        .without_hierarchy()
}

fn contexts() -> Vec<Cd> {
    let mut contexts = vec![Cd::default()];
    for table in TABLES {
        for asid in [1, 2] {
            for cd in [context(asid, table), shared(asid, table)] {
                contexts.extend([cd, cd.stalling(), cd.released(), invalid(cd), cd.with_walk_attributes(0, 2)]);
                let mut empty = cd.released();
                empty.words[1] = 0;
                contexts.push(empty);
                // Both halves.
                let mut both = cd;
                both.words[0] &= !(1 << 30);
                both.words[2] = 0x66_0000;
                contexts.push(both);
            }
        }
    }
    contexts
}

fn steps(plan: &Plan) -> Vec<Step> {
    let mut steps = Vec::new();
    plan.each(&mut |step| {
        steps.push(step);
        Ok(())
    })
    .unwrap();
    steps
}

fn syncs(steps: &[Step]) -> usize {
    steps.iter().filter(|step| **step == Step::Sync).count()
}

/// What a fetch may find of an entry that changes: each quadword as it was at any time since the last
/// sync, which also ends fetches under way (3.21.3).
#[derive(Clone)]
struct Moment([Vec<u64>; WORDS]);

impl Moment {
    fn new(words: Words) -> Self {
        Self(words.map(|word| vec![word]))
    }

    fn now(&self) -> Words {
        core::array::from_fn(|index| *self.0[index].last().unwrap())
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Store(index, value) => self.0[index].push(value),
            Step::Sync => *self = Self::new(self.now()),
        }
    }

    fn views(&self, visit: &mut dyn FnMut(Words)) {
        let count: usize = self.0.iter().map(Vec::len).product();
        for mut choice in 0..count {
            visit(core::array::from_fn(|index| {
                let states = &self.0[index];
                let state = states[choice % states.len()];
                choice /= states.len();
                state
            }));
        }
    }
}

/// The worst that hardware sees in any order of these steps; `None` if that is a third entry.
fn judge<S: Meaning>(old: S, new: S, steps: &[Step]) -> Option<Passage> {
    let (before, after) = (old.seen(), new.seen());
    let mut moment = Moment::new(old.into());
    let mut passage = Some(Passage::Hitless);
    for step in steps {
        moment.step(*step);
        moment.views(&mut |view| match S::from(view).seen() {
            seen if seen == before || seen == after => {}
            Seen::Invalid => passage = passage.map(|_| Passage::Blocked),
            _ => passage = None,
        });
    }
    let mut views = 0;
    moment.views(&mut |_| views += 1);
    // Nothing else may be cached or under way when the old tables are let go.
    passage.filter(|_| S::from(moment.now()) == new && views == 1)
}

fn check_all<S: Meaning>(entries: &[S]) {
    for &old in entries {
        for &new in entries {
            let plan = Plan::new(old, new);
            let steps = steps(&plan);
            assert_eq!(judge(old, new, &steps), Some(plan.passage()), "{old:x?} {new:x?}: {steps:x?}");
            assert_eq!(steps.is_empty(), old == new);
            assert!(syncs(&steps) <= 3);
            let stored = |index| steps.iter().filter(|step| matches!(step, Step::Store(at, _) if *at == index)).count();
            assert!((0..WORDS).all(|index| stored(index) <= 2), "{steps:x?}");
        }
    }
}

#[test]
fn hardware_sees_the_old_stream_the_new_one_or_none() {
    check_all(&streams());
}

#[test]
fn hardware_sees_the_old_context_the_new_one_or_none() {
    check_all(&contexts());
}

/// Every bit that hardware looks at makes a difference, if it alone differs: so none that it looks at is
/// taken for unused. Those it does not look at make none.
fn check_used<S: Meaning>(entries: &[S], known: Words) {
    for &entry in entries {
        let (words, used): (Words, _) = (entry.into(), entry.used());
        for (index, bit) in (0..WORDS).flat_map(|index| (0..64).map(move |bit| (index, bit))) {
            let mut other = words;
            other[index] ^= 1 << bit;
            let is_used = used[index] >> bit & 1 != 0;
            let matters = S::from(other).seen() != entry.seen();
            assert!(is_used || !matters, "{entry:x?}: bit {bit} of {index}");
            if known[index] >> bit & 1 != 0 {
                assert!(matters || !is_used, "{entry:x?}: bit {bit} of {index} is not looked at");
            }
        }
    }
}

#[test]
fn what_is_used_is_what_matters() {
    // Fields that the model of this test knows, as far as each value has a meaning of its own.
    let mut stream = [0; WORDS];
    stream[0] = 1 | 1 << 3 | 0x00ff_ffff_ffff_ffc0 & ((1 << 52) - 1) | 0x1f << 59;
    stream[1] = 0xfc | 1 << 19 | 1 << 27 | 0xf_ffff << 32;
    stream[2] = 0xffff | 0x3f << 32;
    stream[3] = ((1 << 52) - 1) & !0xf;
    check_used(&streams(), stream);
    let mut context = [0; WORDS];
    context[0] = 0x3f | 0x3f << 16 | 1 << 31 | 0xffff << 48 | 1 << 14 | 1 << 30;
    context[1] = ((1 << 52) - 1) & !0xf | 2;
    context[2] = context[1];
    context[3] = u64::MAX;
    check_used(&contexts(), context);
}

/// The table of the module's documentation, and what each way costs.
#[test]
fn which_streams_change_hitlessly() {
    use DefaultSubstream::{Bypass, Substream0, Terminate};
    use Passage::{Blocked, Hitless};
    let [one, two] = TABLES;
    let nested = |cds, vmid, table| stage1(cds).nested_under(second(vmid, table));
    let stage2 = |vmid, table| Ste::stage2(second(vmid, table));
    let terminating = substreams(one, Terminate);
    for (old, new, passage, there, back) in [
        (Ste::default(), Ste::abort(), Hitless, 1, 1),
        (Ste::default(), Ste::bypass(), Hitless, 2, 2),
        (Ste::default(), stage1(one), Hitless, 2, 2),
        (Ste::abort(), Ste::bypass(), Hitless, 2, 2),
        (Ste::abort(), stage1(one), Hitless, 2, 2),
        (Ste::abort(), stage2(1, one), Hitless, 2, 2),
        (Ste::abort(), nested(one, 1, two), Hitless, 2, 2),
        (Ste::bypass(), stage1(one), Hitless, 2, 2),
        (Ste::bypass(), stage2(1, one), Hitless, 2, 2),
        (Ste::bypass(), substreams(one, Bypass), Hitless, 2, 2),
        (stage1(one), stage1(two), Hitless, 1, 1),
        (stage1(one), stage1(one), Hitless, 0, 0),
        (stage1(one), stage1(one).with_stalls_disabled(), Hitless, 1, 1),
        (stage1(one), stage1(two).with_stalls_disabled(), Blocked, 3, 3),
        (stage1(one), stage1(one).with_merged_events(), Hitless, 1, 1),
        (stage1(one), stage1(two).with_merged_events(), Hitless, 1, 1),
        (stage1(one), stage1(two).with_eats(Eats::Full), Hitless, 1, 1),
        (stage1(one), Ste::stage1(two, CdTableFormat::Linear, 4), Hitless, 1, 1),
        (stage1(one), substreams(two, Substream0), Hitless, 2, 2),
        (terminating, substreams(one, Bypass), Hitless, 1, 1),
        (terminating, substreams(one, Substream0), Hitless, 1, 1),
        (terminating, substreams(two, Substream0), Blocked, 3, 3),
        (stage1(one), stage2(0, two), Hitless, 3, 3),
        (stage1(one), stage2(1, two), Blocked, 3, 3),
        (stage1(one).with_vmid(Vmid(1)), stage2(1, two), Hitless, 3, 3),
        (stage1(one).with_stalls_disabled(), stage2(0, two), Hitless, 3, 3),
        (stage1(one).with_stalls_disabled(), stage2(1, two), Blocked, 3, 3),
        (stage1(one), nested(one, 0, two), Hitless, 2, 2),
        (stage1(one), nested(one, 1, two), Blocked, 3, 3),
        (stage2(1, one), stage2(1, two), Hitless, 1, 1),
        (stage2(1, one), stage2(2, one), Hitless, 1, 1),
        (stage2(1, one), stage2(2, two), Blocked, 3, 3),
        (stage2(1, one), nested(two, 1, one), Hitless, 2, 2),
        (stage2(1, one), nested(two, 1, two), Blocked, 3, 3),
        (nested(one, 1, one), nested(two, 1, one), Hitless, 1, 1),
        (nested(one, 1, one), nested(one, 1, one).with_eats(Eats::Full), Hitless, 1, 1),
        (nested(one, 1, one), nested(two, 1, one).with_eats(Eats::Split), Blocked, 3, 3),
    ] {
        for (old, new, count) in [(old, new, there), (new, old, back)] {
            let plan = Plan::new(old, new);
            assert_eq!((plan.passage(), syncs(&steps(&plan))), (passage, count), "{old:x?} {new:x?}");
        }
    }
}

#[test]
fn which_contexts_change_hitlessly() {
    use Passage::{Blocked, Hitless};
    let [one, two] = TABLES;
    let cleared = |mut cd: Cd| {
        cd.words[1] = 0;
        cd
    };
    for (old, new, passage, there, back) in [
        (Cd::default(), context(1, one), Hitless, 2, 2),
        (invalid(context(1, one)), context(1, one), Hitless, 1, 1),
        (context(1, one), context(2, one), Hitless, 1, 1),
        (context(1, one), context(1, two), Hitless, 1, 1),
        (context(1, one), context(2, two), Blocked, 3, 3),
        (context(1, one), context(1, one).stalling(), Hitless, 1, 1),
        (context(1, one), context(1, one).released(), Hitless, 1, 1),
        (context(1, one), cleared(context(1, one).released()), Hitless, 2, 2),
        (context(1, one).released(), context(2, two), Hitless, 2, 2),
        (context(1, one), shared(1, two), Blocked, 3, 3),
        (shared(1, one), shared(1, one).released(), Hitless, 1, 1),
        (shared(1, one).released(), context(2, two), Blocked, 3, 3),
    ] {
        for (old, new, count) in [(old, new, there), (new, old, back)] {
            let plan = Plan::new(old, new);
            assert_eq!((plan.passage(), syncs(&steps(&plan))), (passage, count), "{old:x?} {new:x?}");
        }
    }
}

#[test]
fn steps_of_an_update() {
    let (old, new) = (stage1(TABLES[0]), Ste::stage2(second(0, TABLES[1])));
    assert_eq!(
        steps(&Plan::new(old, new)),
        [
            Step::Store(2, new.words[2]),
            Step::Store(3, new.words[3]),
            Step::Sync,
            Step::Store(0, new.words[0]),
            Step::Sync,
            Step::Store(1, new.words[1]),
            Step::Sync,
        ]
    );
    let other = Ste::stage2(second(1, TABLES[1]));
    assert_eq!(
        steps(&Plan::new(old, other)),
        [
            Step::Store(0, old.words[0] & !1),
            Step::Sync,
            Step::Store(2, other.words[2]),
            Step::Store(3, other.words[3]),
            Step::Sync,
            // What neither an entry with V = 0 nor the new one uses is cleared along with the turn.
            Step::Store(0, other.words[0]),
            Step::Store(1, other.words[1]),
            Step::Sync,
        ]
    );
}

/// Values that a quadword may take on a way that costs less: of either entry, with what the other uses
/// of it, not valid.
fn values<S: Structure>(old: S, new: S, index: usize) -> Vec<u64> {
    let [before, after, used, later] = [old.into(), new.into(), old.used(), new.used()].map(|words| words[index]);
    let mut values = vec![before, after, before & used | after & !used, after & later | before & !later];
    if index == 0 {
        values.extend([before & !S::V, after & !S::V]);
    }
    values.sort_unstable();
    values.dedup();
    values
}

/// All that `from` can become with stores and one sync, each quadword stored once or not.
fn reached<S: Meaning>(from: Words, old: S, new: S, toward: impl Fn(Words, Words) -> Moment) -> Vec<(Words, bool)> {
    let all: [Vec<u64>; WORDS] = core::array::from_fn(|index| values(old, new, index));
    let count: usize = all.iter().map(Vec::len).product();
    let (before, after) = (old.seen(), new.seen());
    let mut reached = Vec::new();
    for mut choice in 0..count {
        let words = core::array::from_fn(|index| {
            let value = all[index][choice % all[index].len()];
            choice /= all[index].len();
            value
        });
        let (mut third, mut blocked) = (false, false);
        toward(from, words).views(&mut |view| {
            let seen = S::from(view).seen();
            let known = seen == before || seen == after;
            blocked |= !known && seen == Seen::Invalid;
            third |= !known && seen != Seen::Invalid;
        });
        if !third {
            reached.push((words, blocked));
        }
    }
    reached
}

fn step_between(from: Words, to: Words) -> Moment {
    let mut moment = Moment::new(from);
    (0..WORDS).filter(|index| from[*index] != to[*index]).for_each(|index| moment.step(Step::Store(index, to[index])));
    moment
}

/// The fewest syncs, up to two, with which there is a way that is at least as good for requests.
fn fewest<S: Meaning>(old: S, new: S, passage: Passage) -> usize {
    let fine = |blocked: bool| !blocked || passage == Passage::Blocked;
    let first = reached(old.into(), old, new, step_between);
    if old == new {
        return 0;
    } else if first.iter().any(|(words, blocked)| *words == new.into() && fine(*blocked)) {
        return 1;
    }
    let last = reached(new.into(), old, new, |to, from| step_between(from, to));
    let meets = |words: &Words| last.iter().any(|(other, blocked)| other == words && fine(*blocked));
    if first.iter().any(|(words, blocked)| fine(*blocked) && meets(words)) { 2 } else { 3 }
}

/// Whether there is a hitless way with up to three syncs.
fn has_hitless_way<S: Meaning>(old: S, new: S) -> bool {
    let mut ways = vec![old.into()];
    for _ in 0..3 {
        let mut next: Vec<Words> = Vec::new();
        for from in ways {
            let found = reached(from, old, new, step_between).into_iter().filter(|(_, blocked)| !blocked);
            next.extend(found.map(|(words, _)| words));
        }
        next.sort_unstable();
        next.dedup();
        ways = next;
    }
    ways.contains(&new.into())
}

fn check_minimal<S: Meaning>(entries: &[S]) {
    for &old in entries {
        for &new in entries {
            let plan = Plan::new(old, new);
            let passage = plan.passage();
            assert_eq!(syncs(&steps(&plan)), fewest(old, new, passage), "{old:x?} {new:x?} {passage:?}");
            assert!(passage == Passage::Hitless || !has_hitless_way(old, new), "{old:x?} {new:x?}");
        }
    }
}

#[test]
fn no_way_has_fewer_syncs() {
    let [one, two] = TABLES;
    check_minimal(&[
        Ste::default(),
        Ste::abort(),
        Ste::bypass(),
        stage1(one),
        stage1(two).with_stalls_disabled().with_merged_events(),
        substreams(two, DefaultSubstream::Bypass).with_eats(Eats::Full),
        Ste::stage2(second(0, one)),
        Ste::stage2(second(1, two)),
        stage1(two).nested_under(second(1, two)),
    ]);
    check_minimal(&[Cd::default(), context(1, one), context(2, two), shared(2, one), shared(1, two).released()]);
}
