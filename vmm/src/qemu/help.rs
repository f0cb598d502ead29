//! The texts of `-help`, `-version` and of the `help` that many options take; all come from the tables.

use std::collections::BTreeMap;
use std::fmt::Write;

use devices::virtio::info::{self, CHILDREN, DEVICES};
use devices::virtio::options::{OptionKind, OptionSpec, Pairs};

use super::args::{Group, Row, SECTIONS, Treatment};
use super::board::MACHINES;
use super::collect::Collected;
use super::properties::beside_options;
use super::{lines, network, objects};

/// The version of QEMU whose options and answers these are.
pub const QEMU_VERSION: [u64; 3] = [7, 2, 0];

/// What `-version` prints: programs look for QEMU's words in it.
pub fn version() -> String {
    let [major, minor, micro] = QEMU_VERSION;
    format!(
        "QEMU emulator version {major}.{minor}.{micro} (Innkeeper {})\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// The text that the user asked for, if any.
pub(super) fn asked_for(collected: &Collected) -> Option<String> {
    if collected.help {
        return Some(options());
    }
    if collected.version {
        return Some(version());
    }
    if let Some(text) = collected
        .groups
        .iter()
        .find_map(|(group, pairs)| of_group(*group, pairs))
    {
        return Some(text);
    }
    if wants_help(&collected.machine, "type") {
        let machines = MACHINES.iter().map(|(name, text)| format!("{name:<20} {text}\n"));
        return Some(format!("Supported machines are:\n{}", machines.collect::<String>()));
    }
    if collected.accelerators.iter().any(|pairs| wants_help(pairs, "accel")) {
        return Some("Accelerators supported in QEMU binary:\nkvm\nqtest\n".to_owned());
    }
    if collected.cpu.as_deref().is_some_and(is_help) {
        return Some(
            "Available CPUs:\nx86 host                  the host's CPU, with what KVM offers (the only one, and the default)\n\
             x86 max                   the same\n"
                .to_owned(),
        );
    }
    None
}

fn is_help(word: &str) -> bool {
    word == "help" || word == "?"
}

/// `help` as the first word, or as a key.
fn wants_help(pairs: &Pairs, implied: &str) -> bool {
    pairs.get(implied).is_some_and(is_help) || pairs.iter().any(|(key, value)| is_help(key) && value == "on")
}

fn of_group(group: Group, pairs: &Pairs) -> Option<String> {
    let list = |title: &str, names: &mut dyn Iterator<Item = &str>| {
        let names = names.map(|name| format!("{name}\n"));
        format!("{title}:\n{}", names.collect::<String>())
    };
    match group {
        Group::Device => match pairs.get("driver") {
            Some(word) if is_help(word) => Some(devices()),
            Some(driver) if wants_help(pairs, "driver") => Some(properties(driver)),
            _ => None,
        },
        Group::Chardev if wants_help(pairs, "backend") => {
            Some(list("Available chardev backend types", &mut lines::kinds()))
        }
        Group::Netdev | Group::Nic if wants_help(pairs, "type") => {
            Some(list("Available netdev backend types", &mut network::KINDS.split('|')))
        }
        Group::Object if wants_help(pairs, "qom-type") => {
            Some(list("List of user creatable objects", &mut objects::kinds()))
        }
        _ => None,
    }
}

/// `-device help`.
fn devices() -> String {
    let mut text = String::new();
    for info in DEVICES {
        // A String takes everything.
        let _ = writeln!(text, "name \"{}\", bus PCI, desc \"{}\"", info.name, info.id);
        if info.transitional_id.is_some() {
            let _ = writeln!(text, "name \"{}-non-transitional\", bus PCI", info.name);
            let _ = writeln!(text, "name \"{}-transitional\", bus PCI", info.name);
        }
    }
    for child in CHILDREN {
        let _ = writeln!(text, "name \"{}\", bus of {}", child.name, child.parent.name);
    }
    text.push_str("name \"isa-debug-exit\", bus ISA\n");
    text
}

/// Of the one device that has no table.
const DEBUG_EXIT: &str = "\
isa-debug-exit options:
  iobase=<uint32>        - the port (default: 0x501)
  iosize=<uint32>        - how many ports there are, which makes no difference
";

/// `-device NAME,help`.
fn properties(driver: &str) -> String {
    let specs: Vec<&OptionSpec> = match info::find(driver) {
        Ok((info, _)) => info.all_options().collect(),
        Err(error) => match CHILDREN.iter().find(|child| child.name == driver) {
            Some(child) => child.options.iter().collect(),
            None if driver == "isa-debug-exit" => return DEBUG_EXIT.to_owned(),
            None => return format!("{error}\n"),
        },
    };
    let line = |name: &str, kind: &str, help: &str, default: Option<&str>| {
        let named = format!("{name}=<{kind}>");
        let default = default
            .map(|default| format!(" (default: {default})"))
            .unwrap_or_default();
        let dash = if help.is_empty() { "" } else { " - " };
        (name.to_owned(), format!("  {named:<23}{dash}{help}{default}\n"))
    };
    let mut lines: BTreeMap<String, String> = beside_options(driver)
        .into_iter()
        .map(|listed| line(listed.name, listed.of, listed.help, None))
        .collect();
    lines.extend(specs.into_iter().map(|spec| {
        let kind = match spec.kind {
            OptionKind::Flag => "bool".to_owned(),
            OptionKind::Number { .. } => "uint".to_owned(),
            OptionKind::Size => "size".to_owned(),
            OptionKind::Choice(words) => words.join("|"),
            OptionKind::Slot => "int32".to_owned(),
            OptionKind::Text | OptionKind::Texts => "str".to_owned(),
        };
        line(spec.name, &kind, spec.help, spec.default)
    }));
    format!("{driver} options:\n{}", lines.into_values().collect::<String>())
}

/// `-help`.
fn options() -> String {
    let mut text = version();
    text.push_str("usage: qemu-system-x86_64 -kernel FILE [options]\n");
    for section in SECTIONS {
        let _ = write!(text, "\n{}:\n", section.title);
        for row in section.rows.iter().filter(|row| row.treatment != Treatment::Refused) {
            let _ = writeln!(text, "{}\n                {}", spelled(row), row.help);
        }
    }
    text.push_str("\nOptions of QEMU that are not listed are refused in one line that says what there is instead.\n");
    text
}

fn spelled(row: &Row) -> String {
    match row.argument {
        Some(argument) => format!("-{} {argument}", row.name),
        None => format!("-{}", row.name),
    }
}

/// The options as the manual has them: a table for each section.
pub fn manual() -> String {
    let mut text = String::new();
    let escape = |word: &str| word.replace('|', "\\|");
    for section in SECTIONS {
        let _ = write!(text, "### {}\n\n| option | here | |\n|---|---|---|\n", section.title);
        for row in section.rows {
            let what = match row.treatment {
                Treatment::Acts(_) => "yes",
                Treatment::Idle => "taken",
                Treatment::Told => "taken, with a line",
                Treatment::Refused => "refused",
            };
            let _ = writeln!(text, "| `{}` | {what} | {} |", escape(&spelled(row)), escape(row.help));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn asked(text: &str) -> Option<String> {
        asked_for(&Collected::from_words(text.split_whitespace().map(str::to_owned)).unwrap())
    }

    #[test]
    fn the_version_is_found_by_programs_that_look_for_qemus() {
        let text = asked("-version").unwrap();
        let rest = text.strip_prefix("QEMU emulator version ").unwrap();
        assert!(rest.starts_with("7.2.0 (Innkeeper "), "{text}");
    }

    #[test]
    fn help_comes_from_the_tables() {
        for (text, expected) in [
            ("-h", "-kernel FILE"),
            ("-M help", "pc-i440fx-7.2"),
            ("-accel help", "kvm"),
            ("-cpu help", "x86 host"),
            ("-device help", "name \"virtio-blk-pci\", bus PCI"),
            ("-device virtio-blk-pci,help", "  queue-size=<uint>"),
            ("-device virtio-rng-pci,?", "  source=<str>"),
            ("-device virtio-blk-pci,help", "  drive=<str>             - Node name"),
            ("-device virtio-net-pci,help", "  rombar=<uint32>"),
            ("-device nonsense,help", "there is no such device"),
            ("-chardev help", "socket"),
            ("-netdev help", "hubport"),
            ("-object ?", "iothread"),
        ] {
            let answer = asked(text).unwrap();
            assert!(answer.contains(expected), "{text}: {answer}");
        }
        for text in ["", "-device virtio-blk-pci,drive=help", "-m 512"] {
            assert_eq!(asked(text), None, "{text}");
        }
    }

    #[test]
    fn the_manual_has_the_tables() {
        let file = include_str!("../../../docs/qemu-command-line.md");
        let (_, rest) = file.split_once("<!-- options -->\n\n").unwrap();
        let (table, _) = rest.split_once("<!-- end -->").unwrap();
        assert!(
            table == manual(),
            "write this into docs/qemu-command-line.md:\n{}",
            manual()
        );
    }
}
