// SPDX-License-Identifier: GPL-2.0

//! The state machine: every word of events up to a length, and every interleaving of the actors
//! that use it.

use barbuf_pure_tests::pure::{
    errno::Errno,
    state::{Event, Life, Outcome, State},
};

/// The table of the whole machine, written down once more by hand: what happens, and the state
/// after it.
fn table(state: State, event: Event) -> (State, Outcome) {
    use Event::*;
    use Outcome::*;
    use State::{Live, Revoked, Suspended};
    match (state, event) {
        (Live, Suspend) => (Suspended, Changed),
        (Live, Resume) => (Live, Unchanged),
        (Live, Revoke) => (Revoked, Changed),
        (Live, Export | Mmap | Fault | Attach | Map) => (Live, Proceed),
        (Suspended, Suspend) => (Suspended, Unchanged),
        (Suspended, Resume) => (Live, Changed),
        (Suspended, Revoke) => (Revoked, Changed),
        (Suspended, Mmap) => (Suspended, Proceed),
        (Suspended, Export | Fault) => (Suspended, Wait),
        (Suspended, Attach | Map) => (Suspended, Refused(Errno::EAGAIN)),
        (Revoked, Revoke) => (Revoked, Refused(Errno::EBADFD)),
        (Revoked, _) => (Revoked, Refused(Errno::ENODEV)),
    }
}

/// What must hold of one step, whatever led to it.
fn check_step(before: Life, event: Event) -> Life {
    let (after, outcome) = before.apply(event);
    assert_eq!(
        (after.state(), outcome),
        table(before.state(), event),
        "{before:?} {event:?}"
    );
    let raised = outcome == Outcome::Changed && event != Event::Suspend;
    assert_eq!(after.generation(), before.generation() + u64::from(raised));
    assert_eq!(before == after, outcome != Outcome::Changed);
    assert_eq!(Life::from_bits(after.to_bits()), Some(after));
    after
}

#[test]
fn every_word_of_seven_events() {
    fn go(life: Life, left: u32, words: &mut u32) {
        if left == 0 {
            *words += 1;
            return;
        }
        for event in Event::ALL {
            let after = check_step(life, event);
            if life.state() == State::Revoked {
                assert_eq!(after, life, "revoked is final");
            }
            go(after, left - 1, words);
        }
    }
    let mut words = 0;
    go(Life::new(), 7, &mut words);
    assert_eq!(words, 8u32.pow(7));
}

#[test]
fn three_actors_with_four_events_each() {
    use Event::*;
    /// All interleavings of what is left of the three scripts.
    fn go(life: Life, scripts: [&[Event]; 3], ends: &mut Vec<Life>) {
        let mut ended = true;
        for actor in 0..3 {
            if let Some((event, rest)) = scripts[actor].split_first() {
                ended = false;
                let mut scripts = scripts;
                scripts[actor] = rest;
                go(check_step(life, *event), scripts, ends);
            }
        }
        if ended {
            ends.push(life);
        }
    }

    let reset = [Suspend, Resume, Suspend, Resume];
    let user = [Export, Mmap, Fault, Fault];
    let importer = [Attach, Map, Map, Map];
    let remover = [Fault, Revoke, Revoke, Fault];

    let mut ends = Vec::new();
    go(Life::new(), [&reset, &user, &importer], &mut ends);
    assert_eq!(ends.len(), 34_650, "12! / 4!^3");
    assert!(ends
        .iter()
        .all(|life| (life.state(), life.generation()) == (State::Live, 3)));

    ends.clear();
    go(Life::new(), [&reset, &remover, &importer], &mut ends);
    assert_eq!(ends.len(), 34_650);
    assert!(ends.iter().all(|life| life.state() == State::Revoked));
    // Revoked before, between or after the two resets.
    for generation in 2..=4 {
        assert!(ends.iter().any(|life| life.generation() == generation));
    }
    assert!(ends.iter().all(|life| (2..=4).contains(&life.generation())));
}

#[test]
fn words_that_are_no_life() {
    for bits in [0, 1, 2, 3, 7, u64::MAX] {
        assert_eq!(Life::from_bits(bits), None, "{bits:#x}");
    }
    assert_eq!(Life::from_bits(4), Some(Life::new()));
    assert_eq!(Life::default(), Life::new());
}

/// The generation stays at its end instead of starting again, or of spilling into the state.
#[test]
fn the_last_generation() {
    let last = Life::from_bits(u64::MAX - 2).unwrap();
    assert_eq!(last.state(), State::Suspended);
    let (live, outcome) = last.apply(Event::Resume);
    assert_eq!(outcome, Outcome::Changed);
    assert_eq!(
        (live.state(), live.generation()),
        (State::Live, last.generation())
    );
}

#[test]
fn a_new_buffer_is_in_its_providers_state() {
    let (suspended, _) = Life::new().apply(Event::Suspend);
    let (revoked, _) = suspended.apply(Event::Revoke);
    for provider in [Life::new(), suspended, revoked] {
        assert_eq!(Life::of(provider).state(), provider.state());
        assert_eq!(Life::of(provider).generation(), 1);
    }
}

/// A model of the driver's steps around the machine, to see that their order is enough: two
/// faulting threads, and one that revokes.
mod protocol {
    use super::*;

    /// What one of the threads does next.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub(super) enum Step {
        /// Begin a read-side section.
        Enter,
        /// Look at the state.
        Decide,
        /// Put the page into the page table, if the state allowed it.
        Insert,
        /// End the read-side section.
        Leave,
        /// Store the new state.
        Store,
        /// Wait for all read-side sections that began before now.
        Synchronize,
        /// Take all mappings away.
        Zap,
        /// Tell the caller that it is done.
        Return,
    }

    #[derive(Clone, Copy)]
    struct Thread<'a> {
        steps: &'a [Step],
        inside: bool,
        proceed: bool,
    }

    #[derive(Clone, Copy)]
    struct World<'a> {
        life: Life,
        mapped: bool,
        returned: bool,
        /// Which sections the revoker still waits for.
        waits_for: Option<[bool; 2]>,
        threads: [Thread<'a>; 3],
    }

    /// Tries all interleavings. Returns how many there were, and in how many a mapping was left
    /// after the end.
    pub(super) fn run(fault: &[Step], revoke: &[Step]) -> (u32, u32) {
        let thread = |steps| Thread {
            steps,
            inside: false,
            proceed: false,
        };
        let world = World {
            life: Life::new(),
            mapped: false,
            returned: false,
            waits_for: None,
            threads: [thread(fault), thread(fault), thread(revoke)],
        };
        let mut tally = (0, 0);
        go(world, &mut tally);
        tally
    }

    fn go(world: World<'_>, tally: &mut (u32, u32)) {
        let mut ended = true;
        for actor in 0..3 {
            let Some((step, rest)) = world.threads[actor].steps.split_first() else {
                continue;
            };
            ended = false;
            let mut next = world;
            if step_once(&mut next, actor, *step) {
                next.threads[actor].steps = rest;
                go(next, tally);
            }
        }
        if ended {
            tally.0 += 1;
            tally.1 += u32::from(world.mapped);
            assert!(world.returned);
        }
    }

    /// Does one step; `false` when the thread has to wait.
    fn step_once(world: &mut World<'_>, actor: usize, step: Step) -> bool {
        match step {
            Step::Enter => world.threads[actor].inside = true,
            Step::Decide => {
                let (_, outcome) = world.life.apply(Event::Fault);
                world.threads[actor].proceed = outcome == Outcome::Proceed;
            }
            Step::Insert => world.mapped |= world.threads[actor].proceed,
            Step::Leave => {
                world.threads[actor].inside = false;
                if let Some(waits_for) = &mut world.waits_for {
                    waits_for[actor] = false;
                }
            }
            Step::Store => world.life = world.life.apply(Event::Revoke).0,
            Step::Synchronize => {
                let inside = [world.threads[0].inside, world.threads[1].inside];
                let waits_for = *world.waits_for.get_or_insert(inside);
                return waits_for == [false, false];
            }
            Step::Zap => world.mapped = false,
            Step::Return => world.returned = true,
        }
        true
    }
}

/// Store, synchronize, zap: nothing is mapped afterwards. Any two of these the other way round, or
/// one of them left out, and something can be: so the model does see the difference.
#[test]
fn revocation_in_the_right_order() {
    use protocol::{run, Step::*};
    let fault = [Enter, Decide, Insert, Leave];

    let (all, mapped) = run(&fault, &[Store, Synchronize, Zap, Return]);
    assert!(all > 1_000, "{all}");
    assert_eq!(mapped, 0);

    for wrong in [
        [Zap, Store, Synchronize, Return],
        [Store, Zap, Synchronize, Return],
        [Synchronize, Store, Zap, Return],
        [Synchronize, Zap, Store, Return],
        [Store, Store, Zap, Return],
        [Synchronize, Synchronize, Zap, Return],
    ] {
        assert_ne!(run(&fault, &wrong).1, 0, "{wrong:?}");
    }
    // A fault that decides before it enters is not waited for.
    assert_ne!(
        run(
            &[Decide, Enter, Insert, Leave],
            &[Store, Synchronize, Zap, Return]
        )
        .1,
        0
    );
}
