// SPDX-License-Identifier: MIT OR Apache-2.0

//! What executes the instructions of this machine: whether its clock says anything about hardware.

use std::fmt;
use std::fs;
use std::path::Path;

/// What a machine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Machine {
    /// Nothing says otherwise.
    Hardware,
    /// A hypervisor runs it on a real processor. Its devices may be emulated all the same.
    Virtual(String),
    /// Every instruction is emulated: wall-clock times say nothing.
    Emulated(String),
}

/// What a hypervisor calls itself to its guests.
#[cfg(target_arch = "x86_64")]
fn signature() -> Option<String> {
    use std::arch::x86_64::{__cpuid, CpuidResult};

    /// Bit 31 of ecx of leaf 1: there is a hypervisor.
    const HYPERVISOR: u32 = 1 << 31;
    const SIGNATURE_LEAF: u32 = 0x4000_0000;

    #[allow(unused_unsafe, reason = "later compilers know that it is safe")]
    fn cpuid(leaf: u32) -> CpuidResult {
        // SAFETY: Every x86-64 processor has the instruction.
        unsafe { __cpuid(leaf) }
    }

    (cpuid(1).ecx & HYPERVISOR != 0).then(|| {
        let leaf = cpuid(SIGNATURE_LEAF);
        let bytes: Vec<u8> = [leaf.ebx, leaf.ecx, leaf.edx]
            .iter()
            .flat_map(|register| register.to_le_bytes())
            .filter(|byte| byte.is_ascii_graphic())
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Elsewhere the firmware's words have to do.
#[cfg(not(target_arch = "x86_64"))]
fn signature() -> Option<String> {
    None
}

impl Machine {
    /// Asks the processor, and the firmware's own words (DMI) below `sys`.
    pub fn detect(sys: &Path) -> Machine {
        let dmi = |name: &str| {
            let text = fs::read_to_string(sys.join("class/dmi/id").join(name));
            text.unwrap_or_default().trim().to_owned()
        };
        Machine::judge(signature().as_deref(), &dmi("sys_vendor"))
    }

    fn judge(signature: Option<&str>, vendor: &str) -> Machine {
        match signature {
            Some(text) if text.starts_with("TCG") => {
                Machine::Emulated(format!("QEMU's TCG ({text})"))
            }
            Some(text) if text.starts_with("Linux") && text.contains("KVM") => {
                Machine::Virtual(text.into())
            }
            Some("") => Machine::Virtual("a hypervisor without a name".into()),
            Some(text) => Machine::Virtual(text.into()),
            // QEMU can hide the signature, and then hides whether it emulates.
            None if vendor == "QEMU" => Machine::Emulated("QEMU, which does not say how".into()),
            None => Machine::Hardware,
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Machine::Hardware => f.write_str("hardware"),
            Machine::Virtual(who) => write!(f, "virtual machine: {who}"),
            Machine::Emulated(who) => write!(f, "emulated: {who}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulators_are_told_from_hypervisors() {
        let judge = Machine::judge;
        assert!(matches!(
            judge(Some("TCGTCGTCGTCG"), "QEMU"),
            Machine::Emulated(_)
        ));
        assert!(matches!(
            judge(Some("KVMKVMKVM"), "QEMU"),
            Machine::Virtual(_)
        ));
        assert!(matches!(
            judge(Some("Microsoft Hv"), ""),
            Machine::Virtual(_)
        ));
        assert!(matches!(judge(None, "QEMU"), Machine::Emulated(_)));
        assert_eq!(judge(None, "Supermicro"), Machine::Hardware);
    }

    #[test]
    fn this_machine_is_something() {
        assert!(!Machine::detect(Path::new("/sys")).to_string().is_empty());
    }
}
