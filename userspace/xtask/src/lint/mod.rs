// SPDX-License-Identifier: MIT OR Apache-2.0

//! Style and lints: each check is one line that says whether it passed, and why not.

mod series;
mod text;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::cache;
use crate::cmd::{self, Log, make_dir};
use crate::ctx::Ctx;
use crate::kernel::{self, Flavour, Kernel};
use crate::module;
use crate::ui::clock;

/// How the uapi headers must compile, each alone: compiler, language, standard.
const DIALECTS: &[(&str, &str, &str)] = &[
    ("gcc", "c", "c89"),
    ("gcc", "c", "c11"),
    ("g++", "c++", "c++11"),
    ("clang", "c", "c11"),
    ("clang++", "c++", "c++17"),
];

/// The crates that are published: the command, and all that it depends on.
const PUBLISHED: &[&str] = &["barbuf-sys", "barbuf", "barbuf-measure", "barbuf-cli"];

/// What the checks work on.
struct Tree<'a> {
    ctx: &'a Ctx,
    /// Every file that belongs to the repository, relative to it.
    files: Vec<PathBuf>,
    /// The kernel that the module is linted with, and its source with its scripts.
    kernel: Kernel,
    source: PathBuf,
}

/// A check returns what is wrong: nothing when all is well.
type Check = fn(&Tree<'_>) -> Result<Vec<String>>;

const CHECKS: &[(&str, Check)] = &[
    ("SPDX tag in every file", |tree| {
        text::each(tree.ctx, &tree.files, text::spdx)
    }),
    ("no path of one machine", |tree| {
        let mine = text::own_paths();
        text::each(tree.ctx, &tree.files, |path, text| {
            text::machine_paths(path, text, &mine)
        })
    }),
    ("no unsafe outside kmod/ext", |tree| {
        text::each(tree.ctx, &tree.files, text::unsafe_code)
    }),
    ("nothing left to do", |tree| {
        text::each(tree.ctx, &tree.files, text::unfinished)
    }),
    ("white space", |tree| {
        text::each(tree.ctx, &tree.files, text::white_space)
    }),
    ("rustfmt (module)", |tree| {
        tree.run("rustfmt", rustfmt(tree).arg("--check"))
    }),
    ("rustfmt (user space)", |tree| {
        tree.run("cargo-fmt", cargo_fmt(tree.ctx).arg("--check"))
    }),
    ("clippy (user space)", |tree| {
        let mut cargo = cargo(tree.ctx);
        cargo.args([
            "clippy",
            "--locked",
            "--quiet",
            "--workspace",
            "--all-targets",
        ]);
        tree.run("clippy", cargo.args(["--", "-D", "warnings"]))
    }),
    ("documentation of the crates", |tree| {
        let mut cargo = cargo(tree.ctx);
        cargo.env("RUSTDOCFLAGS", "-D warnings");
        cargo.args(["doc", "--locked", "--quiet", "--no-deps", "--all-features"]);
        tree.run("cargo-doc", packages(&mut cargo))
    }),
    ("packages of the crates", |tree| {
        forget_packages(tree.ctx)?;
        let mut cargo = cargo(tree.ctx);
        // They need each other, and none is published yet. Cargo 1.85 can look at such packages
        // together, but only when it is told that it may.
        cargo.env("RUSTC_BOOTSTRAP", "1").arg("-Zpackage-workspace");
        cargo.args([
            "publish",
            "--dry-run",
            "--locked",
            "--quiet",
            "--allow-dirty",
        ]);
        tree.run("cargo-publish", packages(&mut cargo))
    }),
    ("clippy and warnings (module)", kernel_lints),
    ("checkpatch", checkpatch),
    ("compound-sysfs/", series::check),
    ("uapi headers alone", headers),
    ("shellcheck", shellcheck),
    ("documents", |tree| {
        tree.run(
            "check-docs",
            &mut Command::new(tree.ctx.repo.join("scripts/check-docs")),
        )
    }),
];

pub(crate) fn lint(ctx: &Ctx) -> Result<ExitCode> {
    let kernel = kernel::ensure(Flavour::Stock, ctx)?;
    let tree = Tree {
        files: files(ctx)?,
        source: kernel::source(ctx)?,
        kernel,
        ctx,
    };
    let mut failed = 0;
    for (name, check) in CHECKS {
        let began = Instant::now();
        let step = ctx.ui.quiet_step(*name);
        let wrong = check(&tree)?;
        step.done();
        let word = if wrong.is_empty() { "ok  " } else { "FAIL" };
        ctx.ui
            .line(&format!("{word}  {name}  {}", clock(began.elapsed())));
        failed += usize::from(!wrong.is_empty());
        for line in wrong {
            ctx.ui.line(&format!("        {line}"));
        }
    }
    ctx.ui.summary();
    ctx.ui.line(&format!(
        "lint: {} checks passed, {failed} failed",
        CHECKS.len() - failed
    ));
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Formats what the two rustfmt checks look at.
pub(crate) fn fmt(ctx: &Ctx) -> Result<ExitCode> {
    let tree = Tree {
        files: files(ctx)?,
        source: kernel::source(ctx)?,
        kernel: kernel::ensure(Flavour::Stock, ctx)?,
        ctx,
    };
    for (name, command) in [
        ("rustfmt", &mut rustfmt(&tree)),
        ("cargo-fmt", &mut cargo_fmt(ctx)),
    ] {
        let wrong = tree.run(name, command)?;
        if !wrong.is_empty() {
            bail!("{name} failed: {}", wrong.join("\n"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What git knows and what it would take, without what is ignored.
fn files(ctx: &Ctx) -> Result<Vec<PathBuf>> {
    let list = cmd::output(Command::new("git").current_dir(&ctx.repo).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    let mut files: Vec<PathBuf> = list
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(PathBuf::from)
        .filter(|file| ctx.repo.join(file).is_file())
        .collect();
    files.sort();
    files.dedup();
    if files.is_empty() {
        bail!("git names no file of this repository");
    }
    Ok(files)
}

impl Tree<'_> {
    /// The files with this extension below one of these directories.
    fn select(&self, dirs: &[&str], extension: &str) -> Vec<PathBuf> {
        self.files
            .iter()
            .filter(|file| file.extension() == Some(OsStr::new(extension)))
            .filter(|file| dirs.iter().any(|dir| file.starts_with(dir)))
            .map(|file| self.ctx.repo.join(file))
            .collect()
    }

    /// Runs a program that must end well. Its output is what is wrong.
    fn run(&self, name: &str, command: &mut Command) -> Result<Vec<String>> {
        let log = Log::create(self.ctx, self.ctx.target.join(format!("lint/{name}.log")))?;
        let status = log.quiet(command)?;
        if status.success() {
            return Ok(Vec::new());
        }
        let text = String::from_utf8_lossy(&std::fs::read(log.path())?).into_owned();
        let mut wrong: Vec<String> = text.lines().map(str::to_owned).collect();
        wrong.push(format!("({status}; log: {})", self.ctx.show(log.path())));
        Ok(wrong)
    }
}

fn rustfmt(tree: &Tree<'_>) -> Command {
    let mut rustfmt = Command::new("rustfmt");
    rustfmt
        .env_remove("TERM")
        .arg("--config-path")
        .arg(&tree.source);
    rustfmt.args(tree.select(&["kmod", "tests/kmod"], "rs"));
    rustfmt
}

fn cargo(ctx: &Ctx) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(ctx.repo.join("userspace"));
    cargo
}

/// Removes what cargo keeps of our packages: the registry that it makes of them, and what it has unpacked from there. It
/// knows them by name and version, which stay the same until they are published, and would compile a crate against the
/// former contents of another.
fn forget_packages(ctx: &Ctx) -> Result<()> {
    let mut stale = vec![ctx.target.join("package/tmp-registry")];
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let registries = home.and_then(|home| fs::read_dir(home.join("registry/src")).ok());
    for registry in registries.into_iter().flatten() {
        let registry = registry?.path();
        stale.extend(PUBLISHED.iter().map(|name| {
            let version = env!("CARGO_PKG_VERSION");
            registry.join(format!("{name}-{version}"))
        }));
    }
    for path in stale.iter().filter(|path| path.exists()) {
        fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// Names the crates that are published.
fn packages(cargo: &mut Command) -> &mut Command {
    PUBLISHED
        .iter()
        .fold(cargo, |cargo, name| cargo.args(["--package", name]))
}

fn cargo_fmt(ctx: &Ctx) -> Command {
    let mut cargo = cargo(ctx);
    cargo.args(["fmt", "--all"]);
    // The output goes into a log.
    cargo.env_remove("TERM");
    cargo
}

/// The kernel's own clippy configuration, and every warning of rustc and gcc as an error.
fn kernel_lints(tree: &Tree<'_>) -> Result<Vec<String>> {
    let dir = tree.ctx.target.join("kmod/lint");
    let _lock = cache::lock(tree.ctx, &dir.with_extension("lock"), "the module's lints")?;
    make_dir(&dir)?;
    let mut make = module::make(&tree.kernel, tree.ctx, &dir);
    make.args([
        "CLIPPY=1",
        "W=1",
        "KRUSTFLAGS=-Dwarnings",
        "KCFLAGS=-Werror",
    ]);
    make.arg(format!("CLIPPY_CONF_DIR={}", tree.source.display()));
    tree.run("module", &mut make)
}

fn checkpatch(tree: &Tree<'_>) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for extension in ["c", "h"] {
        files.extend(tree.select(&["kmod", "uapi", "tests/kmod"], extension));
    }
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let mut perl = Command::new("perl");
    perl.arg(tree.source.join("scripts/checkpatch.pl"));
    perl.args(["--no-tree", "--terse", "--no-summary", "--file"]);
    tree.run("checkpatch", perl.args(files))
}

/// Every uapi header by itself, as the strictest user would compile it.
fn headers(tree: &Tree<'_>) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for header in tree.select(&["uapi"], "h") {
        for (compiler, language, standard) in DIALECTS {
            let mut command = Command::new(compiler);
            command.args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only"]);
            command.arg(format!("-std={standard}"));
            command.arg("-I").arg(tree.ctx.repo.join("uapi"));
            // Included, not compiled itself: a header that is a main file draws other warnings.
            command.args(["-x", language, "-include"]).arg(&header);
            let found = tree.run(
                &format!("header-{compiler}-{standard}"),
                command.arg("/dev/null"),
            )?;
            if !found.is_empty() {
                wrong.push(format!("{compiler} -std={standard}:"));
                wrong.extend(found);
            }
        }
    }
    Ok(wrong)
}

fn shellcheck(tree: &Tree<'_>) -> Result<Vec<String>> {
    let scripts = tree.files.iter().filter(|file| {
        file.extension() == Some(OsStr::new("sh")) || is_shell(&tree.ctx.repo.join(file))
    });
    let mut command = Command::new("shellcheck");
    command.current_dir(&tree.ctx.repo).arg("-x");
    tree.run("shellcheck", command.args(scripts))
}

/// Whether a file's first line names a shell.
fn is_shell(path: &Path) -> bool {
    let bytes = std::fs::read(path).unwrap_or_default();
    let first = bytes
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default();
    let first = String::from_utf8_lossy(first);
    first.starts_with("#!")
        && first
            .split(['/', ' '])
            .any(|word| ["sh", "bash", "dash"].contains(&word))
}
