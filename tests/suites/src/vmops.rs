// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a process can do to its own mappings, on leaves of every size and both backings.
//!
//! Every test ends with all bytes free again. With page backing that is the proof that no page
//! reference was lost, which is how the kernel's own mistakes with folios in page tables would show
//! (kernel defects 2, 4 and 5).

use crate::export::main_region;
use crate::kit::map::Room;
use crate::kit::pattern::word;
use crate::kit::prelude::*;
use crate::kit::process::Child;
use crate::kit::touch;
use crate::map::SHAPES;

pub(crate) const SUITE: Suite = Suite {
    name: "vmops",
    tests: &[
        test!(munmap_of_whole_leaves).timeout(60),
        test!(munmap_inside_a_leaf).timeout(60),
        test!(mprotect_inside_a_leaf).timeout(60),
        test!(map_fixed_over_a_part).timeout(60),
        test!(mremap_moves_to_a_congruent_address).timeout(60),
        test!(mremap_moves_to_any_address).timeout(60),
        test!(mremap_moves_a_part).timeout(60),
        test!(mremap_shrinks).timeout(60),
        test!(mremap_does_not_grow_or_copy).timeout(60),
        test!(fork_before_and_after_the_first_touch).timeout(60),
        test!(a_child_takes_its_copy_apart).timeout(60),
    ],
};

/// A mapping with leaves of one size, all of them touched, with a mark at both ends and in the
/// middle of each.
pub(crate) struct Case<'a> {
    pub(crate) buffer: &'a Buffer,
    pub(crate) map: Mapping,
    pub(crate) backing: u32,
    pub(crate) leaf: u64,
}

impl Case<'_> {
    /// Places in each leaf, each in a page of its own if the leaf has several.
    pub(crate) fn spots(&self) -> impl Iterator<Item = u64> + use<'_> {
        let (leaf, len) = (self.leaf, self.map.len());
        let middle = leaf / 2 / PAGE * PAGE;
        (0..len / leaf).flat_map(move |n| [n * leaf, n * leaf + middle + 16, (n + 1) * leaf - 8])
    }

    fn mark(&self) -> Result<()> {
        for at in self.spots() {
            let answer = self.map.store(at, word(1, at));
            ensure!(answer == Ok(()), "byte {at:#x}: {answer:?}");
        }
        Ok(())
    }

    /// The marks between two offsets are readable and right at `base`, where offset 0 of the
    /// mapping would be.
    fn check_at(&self, base: *mut u8, from: u64, to: u64) -> Result<()> {
        for at in self.spots().filter(|at| (from..to).contains(at)) {
            let answer = touch::load(base.wrapping_add(at as usize));
            ensure!(
                answer == Ok(word(1, at)),
                "byte {at:#x}: {answer:x?}, not {:#x}",
                word(1, at)
            );
        }
        Ok(())
    }

    fn check(&self, from: u64, to: u64) -> Result<()> {
        self.check_at(self.map.at(0), from, to)
    }

    pub(crate) fn check_all(&self) -> Result<()> {
        self.check(0, self.map.len())
    }

    /// Inside of which stretch to cut: in the second leaf, but a whole page. Nothing for leaves of
    /// one page.
    pub(crate) fn cut(&self) -> Option<(u64, u64)> {
        let inside = self.leaf + self.leaf / 4;
        (self.leaf > PAGE).then_some((inside, self.leaf / 8))
    }

    /// Whether an operation inside a leaf was done. Page backing may refuse it with EINVAL, as
    /// device-dax does, and then everything must be as before.
    fn was_done(&self, what: &str, answer: Result<(), Errno>) -> Result<bool> {
        match answer {
            Ok(()) => Ok(true),
            Err(Errno::EINVAL) if self.backing == BARBUF_BACKING_PAGE => {
                self.check_all().map(|()| false)
            }
            Err(errno) => bail!("{what}: {errno}"),
        }
    }
}

/// Runs a test on each shape, each with a provider of its own.
pub(crate) fn each_shape(ctx: &Ctx, test: impl Fn(&Case<'_>) -> Result<()>) -> Result<()> {
    for (backing, shift, len) in SHAPES {
        let provider = Provider::bind(ctx.npu(0)?)?;
        let before = provider.node.info()?.regions;
        let buffer = provider
            .node
            .export(&Export::any(len).backing(backing).leaf(shift))?;
        let case = Case {
            map: Mapping::whole(&buffer)?,
            buffer: &buffer,
            backing,
            leaf: 1 << shift,
        };
        case.mark()
            .and_then(|()| test(&case))
            .with_context(|| format!("backing {backing}, leaves of 2^{shift}"))?;
        drop(case);
        drop(buffer);
        provider
            .wait_until_free(&before)
            .with_context(|| format!("backing {backing}, leaves of 2^{shift}"))?;
        ensure!(main_region(&provider.node.info()?)?.nr_buffers == 0);
    }
    Ok(())
}

/// A leaf is unmapped from the middle; its neighbours stay.
fn munmap_of_whole_leaves(ctx: &Ctx) -> Result<()> {
    each_shape(ctx, |case| {
        let leaf = case.leaf;
        case.map.room.unmap(leaf, leaf)?;
        ensure!(case.map.load(leaf) == Err(Fault::unmapped(case.map.at(leaf))));
        case.check(0, leaf)?;
        case.check(2 * leaf, case.map.len())
    })
}

/// R12, kernel defect 1: a part of a leaf is unmapped. The stock kernel alone would crash with
/// leaves of 1 GiB.
pub(crate) fn munmap_inside_a_leaf(ctx: &Ctx) -> Result<()> {
    each_shape(ctx, |case| {
        let Some((at, len)) = case.cut() else {
            return Ok(());
        };
        if case.was_done("munmap", case.map.room.unmap(at, len))? {
            for gone in [at, at + len - 8] {
                ensure!(
                    case.map.load(gone) == Err(Fault::unmapped(case.map.at(gone))),
                    "byte {gone:#x} is there"
                );
            }
            case.check(0, at)?;
            case.check(at + len, case.map.len())?;
        }
        // One page at the very end of a leaf.
        let last = 3 * case.leaf - PAGE;
        if case.was_done("munmap of a page", case.map.room.unmap(last, PAGE))? {
            ensure!(case.map.load(last) == Err(Fault::unmapped(case.map.at(last))));
            case.check(2 * case.leaf, last)?;
            case.check(3 * case.leaf, case.map.len())?;
        }
        Ok(())
    })
}

/// R12, kernel defect 1: a part of a leaf becomes read-only, and writable again.
fn mprotect_inside_a_leaf(ctx: &Ctx) -> Result<()> {
    each_shape(ctx, |case| {
        let Some((at, len)) = case.cut() else {
            return Ok(());
        };
        if case.was_done("mprotect", case.map.room.protect(at, len, READ))? {
            ensure!(case.map.load(at).is_ok(), "not readable");
            ensure!(
                case.map.store(at, 1) == Err(Fault::protected(case.map.at(at))),
                "still writable"
            );
            ensure!(case.map.store(at - 8, 5) == Ok(()), "in front of it");
            ensure!(case.map.store(at + len, 6) == Ok(()), "behind it");
            case.check_all()?;
            case.map.room.protect(at, len, READ_WRITE)?;
            ensure!(case.map.store(at, 7) == Ok(()), "writable again");
            ensure!(case.map.load(at - 8) == Ok(5) && case.map.load(at + len) == Ok(6));
        }
        case.check_all()
    })
}

/// R12, kernel defect 1: something else is mapped over a part of a leaf.
fn map_fixed_over_a_part(ctx: &Ctx) -> Result<()> {
    each_shape(ctx, |case| {
        let Some((at, len)) = case.cut() else {
            return Ok(());
        };
        if case.was_done("MAP_FIXED", case.map.room.punch(at, len))? {
            ensure!(
                case.map.load(at) == Err(Fault::protected(case.map.at(at))),
                "the hole shows the device"
            );
            case.check(0, at)?;
            case.check(at + len, case.map.len())?;
            // And the buffer itself over the hole again.
            let back = case.map.room.map(at, len, READ_WRITE, case.buffer, at);
            if case.was_done_or_unfit(back)? {
                case.check_all()?;
            }
        }
        Ok(())
    })
}

impl Case<'_> {
    /// For a mapping at a place that page backing may find too small, which leaves a hole.
    fn was_done_or_unfit(&self, answer: Result<(), Errno>) -> Result<bool> {
        match answer {
            Ok(()) => Ok(true),
            Err(Errno::EINVAL) if self.backing == BARBUF_BACKING_PAGE => Ok(false),
            Err(errno) => bail!("mapping a part: {errno}"),
        }
    }
}

/// R11, kernel defect 2: after a move the old address is gone, and large leaves come back at the
/// new one.
///
/// The stock kernel clears leaves of 1 GiB without a TLB flush, so that the old address would still
/// show the device.
fn mremap_moves_to_a_congruent_address(ctx: &Ctx) -> Result<()> {
    each_shape(ctx, |case| {
        let len = case.map.len();
        let class = case.buffer.raw.out_phys_class;
        let to = Room::new(len, class, GIB)?;
        case.check_all()?;
        let new = case.map.room.remap(0, len, len, 0, Some((&to, 0)))?;
        ensure!(new == to.at(0));
        for at in case.spots() {
            let old = case.map.load(at);
            ensure!(
                old == Err(Fault::unmapped(case.map.at(at))),
                "the old address {at:#x}: {old:x?}"
            );
        }
        let node = Node::control()?;
        let before = node.query(case.buffer)?.leaves();
        case.check_at(new, 0, len)?;
        let got = node.query(case.buffer)?.leaves() - before;
        let sizes = [(PAGE, got.of_4k), (2 * MIB, got.of_2m), (GIB, got.of_1g)];
        let small = sizes
            .iter()
            .filter(|(size, _)| *size < case.leaf)
            .map(|(_, count)| count)
            .sum::<u64>();
        ensure!(small == 0, "leaves became smaller by the move: {got:?}");
        // There and back again.
        to.remap(0, len, len, 0, Some((&case.map.room, 0)))?;
        ensure!(touch::load(to.at(0)) == Err(Fault::unmapped(to.at(0))));
        case.check_all()
    })
}

/// R11: a move to an address that fits 4 KiB only. With page backing it may be refused, and then
/// nothing has moved.
pub(crate) fn mremap_moves_to_any_address(ctx: &Ctx) -> Result<()> {
    each_shape(ctx, |case| {
        let len = case.map.len();
        let to = Room::new(len, case.buffer.raw.out_phys_class + PAGE, GIB)?;
        let answer = case.map.room.remap(0, len, len, 0, Some((&to, 0)));
        if case.was_done("mremap", answer.map(drop))? {
            ensure!(case.map.load(0) == Err(Fault::unmapped(case.map.at(0))));
            case.check_at(to.at(0), 0, len)?;
        }
        Ok(())
    })
}

/// R11: whole leaves out of the middle move away; what stays and what moved are both right.
fn mremap_moves_a_part(ctx: &Ctx) -> Result<()> {
    each_shape(ctx, |case| {
        let leaf = case.leaf;
        let to = Room::new(leaf, case.buffer.raw.out_phys_class + leaf, GIB)?;
        let new = case.map.room.remap(leaf, leaf, leaf, 0, Some((&to, 0)))?;
        ensure!(case.map.load(leaf) == Err(Fault::unmapped(case.map.at(leaf))));
        case.check_at(new.wrapping_sub(leaf as usize), leaf, 2 * leaf)?;
        case.check(0, leaf)?;
        case.check(2 * leaf, case.map.len())
    })
}

/// R11: shrinking, at the border of a leaf and inside one.
fn mremap_shrinks(ctx: &Ctx) -> Result<()> {
    each_shape(ctx, |case| {
        let leaf = case.leaf;
        let len = 3 * leaf;
        case.map.room.remap(0, case.map.len(), len, 0, None)?;
        ensure!(case.map.load(len) == Err(Fault::unmapped(case.map.at(len))));
        case.check(0, len)?;
        let Some((inside, _)) = case.cut() else {
            return Ok(());
        };
        let answer = case.map.room.remap(0, len, inside, 0, None).map(drop);
        match answer {
            Ok(()) => {
                ensure!(case.map.load(inside) == Err(Fault::unmapped(case.map.at(inside))));
                case.check(0, inside)
            }
            Err(Errno::EINVAL) if case.backing == BARBUF_BACKING_PAGE => case.check(0, len),
            Err(errno) => bail!("shrinking inside a leaf: {errno}"),
        }
    })
}

/// R11: growing, copying and MREMAP_DONTUNMAP are refused, and nothing has changed.
fn mremap_does_not_grow_or_copy(ctx: &Ctx) -> Result<()> {
    const DONTUNMAP: i32 = 4;
    each_shape(ctx, |case| {
        let (leaf, len) = (case.leaf, case.map.len());
        case.map.room.unmap(len - leaf, leaf)?;
        let now = len - leaf;
        let room = &case.map.room;
        let grow = room.remap(0, now, len, 0, None);
        ensure!(grow == Err(Errno::EFAULT), "growing in place: {grow:?}");
        let grow = room.remap(0, now, len, libc::MREMAP_MAYMOVE, None);
        ensure!(grow == Err(Errno::EFAULT), "growing elsewhere: {grow:?}");
        let copy = room.remap(0, 0, leaf, libc::MREMAP_MAYMOVE, None);
        ensure!(copy == Err(Errno::EFAULT), "copying: {copy:?}");
        let leave = room.remap(0, leaf, leaf, libc::MREMAP_MAYMOVE | DONTUNMAP, None);
        ensure!(leave == Err(Errno::EINVAL), "MREMAP_DONTUNMAP: {leave:?}");
        case.check(0, now)
    })
}

/// R10: a child has the same memory, whether the parent had touched it or not, and may end in any
/// order.
pub(crate) fn fork_before_and_after_the_first_touch(ctx: &Ctx) -> Result<()> {
    each_shape(ctx, |case| {
        let untouched = Mapping::whole(case.buffer)?;
        let last = case.map.len() - 8;
        Child::start(|| {
            case.check_all()?;
            case.check_at(untouched.at(0), 0, untouched.len())?;
            ensure!(untouched.store(last, 5) == Ok(()));
            // A child of the child, which outlives neither.
            Child::start(|| {
                ensure!(untouched.load(last) == Ok(5));
                Ok(())
            })?
            .join()
        })?
        .join()?;
        ensure!(
            case.map.load(last) == Ok(5) && untouched.load(last) == Ok(5),
            "the child's store is not seen"
        );
        case.check(0, last)
    })
}

/// R10: what a child does to its mapping leaves the parent's alone.
fn a_child_takes_its_copy_apart(ctx: &Ctx) -> Result<()> {
    each_shape(ctx, |case| {
        Child::start(|| {
            case.map.room.unmap(0, case.leaf)?;
            if let Some((at, len)) = case.cut() {
                case.was_done("munmap in the child", case.map.room.unmap(at, len))
                    .ok();
            }
            let rest = 2 * case.leaf;
            case.check(rest, case.map.len())?;
            case.map.room.protect(rest, case.leaf, READ)?;
            ensure!(case.map.store(rest, 0) == Err(Fault::protected(case.map.at(rest))));
            Ok(())
        })?
        .join()?;
        case.check_all()?;
        ensure!(case.map.store(2 * case.leaf, word(1, 2 * case.leaf)) == Ok(()));
        Ok(())
    })
}
