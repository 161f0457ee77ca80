// SPDX-License-Identifier: MIT OR Apache-2.0

//! A million malformed calls (R31). Whatever comes in, what goes out is in the header's table of
//! errnos.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsRawFd as _;

use barbuf_sys::ioctl::REQUESTS;

use crate::errors::DOCUMENTED;
use crate::kit::pattern::word;
use crate::kit::prelude::*;
use crate::kit::process::open_fds;

pub(crate) const SUITE: Suite = Suite {
    name: "fuzz",
    tests: &[
        test!(structures_with_wrong_members)
            .on(&["small-npu"])
            .timeout(600),
        test!(random_bytes).on(&["small-npu"]).timeout(300),
        test!(random_numbers).on(&["small-npu"]).timeout(300),
    ],
};

/// Numbers that tend to be mistaken for something else.
const ODD: [u64; 24] = [
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    16,
    63,
    64,
    65,
    72,
    80,
    4095,
    4096,
    4097,
    1 << 20,
    1 << 21,
    i32::MAX as u64,
    u32::MAX as u64,
    1 << 32,
    i64::MAX as u64,
    u64::MAX - 4095,
    u64::MAX,
];

/// Where calls come from: a sequence that a failure can be repeated with.
struct Dice {
    seed: u64,
    thrown: u64,
}

impl Dice {
    fn throw(&mut self) -> u64 {
        self.thrown += 1;
        word(self.seed, self.thrown)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.throw() % limit
    }

    /// Mostly an odd number, sometimes any.
    fn odd(&mut self) -> u64 {
        match self.below(8) {
            0 => self.throw(),
            _ => ODD[self.below(ODD.len() as u64) as usize],
        }
    }
}

/// What the calls are made on, and what they may refer to.
struct Bench {
    provider: Provider,
    control: Node,
    live: Buffer,
    dead: Buffer,
    null: std::fs::File,
    /// Memory for the structure and for arrays, as words.
    room: Vec<u64>,
    counts: BTreeMap<i32, u64>,
    /// The requests that have succeeded.
    served: BTreeSet<u32>,
    fds: usize,
}

impl Bench {
    fn new(ctx: &Ctx) -> Result<Bench> {
        // 2 MiB: even struct pages for single pages are made at once.
        let provider = Provider::bind(ctx.npu(1)?)?;
        let live = provider.node.export(&Export::at(0, PAGE).shared())?;
        let dead = provider.node.export(&Export::at(PAGE, PAGE))?;
        provider.node.revoke(&dead)?;
        let (control, null) = (Node::control()?, std::fs::File::open("/dev/null")?);
        let mut bench = Bench {
            provider,
            control,
            live,
            dead,
            null,
            room: vec![0; 2048],
            counts: BTreeMap::new(),
            served: BTreeSet::new(),
            fds: 0,
        };
        bench.fds = open_fds()?;
        Ok(bench)
    }

    /// One call, whose answer must be documented. A descriptor that it returns is closed again.
    fn call(&mut self, on_control: bool, request: u32, argument: u64) -> Result<()> {
        let node = if on_control {
            &self.control
        } else {
            &self.provider.node
        };
        // SAFETY: The argument is the room, or an address at which Rust has nothing; arrays point
        // into the room's second half, which is longer than any array that is accepted, or nowhere.
        let answer = unsafe { node.raw_ioctl(u64::from(request), argument) };
        let code = match answer {
            Ok(0) => 0,
            Ok(other) => bail!("request {request:#x} returned {other}"),
            Err(errno) if DOCUMENTED.contains(&errno) => errno as i32,
            Err(errno) => bail!("request {request:#x} ended in {errno}"),
        };
        *self.counts.entry(code).or_default() += 1;
        if code == 0 {
            self.served.insert(request);
        }
        if code == 0 && request == ioctl::BARBUF_EXPORT && !on_control {
            // SAFETY: The kernel wrote a structure there.
            let made = unsafe { self.room.as_ptr().cast::<barbuf_export>().read() };
            ensure!(
                argument == self.room.as_ptr() as u64,
                "an export from nowhere"
            );
            nix::unistd::close(made.out_fd)?;
        }
        Ok(())
    }

    /// At the end: the device works, nothing was leaked, and every kind of answer was met; `served` are
    /// the requests of which some were right.
    fn finish(self, ctx: &Ctx, wanted: &[Errno], served: &[u32]) -> Result<()> {
        ensure!(
            open_fds()? == self.fds,
            "{} descriptors before, {} after",
            self.fds,
            open_fds()?
        );
        let text: Vec<String> = self
            .counts
            .iter()
            .map(|(code, count)| {
                format!(
                    "{} x {}",
                    count,
                    if *code == 0 {
                        "ok".into()
                    } else {
                        format!("{:?}", Errno::from_raw(*code))
                    }
                )
            })
            .collect();
        ctx.say(text.join(", "));
        for errno in wanted {
            ensure!(
                self.counts.contains_key(&(*errno as i32)),
                "{errno} was never met: the calls are not as intended"
            );
        }
        for request in served {
            ensure!(
                self.served.contains(request),
                "no {request:#x} succeeded: the calls are not as intended"
            );
        }
        ensure!(self.provider.node.query(&self.live)?.raw.out_state == BARBUF_STATE_LIVE);
        let map = Mapping::whole(&self.live)?;
        ensure!(map.store(0, 1) == Ok(()) && map.load(0) == Ok(1));
        Ok(())
    }
}

/// Structures that are right but for a few members.
fn structures_with_wrong_members(ctx: &Ctx) -> Result<()> {
    const CALLS: u64 = 600_000;
    let mut bench = Bench::new(ctx)?;
    let mut dice = Dice {
        seed: 31,
        thrown: 0,
    };
    for call in 0..CALLS {
        let (on_control, request, len) = write_structure(&mut bench, &mut dice);
        let argument = bench.room.as_ptr() as u64;
        bench
            .call(on_control, request, argument)
            .with_context(|| format!("call {call}, {len} bytes: {:x?}", &bench.room[..len / 8]))?;
    }
    let wanted = [
        Errno::EINVAL,
        Errno::E2BIG,
        Errno::EFAULT,
        Errno::EBUSY,
        Errno::ENOSPC,
        Errno::EBADF,
        Errno::EBADFD,
        Errno::ENODEV,
    ];
    let served = [
        ioctl::BARBUF_INFO,
        ioctl::BARBUF_EXPORT,
        ioctl::BARBUF_QUERY,
        ioctl::BARBUF_ROUTE,
    ];
    bench.finish(ctx, &wanted, &served)
}

/// Puts a structure into the room and mutates up to three of its words.
fn write_structure(bench: &mut Bench, dice: &mut Dice) -> (bool, u32, usize) {
    let fds = [
        bench.live.number(),
        bench.live.number(),
        bench.dead.number(),
        bench.null.as_raw_fd(),
        bench.control.as_raw_fd(),
        -1,
        9999,
    ];
    let mut fd = || fds[(word(7, dice.throw()) % fds.len() as u64) as usize];
    let (query_fd, revoke_fd, route_fd) = (fd(), fd(), fd());
    // The live one stays, or most calls would find nothing.
    let revoke_fd = if revoke_fd == bench.live.number() {
        bench.dead.number()
    } else {
        revoke_fd
    };
    let array = bench.room[1024..].as_mut_ptr() as u64;
    let pages = |dice: &mut Dice| PAGE * dice.below(600);
    let count = 1 + dice.below(3);
    for i in 0..count as usize {
        let any = dice.below(2) == 0;
        let range = [if any { 0 } else { pages(dice) }, PAGE + pages(dice)];
        bench.room[1024 + 2 * i..][..2].copy_from_slice(&range);
    }
    fn put<T>(room: &mut [u64], value: T) -> usize {
        assert!(size_of::<T>() <= 1024 && align_of::<T>() <= 8);
        // SAFETY: The room is large enough and aligned; all structures are plain integers.
        unsafe { room.as_mut_ptr().cast::<T>().write(value) };
        size_of::<T>()
    }
    bench.room[..256].fill(0);
    let which = dice.below(12);
    let (on_control, request, len) = match which {
        0 => {
            let info = barbuf_info {
                nr_regions: dice.below(4) as u32,
                region_stride: 64,
                regions: array,
                ..barbuf_info::new()
            };
            (false, ioctl::BARBUF_INFO, put(&mut bench.room, info))
        }
        1..=5 => {
            let export = barbuf_export {
                flags: [0, BARBUF_EXPORT_ANY, BARBUF_EXPORT_SHARED, 31][dice.below(4) as usize],
                backing: dice.below(2) as u32,
                cache: dice.below(2) as u32,
                open_flags: [libc::O_RDWR, libc::O_RDONLY, libc::O_CLOEXEC][dice.below(3) as usize]
                    as u32,
                page_shift: [0, 12, 21, 30][dice.below(4) as usize],
                ranges: array,
                nr_ranges: count as u32,
                ..barbuf_export::new()
            };
            (false, ioctl::BARBUF_EXPORT, put(&mut bench.room, export))
        }
        6 | 7 => {
            let query = barbuf_query {
                fd: query_fd,
                nr_ranges: dice.below(4) as u32,
                ranges: array,
                nr_attachments: dice.below(4) as u32,
                attachment_stride: size_of::<barbuf_attachment_info>() as u32,
                attachments: array,
                ..barbuf_query::new()
            };
            (which == 6, ioctl::BARBUF_QUERY, put(&mut bench.room, query))
        }
        8 => {
            let revoke = barbuf_revoke {
                fd: revoke_fd,
                ..barbuf_revoke::new()
            };
            (false, ioctl::BARBUF_REVOKE, put(&mut bench.room, revoke))
        }
        9 | 10 => {
            let mut route = barbuf_route {
                fd: if which == 9 { -1 } else { route_fd },
                ..barbuf_route::new()
            };
            // Of this function, of the one beside the root complex, and of none.
            let bdf = [bench.provider.bdf(), "0000:00:00.0", "ffff:ff:1f.7"];
            let bdf = bdf[dice.below(3) as usize];
            route.name[..bdf.len()].copy_from_slice(bdf.as_bytes());
            (false, ioctl::BARBUF_ROUTE, put(&mut bench.room, route))
        }
        _ => {
            let mut adopt = barbuf_adopt::new();
            let bdf = if dice.below(2) == 0 {
                bench.provider.bdf()
            } else {
                "0000:00:00.0"
            };
            adopt.name[..bdf.len()].copy_from_slice(bdf.as_bytes());
            let request = [ioctl::BARBUF_ADOPT, ioctl::BARBUF_RELEASE][dice.below(2) as usize];
            (true, request, put(&mut bench.room, adopt))
        }
    };
    mutate(bench, dice, request, len);
    (on_control, request, len)
}

/// Changes up to three 32-bit or 64-bit members. A pointer may become one to nowhere, but not to
/// memory of this process that is not the room's.
fn mutate(bench: &mut Bench, dice: &mut Dice, request: u32, len: usize) {
    let array = bench.room[1024..].as_ptr() as u64;
    for _ in 0..dice.below(4) {
        let at = dice.below(len as u64 / 4) as usize;
        let value = dice.odd();
        let wide = &mut bench.room[at / 2];
        if *wide == array {
            // A pointer: nowhere, or in the kernel, or so that it wraps.
            let nowhere = [
                0,
                1,
                PAGE,
                0x7fff_ffff_f000,
                0xffff_8880_0000_0000,
                u64::MAX - 15,
            ];
            *wide = nowhere[(value % nowhere.len() as u64) as usize];
            continue;
        }
        if dice.below(2) == 0 && at / 2 > 0 && *wide == 0 {
            *wide = value;
        } else {
            let shift = at % 2 * 32;
            *wide = (*wide & !(0xffff_ffff << shift)) | ((value & 0xffff_ffff) << shift);
        }
    }
    // Counts stay such that the kernel cannot write beyond the room: larger ones go with a pointer
    // to nowhere.
    let fix = |count: &mut u32, pointer: &mut u64| {
        if *count > 64 && *pointer == array {
            *pointer = 0;
        }
    };
    let start = bench.room.as_mut_ptr();
    match request {
        // SAFETY: The room holds a structure of that kind, of plain integers.
        ioctl::BARBUF_INFO => unsafe {
            let info = &mut *start.cast::<barbuf_info>();
            if info.region_stride > 64 {
                info.nr_regions = info.nr_regions.min(2);
                if info.region_stride > 2048 {
                    info.regions = 0;
                }
            }
            fix(&mut info.nr_regions, &mut info.regions);
        },
        // SAFETY: As above.
        ioctl::BARBUF_QUERY => unsafe {
            let query = &mut *start.cast::<barbuf_query>();
            fix(&mut query.nr_ranges, &mut query.ranges);
            // Nobody is attached, so that nothing is written there whatever the stride.
            fix(&mut query.nr_attachments, &mut query.attachments);
        },
        _ => {}
    }
}

/// A room full of random bytes, with the size that a structure has or not.
fn random_bytes(ctx: &Ctx) -> Result<()> {
    const CALLS: u64 = 400_000;
    let mut bench = Bench::new(ctx)?;
    let mut dice = Dice {
        seed: 32,
        thrown: 0,
    };
    for call in 0..CALLS {
        // Without pointers into this process: what looks like one is sent into the kernel's half.
        for i in 0..32 {
            bench.room[i] = dice.throw() | (1 << 63);
        }
        let (name, request) = REQUESTS[dice.below(REQUESTS.len() as u64) as usize];
        let sizes = [
            size_of::<barbuf_revoke>() as u32,
            size_of::<barbuf_adopt>() as u32,
            size_of::<barbuf_info>() as u32,
            size_of::<barbuf_export>() as u32,
            size_of::<barbuf_query>() as u32,
            size_of::<barbuf_route>() as u32,
            dice.odd() as u32,
            dice.throw() as u32,
        ];
        let size = sizes[dice.below(8) as usize];
        bench.room[0] = bench.room[0] & !0xffff_ffff | u64::from(size);
        let argument = bench.room.as_ptr() as u64;
        bench
            .call(dice.below(2) == 0, request, argument)
            .with_context(|| format!("call {call}, {name}: {:x?}", &bench.room[..32]))?;
    }
    // One that succeeds, to see that the way there was open.
    let info = barbuf_info {
        region_stride: 64,
        ..barbuf_info::new()
    };
    let argument = &raw const info as u64;
    bench.call(false, ioctl::BARBUF_INFO, argument)?;
    bench.finish(ctx, &[Errno::EINVAL, Errno::E2BIG], &[ioctl::BARBUF_INFO])
}

/// Any number, with any argument.
fn random_numbers(ctx: &Ctx) -> Result<()> {
    const CALLS: u64 = 400_000;
    let mut bench = Bench::new(ctx)?;
    let mut dice = Dice {
        seed: 33,
        thrown: 0,
    };
    for call in 0..CALLS {
        let magic = u32::from(BARBUF_IOC_MAGIC) << 8;
        let number = match dice.below(4) {
            0 => dice.throw() as u32,
            1 => magic | dice.below(256) as u32,
            2 => magic | (dice.throw() as u32 & !0xff00),
            _ => {
                REQUESTS[dice.below(REQUESTS.len() as u64) as usize].1
                    | (dice.throw() as u32 & 0xffff_0000)
            }
        };
        // The generic requests of any file are the kernel's own: FIOCLEX and the like.
        if (number >> 8) & 0xff != magic >> 8 {
            continue;
        }
        let argument = [0, 1, u64::MAX, dice.throw() | (1 << 63)][dice.below(4) as usize];
        bench
            .call(dice.below(2) == 0, number, argument)
            .with_context(|| format!("call {call}, number {number:#x}, argument {argument:#x}"))?;
    }
    let info = barbuf_info {
        region_stride: 64,
        ..barbuf_info::new()
    };
    bench.call(false, ioctl::BARBUF_INFO, &raw const info as u64)?;
    bench.finish(ctx, &[Errno::ENOTTY, Errno::EFAULT], &[ioctl::BARBUF_INFO])
}
