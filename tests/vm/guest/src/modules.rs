// SPDX-License-Identifier: MIT OR Apache-2.0

//! Loading and unloading kernel modules of the initramfs.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};

use crate::protocol::ModuleFile;
use crate::sysfs;

/// The modules that the host has put into the initramfs.
#[derive(Clone, Debug)]
pub struct Modules(pub Vec<ModuleFile>);

impl Modules {
    /// Loads a module and first what it needs. What is loaded already stays as it is.
    pub fn load(&self, name: &str, parameters: &str) -> io::Result<()> {
        let module = self.get(name)?;
        for need in &module.needs {
            insert(self.get(need)?, "")?;
        }
        insert(module, parameters)
    }

    /// Whether a module of this name is in the initramfs. Those built into the kernel are not.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_ok()
    }

    fn get(&self, name: &str) -> io::Result<&ModuleFile> {
        let found = self.0.iter().find(|module| module.name == name);
        found.ok_or_else(|| io::Error::other(format!("no module {name} in the initramfs")))
    }
}

fn insert(module: &ModuleFile, parameters: &str) -> io::Result<()> {
    let file = File::open(&module.path)?;
    let text = CString::new(parameters)?;
    match finit_module(&file, &text, ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(failed("load", &module.name, errno)),
    }
}

/// Unloads a module without waiting for its users.
pub fn unload(name: &str) -> io::Result<()> {
    let text = CString::new(name)?;
    delete_module(&text, DeleteModuleFlags::O_NONBLOCK)
        .map_err(|errno| failed("unload", name, errno))
}

pub fn is_loaded(name: &str) -> bool {
    // Modules that are built in have this directory for their parameters, but no state.
    Path::new("/sys/module")
        .join(name)
        .join("initstate")
        .exists()
}

/// How many users keep a module from being unloaded.
pub fn references(name: &str) -> io::Result<u32> {
    let text = sysfs::read(format!("/sys/module/{name}/refcnt"))?;
    text.parse().map_err(io::Error::other)
}

fn failed(what: &str, name: &str, errno: Errno) -> io::Error {
    sysfs::named(format!("cannot {what} the module {name}"), errno.into())
}
