// SPDX-License-Identifier: MIT OR Apache-2.0

//! Drivers that keep their device and register its memory: the in-kernel interface, as
//! tests/kmod/npu_sample.c uses it, and everything else that bound providers are tested with.
//!
//! `registration.rs` is about coming and being asked, `sharing.rs` about devices that import,
//! `suspension.rs` about being away for a while, `leaving.rs` about the end.

mod leaving;
mod registration;
mod sharing;
mod suspension;

use std::os::fd::OwnedFd;
use std::path::Path;

use self::leaving::{unloading_the_driver_revokes, unregistering_in_a_storm_of_faults};
use self::registration::{
    a_registered_region_is_memory_only, each_registration_error, kernel_code_exports_and_revokes,
    regions_of_several_kinds, shared_bytes_are_nobody_elses_until_they_are_zero,
    the_driver_is_asked_and_told, the_driver_refuses,
};
use self::sharing::{
    a_megabyte_to_the_drives_memory_and_back, cpu_accesses_during_a_suspension,
    importers_during_a_suspension, suspensions_leak_nothing_of_importers,
};
use self::suspension::{
    a_device_that_does_not_come_back, a_fault_waits_for_the_end_of_a_suspension,
    a_thousand_suspensions, a_waiting_fault_can_be_killed, exports_wait_too, file_input_waits_too,
    resets_go_through_the_driver, whatever_ends_the_buffer_ends_the_wait,
};
use crate::import::REACHABLE;
use crate::kit::pattern::word;
use crate::kit::pci::wait_until;
use crate::kit::prelude::*;
use crate::kit::vendor::{self, Loaded, Sample};

/// A test of another suite, on what the sample driver registers.
macro_rules! again {
    ($module:ident::$name:ident) => {{
        fn body(ctx: &Ctx) -> Result<()> {
            vendor::instead(ctx, crate::$module::$name)
        }
        crate::support::Test::new(concat!(stringify!($module), "_", stringify!($name)), body)
    }};
}

pub(crate) const SUITE: Suite = Suite {
    name: "vendor",
    tests: &[
        test!(a_registered_region_is_memory_only),
        test!(regions_of_several_kinds),
        test!(shared_bytes_are_nobody_elses_until_they_are_zero).timeout(60),
        test!(each_registration_error).timeout(60),
        test!(the_driver_is_asked_and_told),
        test!(the_driver_refuses),
        test!(kernel_code_exports_and_revokes),
        test!(a_fault_waits_for_the_end_of_a_suspension),
        test!(a_waiting_fault_can_be_killed),
        test!(whatever_ends_the_buffer_ends_the_wait).timeout(60),
        test!(file_input_waits_too),
        test!(exports_wait_too),
        test!(a_megabyte_to_the_drives_memory_and_back).timeout(240),
        test!(importers_during_a_suspension).timeout(60),
        test!(cpu_accesses_during_a_suspension),
        test!(suspensions_leak_nothing_of_importers).timeout(240),
        test!(a_thousand_suspensions).timeout(240),
        test!(resets_go_through_the_driver).timeout(60),
        test!(a_device_that_does_not_come_back).timeout(60),
        test!(unloading_the_driver_revokes).timeout(60),
        test!(unregistering_in_a_storm_of_faults).timeout(120),
        again!(map::largest_leaves_are_used)
            .on(REACHABLE)
            .timeout(120),
        again!(map::one_fault_fills_its_neighbours),
        again!(map::a_window_inside_a_leaf_gets_smaller_leaves).timeout(60),
        again!(map::protection_follows_mprotect),
        again!(map::windows_agree_with_a_model).timeout(120),
        again!(map::another_backing_and_cache_mode_show_the_same_bytes).timeout(60),
        again!(map::the_host_sees_what_was_written).timeout(60),
        again!(cookie::the_node_maps_at_a_cookie),
        again!(vmops::munmap_inside_a_leaf).timeout(60),
        again!(vmops::mremap_moves_to_any_address).timeout(60),
        again!(vmops::fork_before_and_after_the_first_touch).timeout(60),
        again!(odirect::raw_drive_to_memory).timeout(60),
        again!(odirect::memory_to_raw_drive).timeout(60),
        again!(odirect::ext4_to_memory_and_back).timeout(120),
        again!(odirect::without_struct_pages_it_is_efault).timeout(60),
        again!(inflight::direct_io_in_flight_while_unbound).timeout(120),
        again!(revoke::revoke_takes_every_leaf).timeout(60),
        again!(revoke::revoke_leaves_others_alone),
        again!(revoke::closing_the_node_revokes_if_asked),
        again!(revoke::unbind_revokes).timeout(60),
        again!(revoke::rebind_with_old_descriptors_open).timeout(60),
        again!(revoke::removal_and_rescan).timeout(60),
        again!(revoke::hot_unplug).hotplug().timeout(120),
        again!(races::faults_against_unbind).timeout(120),
        again!(reset::a_bus_reset_brings_everything_back).timeout(60),
        again!(reset::nobody_notices_a_reset_but_by_waiting).timeout(120),
        again!(reset::sleep_brings_everything_back).timeout(120),
        again!(reset::a_failed_link_recovers).timeout(60),
        again!(reset::a_link_that_fails_for_good).timeout(60),
        again!(hardware::memory_decode_switched_off),
        again!(import::bytes_move_between_npu_cmb_and_host)
            .on(REACHABLE)
            .timeout(120),
        again!(import::devices_without_a_route_are_refused).on(&["no-route"]),
        again!(import::addresses_cover_every_byte).timeout(60),
        again!(import::several_ranges_are_one_buffer).timeout(60),
        again!(import::page_backed_buffers_are_imported_too),
        again!(import::read_only_buffers_are_read_only_for_devices),
        again!(import::consent_is_asked_of_importers_that_cannot_stop),
        again!(import::a_small_dma_mask_is_erange),
        again!(import::query_lists_the_attachments),
        again!(import::the_kernel_maps_for_its_cpus),
        again!(import::the_end_of_a_cpu_access),
        again!(recall::revoke_waits_for_the_unmap).on(REACHABLE),
        again!(recall::an_importer_that_asks_again_hears_enodev),
        again!(recall::nobody_comes_in_after_a_revocation),
        again!(recall::revoke_waits_for_a_static_importer).timeout(60),
        again!(recall::unbind_with_a_device_that_has_addresses).timeout(60),
        again!(recall::unbinding_waits_for_a_static_importer).timeout(60),
        again!(reimport::importers_map_again_after_a_reset)
            .on(REACHABLE)
            .timeout(120),
        again!(reimport::those_that_cannot_be_told_go_on).timeout(120),
    ],
};

/// The sample driver, bound to the NPU. Dropped in this order.
struct Vendor {
    provider: Provider,
    sample: Sample,
    _loaded: Loaded,
}

impl Vendor {
    fn new(ctx: &Ctx) -> Result<Vendor> {
        let loaded = Loaded::new(ctx)?;
        let provider = Provider::register(ctx.npu(0)?)?;
        wait_until("/dev/npu_sample", || Path::new("/dev/npu_sample").exists())?;
        Ok(Vendor {
            provider,
            sample: Sample::open()?,
            _loaded: loaded,
        })
    }

    /// The node of the provider, after it has been registered anew.
    fn node(&self) -> Result<Node> {
        let path = self.provider.function.node_path();
        wait_until(&path, || Path::new(&path).exists())?;
        Node::open(&path)
    }

    /// A mapped buffer with one word in it.
    fn buffer(&self, backing: u32) -> Result<(Buffer, Mapping)> {
        let buffer = self
            .provider
            .node
            .export(&Export::any(GIB).backing(backing))?;
        let map = Mapping::whole(&buffer)?;
        ensure!(map.store(0, word(4, 0)) == Ok(()));
        Ok((buffer, map))
    }

    /// A buffer of which there is only the descriptor.
    fn received(&self, fd: OwnedFd) -> Result<Buffer> {
        let query = self.provider.node.query(&fd)?;
        Ok(Buffer {
            raw: barbuf_export {
                out_size: query.raw.out_size,
                out_cookie: query.raw.out_cookie,
                out_phys_class: query.raw.out_phys_class,
                out_page_shift: query.raw.out_page_shift,
                ..barbuf_export::new()
            },
            ranges: query.ranges,
            fd,
        })
    }

    fn state(&self, buffer: &Buffer) -> Result<(u32, u64)> {
        let raw = Node::control()?.query(buffer)?.raw;
        Ok((raw.out_state, raw.out_generation))
    }
}
