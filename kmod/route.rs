// SPDX-License-Identifier: GPL-2.0

//! Routes: whether a device reaches a provider's memory, and BARBUF_ROUTE.
//!
//! What was found once is remembered, as the kernel does for itself; BARBUF_ROUTE looks again.
//! `Routes::known` is inside all other locks and holds none.

use crate::{
    answer,
    copy::Argument,
    ext::{
        attach::Attachment,
        p2pdma::{
            Memory,
            Path,
            Reach, //
        },
        pci::Function, //
    },
    provider::{
        Kind,
        Provider, //
    },
    pure::{
        address::Address,
        route::{
            self,
            Facts,
            Reason,
            Route, //
        }, //
    },
    uapi,
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::Mutex, //
};

/// How many devices are remembered; the others are looked at each time, and not spoken about.
const MOST: usize = 256;

/// What is known of a device.
struct Known {
    address: Address,
    path: Path,
    /// The log says why it was refused.
    told: Option<Reason>,
}

/// What is known of the devices around a provider.
#[pin_data]
pub(crate) struct Routes {
    #[pin]
    known: Mutex<KVec<Known>>,
}

impl Routes {
    /// Nothing yet.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            known <- new_mutex!(KVec::new()),
        })
    }

    fn find(&self, address: Address) -> Option<Path> {
        let known = self.known.lock();
        let mut known = known.iter();
        known
            .find(|known| known.address == address)
            .map(|known| known.path)
    }

    fn remember(&self, address: Address, path: Path) {
        let mut known = self.known.lock();
        if let Some(known) = known.iter_mut().find(|known| known.address == address) {
            known.path = path;
        } else if known.len() < MOST {
            let entry = Known {
                address,
                path,
                told: None,
            };
            // What is not remembered is found again.
            let _ = known.push(entry, GFP_KERNEL);
        }
    }

    /// Whether this is the first time that the device is refused for that reason.
    fn is_news(&self, address: Address, reason: Reason) -> bool {
        let mut known = self.known.lock();
        let Some(known) = known.iter_mut().find(|known| known.address == address) else {
            return false;
        };
        known.told.replace(reason) != Some(reason)
    }
}

impl Provider {
    /// How `client`, which can form addresses as `reach` says, reaches `memory`.
    pub(crate) fn route(&self, memory: route::Memory, client: &Function, reach: Reach) -> Route {
        let address = client.address();
        let path = self.routes.find(address).unwrap_or_else(|| {
            let path = Path::between(&self.function, client);
            self.routes.remember(address, path);
            path
        });
        self.judge(memory, path, reach)
    }

    fn judge(&self, memory: route::Memory, path: Path, reach: Reach) -> Route {
        let Some(p2p) = Memory::of(&self.function, memory.bar) else {
            return Route::none(Reason::NoP2pdma);
        };
        Facts {
            distance: path.distance,
            common: path.common,
            redirected: path.redirected,
            translated: reach.translated,
            mask: reach.bound.then_some(reach.mask),
            last_bus: p2p.bus(memory.last),
            memory,
        }
        .judge()
    }

    /// Says in the log why a device was refused, once for each device and reason.
    pub(crate) fn complain(&self, device: &Attachment<'_>, reason: Reason) {
        let address = match device.function() {
            Some(client) => client.address(),
            // All devices that are on no PCI bus are one here.
            None => {
                let nowhere = Address {
                    domain: u32::MAX,
                    bus: 0,
                    device: 0,
                    function: 0,
                };
                let path = Path {
                    distance: None,
                    common: false,
                    redirected: false,
                };
                self.routes.remember(nowhere, path);
                nowhere
            }
        };
        if self.routes.is_news(address, reason) {
            pr_notice!(
                "{device} cannot import memory of {}: {}\n",
                self.function.address(),
                reason.text()
            );
        }
    }
}

/// Serves BARBUF_ROUTE.
pub(crate) fn route(provider: &Provider, arg: usize) -> Result {
    let mut argument = Argument::<uapi::Route>::read(arg)?;
    let user = argument.value;
    if user.flags != 0 || user.fd < -1 || (user.fd != -1 && user.region != 0) {
        return Err(EINVAL);
    }
    let address = answer::address_in(&user.name)?;
    let memory = if user.fd == -1 {
        let region = provider.regions.get(user.region as usize).ok_or(EINVAL)?;
        route::Memory {
            bar: region.bar,
            last: region.physical.end().saturating_sub(1),
            size: region.physical.len(),
        }
    } else {
        answer::buffer_of(Some(provider), user.fd)?.data().memory()
    };

    // The provider must not go while its P2PDMA state is looked at.
    let hardware = provider.gate.enter().ok_or(ENODEV)?;
    let mut flags = 0;
    let mut mask = 0;
    let route = match Function::find(address) {
        None => Route::none(Reason::NoDevice),
        Some(client) => {
            let mut reach = client.reach();
            // barbuf sets no mask for the function that it drives: it does no DMA.
            reach.bound &= !(client.is(&provider.function) && provider.kind == Kind::Bound);
            mask = reach.mask;
            if reach.translated {
                flags |= uapi::ROUTE_IOMMU;
            }
            if reach.bound {
                flags |= uapi::ROUTE_DMA_MASK_KNOWN;
            }
            let path = Path::between(&provider.function, &client);
            provider.routes.remember(address, path);
            provider.judge(memory, path, reach)
        }
    };
    drop(hardware);
    argument.value.out_kind = route.kind.to_uapi();
    argument.value.out_reason = route.reason.to_uapi();
    argument.value.out_distance = route.distance;
    argument.value.out_flags = flags;
    argument.value.out_dma_mask = mask;
    argument.write()
}
