// SPDX-License-Identifier: GPL-2.0

//! Bytes of adopted providers: the function's own pool gives them, and keeps the books.

use super::{
    Provider,
    Region, //
};
use crate::{
    ext::pool::PoolRange,
    pure::alloc, //
};
use kernel::prelude::*;

impl Provider {
    /// Takes `len` bytes of `region` from the pool, at the best alignment that it has room for.
    ///
    /// # Errors
    ///
    /// `ENOSPC`; `EINVAL` when `len` is 0 or no multiple of 4 KiB; `ENOMEM`
    pub(crate) fn take_from_pool(&self, region: &Region, len: u64) -> Result<PoolRange> {
        // To find an aligned place, more is taken for a moment than is wanted. Whoever came then would find
        // the pool full, or a worse place.
        let _alone = self.inner.lock();
        let mut taken = Err(ENOSPC);
        for alignment in alloc::preferences(len) {
            taken = PoolRange::alloc(&self.function, len, *alignment, region.physical);
            if taken.is_ok() {
                break;
            }
        }
        taken
    }
}
