// SPDX-License-Identifier: GPL-2.0

//! A value that can be taken away from those who use it, who may sleep meanwhile.
//!
//! `kernel::revocable::Revocable` does the same for users that must not sleep. A page fault has to:
//! it allocates page tables. Users are counted, so that closing waits for those inside and not for
//! a grace period, and costs next to nothing when nobody is.

use core::{
    cell::UnsafeCell,
    mem::MaybeUninit,
    ops::Deref, //
};
use kernel::{
    new_condvar, new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full, //
        },
        CondVar,
        Mutex, //
    },
};

/// Added to the count of users while the gate is closed.
const CLOSED: i64 = 1 << 62;

/// A value of type `T` that [`Gate::close`] takes away.
///
/// # Invariants
///
/// `users` is the number of [`Inside`] guards and of calls to `enter` in progress, plus [`CLOSED`]
/// once `close` has been called. `value` is initialised until `close` has seen that nobody is
/// inside; only the first caller of `close` moves it out.
#[pin_data(PinnedDrop)]
pub(crate) struct Gate<T> {
    users: Atomic<i64>,
    value: UnsafeCell<MaybeUninit<T>>,
    #[pin]
    lock: Mutex<()>,
    #[pin]
    left: CondVar,
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
            lock <- new_mutex!(()),
            left <- new_condvar!(),
        })
    }

    /// Uses the value, unless the gate has been closed.
    ///
    /// Whoever closes it waits until the guard is dropped, so the guard's holder must not wait for
    /// something that closing holds up.
    pub(crate) fn enter(&self) -> Option<Inside<'_, T>> {
        // INVARIANT: Counted before the look at the flag, so that `close` either is seen here or
        // sees us.
        let before = self.users.fetch_add(1, Full);
        if before >= CLOSED {
            self.leave();
            return None;
        }
        Some(Inside(self))
    }

    fn leave(&self) {
        if self.users.fetch_sub(1, Full) == CLOSED + 1 {
            // Taking the lock keeps the wake-up from falling between the closer's look at the count
            // and its sleep.
            let _lock = self.lock.lock();
            self.left.notify_all();
        }
    }

    /// Whether the gate has been closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.users.load(kernel::sync::atomic::Acquire) >= CLOSED
    }

    /// Closes the gate, waits until nobody is inside, and returns the value.
    ///
    /// `None` when it was closed before; the other caller may still be waiting then. Sleeps.
    pub(crate) fn close(&self) -> Option<T> {
        let mut lock = self.lock.lock();
        if self.is_closed() {
            return None;
        }
        self.users.fetch_add(CLOSED, Full);
        while self.users.load(kernel::sync::atomic::Acquire) != CLOSED {
            self.left.wait(&mut lock);
        }
        // SAFETY: The lock and the flag let only one caller come here. All users have left, and
        // later ones turn back at the flag.
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
