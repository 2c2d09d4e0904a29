//! Which driver the kernel has for a function that is given to VFIO.
//!
//! A variant driver announces its devices with aliases that begin with `vfio_pci:` in place of `pci:`
//! (`scripts/mod/file2alias.c`), so that it is never bound without being asked for.

use super::PciFunction;
use crate::sysfs::{Sysfs, entries, is_plain_name, read_capped};

/// `modules.alias` of a distribution has some 1.5 MB, `modules.builtin.modinfo` some 150 KB.
const MOST_BYTES: u64 = 16 << 20;
/// There are a few dozen variant aliases.
const MOST_ALIASES: usize = 4096;
/// The longest pattern. Those of PCI have at most 54 characters and some brackets.
const MOST_PATTERN: usize = 256;

/// An alias of a variant driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfioAlias {
    /// `vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i*`
    pub pattern: String,
    /// The module: `mlx5_vfio_pci`.
    pub module: String,
    /// The PCI driver that the module has registered, where it is loaded: a module `hisi_acc_vfio_pci` has a driver
    /// `hisi-acc-vfio-pci`, and `driver_override` takes the latter.
    pub driver: Option<String>,
}

/// The aliases of variant drivers of the kernel `release`, of modules and of what is built in.
#[must_use]
pub fn vfio_aliases(sysfs: &Sysfs, release: &str) -> Vec<VfioAlias> {
    if !is_plain_name(release) {
        return Vec::new();
    }
    let read = |file: &str| {
        let bytes = read_capped(&sysfs.beside("lib/modules").join(release).join(file), MOST_BYTES)?;
        String::from_utf8(bytes).ok()
    };
    let modules = read("modules.alias").unwrap_or_default();
    let built_in = read("modules.builtin.modinfo").unwrap_or_default();
    let of_modules = modules.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == "alias").then_some(())?;
        Some((words.next()?, words.next()?))
    });
    // Strings that end with NUL: `mlx5_vfio_pci.alias=vfio_pci:…`.
    let of_built_in = built_in.split('\0').filter_map(|entry| {
        let (name, pattern) = entry.split_once('=')?;
        Some((pattern, name.strip_suffix(".alias")?))
    });
    let mut aliases: Vec<VfioAlias> = of_modules
        .chain(of_built_in)
        .filter(|(pattern, module)| {
            pattern.starts_with("vfio_pci:") && pattern.len() <= MOST_PATTERN && is_plain_name(module)
        })
        .take(MOST_ALIASES)
        .map(|(pattern, module)| VfioAlias { pattern: pattern.into(), module: module.into(), driver: None })
        .collect();
    for alias in &mut aliases {
        alias.driver = driver_of(sysfs, &alias.module);
    }
    aliases
}

/// The PCI driver of a module that is loaded or built in.
fn driver_of(sysfs: &Sysfs, module: &str) -> Option<String> {
    let drivers = entries(&sysfs.path("module").join(module).join("drivers"));
    drivers.iter().find_map(|name| name.strip_prefix("pci:").map(str::to_owned))
}

/// Whether an alias pattern matches: `*` any characters, `?` one, `[…]` one of a set with ranges, the rest itself.
#[must_use]
pub fn matches_alias(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where the last star was, and what it was tried to stand for: one level of going back is enough for patterns like these.
    let mut star: Option<(usize, usize)> = None;
    loop {
        let matched = match (pattern.get(p), text.get(t)) {
            (None, None) => return true,
            (Some(b'*'), _) => {
                star = Some((p, t));
                p += 1;
                continue;
            }
            (Some(b'?'), Some(_)) => Some(1),
            (Some(b'['), Some(c)) => set(pattern.get(p..).unwrap_or_default(), *c),
            (Some(a), Some(b)) if a == b => Some(1),
            _ => None,
        };
        match (matched, star) {
            (Some(length), _) => (p, t) = (p + length, t + 1),
            (None, Some((at, upto))) if upto < text.len() => {
                star = Some((at, upto + 1));
                (p, t) = (at + 1, upto + 1);
            }
            _ => return false,
        }
    }
}

/// The length of the set at the start of `pattern` where it holds `c`.
fn set(pattern: &[u8], c: u8) -> Option<usize> {
    let length = pattern.iter().position(|b| *b == b']')? + 1;
    let mut rest = pattern.get(1..length - 1)?;
    let mut held = false;
    while let Some(first) = rest.first() {
        match rest {
            [_, b'-', last, ..] => {
                held |= (*first..=*last).contains(&c);
                rest = rest.get(3..)?;
            }
            _ => {
                held |= *first == c;
                rest = rest.get(1..)?;
            }
        }
    }
    held.then_some(length)
}

/// The variant driver for a function: of the aliases that match, the one that says most.
#[must_use]
pub fn variant_driver<'a>(function: &PciFunction, aliases: &'a [VfioAlias]) -> Option<&'a VfioAlias> {
    let text = format!("vfio_pci:{}", function.modalias.strip_prefix("pci:")?);
    let wildcards = |alias: &&VfioAlias| alias.pattern.bytes().filter(|b| b"*?[".contains(b)).count();
    aliases.iter().filter(|alias| matches_alias(&alias.pattern, &text)).min_by_key(wildcards)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_modprobe() {
        let text = "vfio_pci:v000015B3d0000101Esv000015B3sd00000061bc02sc00i00";
        for pattern in [
            "vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i*",
            "vfio_pci:v*d*sv*sd*bc02sc00i*",
            "*",
            text,
            "vfio_pci:v000015B3d0000101[A-F]sv*",
            "vfio_pci:v000015B?d*i00",
            "**i0[0]",
        ] {
            assert!(matches_alias(pattern, text), "{pattern}");
        }
        for pattern in [
            "",
            "vfio_pci:v000015B3d0000101Dsv*sd*bc*sc*i*",
            "vfio_pci:v000015B3d0000101[0-9]sv*",
            "vfio_pci:v000015B3",
            "*i01",
            "vfio_pci:v000015B3d0000101[",
            "pci:v000015B3d*",
        ] {
            assert!(!matches_alias(pattern, text), "{pattern}");
        }
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let pattern = "*a".repeat(100) + "b";
        assert!(!matches_alias(&pattern, &"a".repeat(4000)));
    }
}
