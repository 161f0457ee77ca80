// SPDX-License-Identifier: GPL-2.0

//! Asking the driver of a registered function before its first buffer, and telling it after its
//! last one.

use super::Provider;
use crate::{
    copy::errno,
    pure::errno::Errno, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// A buffer of the provider, from before its memory is taken until after it was given back.
pub(crate) struct Use(Option<Arc<Provider>>);

impl Provider {
    /// Begins a use. The first one asks the function's own driver, if that has registered.
    ///
    /// # Errors
    ///
    /// `ECONNREFUSED` when it refuses.
    pub(crate) fn begin_use(self: &Arc<Self>) -> Result<Use> {
        let Some(callbacks) = &self.callbacks else {
            return Ok(Use(None));
        };
        let mut uses = self.uses.lock();
        if *uses == 0 {
            callbacks.first_export().map_err(|error| {
                self.function.log_refusal(error);
                errno(Errno::ECONNREFUSED)
            })?;
        }
        *uses = uses.saturating_add(1);
        Ok(Use(Some(self.clone())))
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let Some(provider) = &self.0 else {
            return;
        };
        let mut uses = provider.uses.lock();
        *uses = uses.saturating_sub(1);
        if *uses == 0 {
            if let Some(callbacks) = &provider.callbacks {
                callbacks.last_release();
            }
        }
    }
}
