// SPDX-License-Identifier: GPL-2.0

//! The state machine: every word of events up to a length, every interleaving of the actors that
//! cause them, and of the steps around a revocation.

use barbuf_pure_tests::pure::state::{Event, Life, State};

const EVENTS: [Event; 3] = [Event::Suspend, Event::Resume, Event::Revoke];

/// The table of the whole machine, written down once more by hand: the state after an event, if that
/// is another one, and whether the generation grows.
fn table(state: State, event: Event) -> Option<(State, bool)> {
    use Event::*;
    use State::{Live, Revoked, Suspended};
    match (state, event) {
        (Live, Suspend) => Some((Suspended, false)),
        (Live, Resume) => None,
        (Live, Revoke) => Some((Revoked, true)),
        (Suspended, Suspend) => None,
        (Suspended, Resume) => Some((Live, true)),
        (Suspended, Revoke) => Some((Revoked, true)),
        (Revoked, _) => None,
    }
}

/// What must hold of one step, whatever led to it.
fn check_step(before: Life, event: Event) -> Life {
    let after = before.apply(event);
    let wanted = table(before.state(), event);
    let found = after.map(|after| (after.state(), after.generation() - before.generation()));
    let wanted = wanted.map(|(state, grows)| (state, u64::from(grows)));
    assert_eq!(found, wanted, "{before:?} {event:?}");
    let after = after.unwrap_or(before);
    assert_eq!(Life::from_bits(after.to_bits()), Some(after));
    after
}

#[test]
fn every_word_of_nine_events() {
    fn go(life: Life, left: u32, words: &mut u32) {
        if left == 0 {
            *words += 1;
            return;
        }
        for event in EVENTS {
            let after = check_step(life, event);
            if life.state() == State::Revoked {
                assert_eq!(after, life, "revoked is final");
            }
            go(after, left - 1, words);
        }
    }
    let mut words = 0;
    go(Life::new(), 9, &mut words);
    assert_eq!(words, 3u32.pow(9));
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
    let remover = [Suspend, Revoke, Revoke, Resume];

    let mut ends = Vec::new();
    go(Life::new(), [&reset, &reset, &reset], &mut ends);
    assert_eq!(ends.len(), 34_650, "12! / 4!^3");
    // Every script ends by resuming. Suspensions do not nest: the six of them are two at least.
    assert!(ends
        .iter()
        .all(|life| life.state() == State::Live && (3..=7).contains(&life.generation())));

    ends.clear();
    go(Life::new(), [&reset, &remover, &reset], &mut ends);
    assert_eq!(ends.len(), 34_650);
    assert!(ends.iter().all(|life| life.state() == State::Revoked));
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
    let live = last.apply(Event::Resume).unwrap();
    assert_eq!(
        (live.state(), live.generation()),
        (State::Live, last.generation())
    );
}

/// A model of the driver's steps around a revocation, to see that their order is enough: two threads
/// with a fault each, and one that revokes.
mod protocol {
    /// What one of the threads does next.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub(super) enum Step {
        /// Be counted as inside of the gate.
        Enter,
        /// Look whether the gate is shut.
        Look,
        /// Put the page into the page table, if it was not.
        Insert,
        /// Be counted no longer.
        Leave,
        /// Shut the gate.
        Shut,
        /// Wait until nobody is inside.
        Wait,
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
        shut: bool,
        mapped: bool,
        returned: bool,
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
            shut: false,
            mapped: false,
            returned: false,
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
            Step::Look => world.threads[actor].proceed = !world.shut,
            Step::Insert => world.mapped |= world.threads[actor].proceed,
            Step::Leave => world.threads[actor].inside = false,
            Step::Shut => world.shut = true,
            Step::Wait => return !world.threads.iter().any(|thread| thread.inside),
            Step::Zap => world.mapped = false,
            Step::Return => world.returned = true,
        }
        true
    }
}

/// Shut, wait, zap: nothing is mapped afterwards. Any two of these the other way round, or one of them
/// left out, and something can be: so the model does see the difference.
#[test]
fn revocation_in_the_right_order() {
    use protocol::{run, Step::*};
    let fault = [Enter, Look, Insert, Leave];

    let (all, mapped) = run(&fault, &[Shut, Wait, Zap, Return]);
    assert!(all > 1_000, "{all}");
    assert_eq!(mapped, 0);

    for wrong in [
        [Zap, Shut, Wait, Return],
        [Shut, Zap, Wait, Return],
        [Wait, Shut, Zap, Return],
        [Wait, Zap, Shut, Return],
        [Shut, Shut, Zap, Return],
        [Wait, Wait, Zap, Return],
    ] {
        assert_ne!(run(&fault, &wrong).1, 0, "{wrong:?}");
    }
    // A fault that looks before it is counted is not waited for.
    assert_ne!(
        run(&[Look, Enter, Insert, Leave], &[Shut, Wait, Zap, Return]).1,
        0
    );
}
