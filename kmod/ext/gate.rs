// SPDX-License-Identifier: GPL-2.0

//! A value that can be taken away from those who use it, who may sleep meanwhile.
//!
//! `kernel::revocable::Revocable` does the same for users that must not sleep. A page fault has to:
//! it allocates page tables. Users are counted, so that closing waits for those inside and not for
//! a grace period, and costs next to nothing when nobody is.
//!
//! A gate can also be shut for a while: [`Gate::suspend`] waits for those inside, exactly as closing
//! does, but the value stays, and [`Gate::resume`] lets users in again. Whoever was turned away
//! meanwhile sleeps in [`Gate::wait`], with nothing of the gate in its hands, until one of `resume`
//! and `close` ends that.
//!
//! ```text
//!            suspend                  close
//!     open ----------> suspended -------------> closed
//!      ^ <----------------+                       ^
//!      |     resume                               |
//!      +------------------------------------------+
//! ```

use super::shim;
use core::{
    cell::UnsafeCell,
    mem::MaybeUninit,
    ops::Deref, //
};
use kernel::{
    bindings,
    prelude::*,
    static_lock_class,
    sync::atomic::{
        Acquire,
        Atomic,
        Full, //
    },
    types::Opaque, //
};

/// Added to the count of users while the gate is closed.
const CLOSED: i64 = 1 << 62;
/// Added to the count of users while the gate is suspended, closed or not.
const SUSPENDED: i64 = 1 << 61;
/// The count itself.
const COUNT: i64 = SUSPENDED - 1;

/// Why somebody was turned away.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shut {
    /// For now.
    Suspended,
    /// For good.
    Closed,
}

/// A value of type `T` that [`Gate::close`] takes away.
///
/// # Invariants
///
/// `users` is the number of [`Inside`] guards and of calls to `admit` in progress, plus
/// [`SUSPENDED`] between `suspend` and `resume`, plus [`CLOSED`] once `close` has been called.
/// `value` is initialised until `close` has seen that nobody is inside; only the caller of `close`
/// that has added the flag moves it out.
#[pin_data(PinnedDrop)]
pub(crate) struct Gate<T> {
    users: Atomic<i64>,
    value: UnsafeCell<MaybeUninit<T>>,
    /// Where those sleep who wait for the end of a suspension, or for those inside to leave.
    #[pin]
    waiters: Opaque<bindings::wait_queue_head>,
}

// SAFETY: The value moves to another thread in `close`, and is shared in between.
unsafe impl<T: Send + Sync> Send for Gate<T> {}
// SAFETY: As above; the type's invariant says how the accesses are ordered.
unsafe impl<T: Send + Sync> Sync for Gate<T> {}

impl<T> Gate<T> {
    /// An open gate.
    pub(crate) fn new(value: T) -> impl PinInit<Self> {
        // INVARIANT: Open, initialised, and nobody inside.
        pin_init!(Self {
            users: Atomic::new(0),
            value: UnsafeCell::new(MaybeUninit::new(value)),
            // SAFETY: The slot is valid and pinned, and name and key are statics.
            waiters <- Opaque::ffi_init(|slot| unsafe {
                bindings::__init_waitqueue_head(
                    slot,
                    c"Gate::waiters".as_char_ptr(),
                    static_lock_class!().as_ptr(),
                )
            }),
        })
    }

    /// Uses the value, if the gate is open.
    pub(crate) fn enter(&self) -> Option<Inside<'_, T>> {
        self.admit().ok()
    }

    /// [`Gate::admit`], with the errno for it.
    ///
    /// # Errors
    ///
    /// `ENODEV` when the gate is closed, `EAGAIN` while it is suspended.
    pub(crate) fn enter_now(&self) -> Result<Inside<'_, T>> {
        self.admit().map_err(|shut| match shut {
            Shut::Suspended => EAGAIN,
            Shut::Closed => ENODEV,
        })
    }

    /// Uses the value, or tells why that is not possible.
    ///
    /// Whoever suspends or closes the gate waits until the guard is dropped, so the guard's holder
    /// must not wait for something that either holds up, such as a page fault on memory behind
    /// another gate.
    pub(crate) fn admit(&self) -> Result<Inside<'_, T>, Shut> {
        // INVARIANT: Counted before the look at the flags, so that `suspend` and `close` either are
        // seen here or see us.
        let before = self.users.fetch_add(1, Full);
        if before < SUSPENDED {
            return Ok(Inside(self));
        }
        self.leave();
        Err(if before < CLOSED {
            Shut::Suspended
        } else {
            Shut::Closed
        })
    }

    /// Sleeps as long as the gate is suspended and not closed. A `freezable` caller holds no lock.
    ///
    /// # Errors
    ///
    /// `EINTR` when the calling task is killed.
    pub(crate) fn wait(&self, freezable: bool) -> Result {
        // SAFETY: The queue was initialised by `new`, the word is ours, and both stay as long as
        // `self` is borrowed.
        let woken = unsafe {
            shim::barbuf_helper_wait_between(
                self.waiters.get(),
                self.users.as_ptr(),
                SUSPENDED,
                CLOSED,
                freezable,
            )
        };
        if woken {
            Ok(())
        } else {
            Err(EINTR)
        }
    }

    /// [`Gate::admit`], after [`Gate::wait`] as often as is needed.
    ///
    /// # Errors
    ///
    /// `ENODEV` when the gate is closed, `EINTR` when the calling task is killed.
    pub(crate) fn admit_patiently(&self) -> Result<Inside<'_, T>> {
        loop {
            match self.admit() {
                Ok(inside) => return Ok(inside),
                Err(Shut::Closed) => return Err(ENODEV),
                Err(Shut::Suspended) => self.wait(false)?,
            }
        }
    }

    fn leave(&self) {
        let after = self.users.fetch_sub(1, Full).wrapping_sub(1);
        if after >= SUSPENDED && after & COUNT == 0 {
            self.wake();
        }
    }

    /// Sleeps until nobody is inside.
    fn outlast(&self) {
        // Pairs with `leave`: what those inside have done is seen by who finds that they have left.
        while self.users.load(Acquire) & COUNT != 0 {
            // SAFETY: As in `wait`.
            unsafe {
                shim::barbuf_helper_wait_clear(self.waiters.get(), self.users.as_ptr(), COUNT)
            };
        }
    }

    /// Replaces the flags and the count, unless `change` has nothing to change. Says whether it had.
    fn change(&self, change: impl Fn(i64) -> Option<i64>) -> bool {
        let mut now = self.users.load(Acquire);
        while let Some(then) = change(now) {
            match self.users.cmpxchg(now, then, Full) {
                Ok(_) => return true,
                Err(other) => now = other,
            }
        }
        false
    }

    /// Whether the gate has been closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.users.load(Acquire) >= CLOSED
    }

    /// Whether the gate is neither suspended nor closed.
    pub(crate) fn is_open(&self) -> bool {
        self.users.load(Acquire) < SUSPENDED
    }

    /// Turns users away until [`Gate::resume`], and waits until nobody is inside. Sleeps.
    ///
    /// Returns whether the gate was open.
    pub(crate) fn suspend(&self) -> bool {
        // INVARIANT: Suspended from here on.
        let was_open = self.change(|users| (users < SUSPENDED).then_some(users | SUSPENDED));
        if was_open {
            self.outlast();
        }
        was_open
    }

    /// Ends what [`Gate::suspend`] began, if it did.
    pub(crate) fn resume(&self) {
        // INVARIANT: Not suspended from here on.
        if self.change(|users| (users & SUSPENDED != 0).then_some(users & !SUSPENDED)) {
            self.wake();
        }
    }

    fn wake(&self) {
        // SAFETY: The queue was initialised by `new`.
        unsafe { shim::barbuf_helper_wake_all(self.waiters.get()) };
    }

    /// Closes the gate, waits until nobody is inside, and returns the value.
    ///
    /// `None` when it was closed before; the other caller may still be waiting then. Sleeps.
    pub(crate) fn close(&self) -> Option<T> {
        // INVARIANT: Closed from here on.
        if !self.change(|users| (users < CLOSED).then_some(users | CLOSED)) {
            return None;
        }
        self.wake();
        self.outlast();
        // SAFETY: The flag lets only one caller come here. All users have left, and later ones turn
        // back at the flag.
        Some(unsafe { (*self.value.get()).assume_init_read() })
    }
}

#[pinned_drop]
impl<T> PinnedDrop for Gate<T> {
    fn drop(self: Pin<&mut Self>) {
        if !self.is_closed() {
            // SAFETY: Not closed, so initialised; `&mut self` excludes everybody else.
            unsafe { (*self.value.get()).assume_init_drop() };
        }
    }
}

/// The use of a [`Gate`]'s value.
pub(crate) struct Inside<'a, T>(&'a Gate<T>);

impl<T> Deref for Inside<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: We are counted, and entered while the gate was open: the value stays.
        unsafe { (*self.0.value.get()).assume_init_ref() }
    }
}

impl<T> Drop for Inside<'_, T> {
    fn drop(&mut self) {
        self.0.leave();
    }
}
