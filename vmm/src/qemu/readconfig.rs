//! Files of `-readconfig`: sections `[group "id"]` with lines `key = "value"` (docs/config in QEMU's source has
//! examples).

use devices::virtio::options::{ConfigError, Pairs};

use super::args::Group;
use super::collect::Collected;

/// The largest file that is read.
const LARGEST: u64 = 1 << 20;

/// Reads the file at `path` into `collected`, each section as the option of its name.
pub(super) fn read(path: &str, collected: &mut Collected) -> Result<(), ConfigError> {
    let refused = |problem: &dyn std::fmt::Display| {
        ConfigError::refused(
            format_args!("-readconfig {path}"),
            problem,
            "name a file of sections and values",
        )
    };
    let size = std::fs::metadata(path).map_err(|error| refused(&error))?.len();
    if size > LARGEST {
        return Err(refused(&"the file is larger than 1 MiB"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| refused(&error))?;
    read_text(path, &text, collected)
}

/// A section on its way.
struct Section {
    line: usize,
    group: String,
    pairs: Pairs,
}

fn read_text(path: &str, text: &str, collected: &mut Collected) -> Result<(), ConfigError> {
    let mut section: Option<Section> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        let refused =
            |problem: &str, remedy: &str| ConfigError::refused(format_args!("{path}:{number}"), problem, remedy);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            if let Some(section) = section.take() {
                finish(path, section, collected)?;
            }
            section = Some(begin(number, header.trim()));
        } else if let Some((key, value)) = line.split_once('=') {
            let Some(section) = &mut section else {
                return Err(refused("this value is in no section", "write [GROUP \"ID\"] before it"));
            };
            let value = value.trim();
            let bare = value
                .strip_prefix('"')
                .and_then(|rest| rest.strip_suffix('"'))
                .unwrap_or(value);
            section.pairs.push(key.trim(), bare);
        } else {
            return Err(refused(
                "this is neither a section nor a value",
                "write [GROUP \"ID\"] or KEY = \"VALUE\"",
            ));
        }
    }
    section.map_or(Ok(()), |section| finish(path, section, collected))
}

fn begin(line: usize, header: &str) -> Section {
    let (group, id) = match header.split_once(char::is_whitespace) {
        Some((group, id)) => (group, Some(id.trim().trim_matches('"'))),
        None => (header, None),
    };
    let mut pairs = Pairs::default();
    if let Some(id) = id {
        pairs.push("id", id);
    }
    Section {
        line,
        group: group.to_owned(),
        pairs,
    }
}

fn finish(path: &str, section: Section, collected: &mut Collected) -> Result<(), ConfigError> {
    let Section { line, group, mut pairs } = section;
    if let Some(group) = Group::from_name(&group) {
        collected.groups.push((group, pairs));
        return Ok(());
    }
    match group.as_str() {
        "machine" => collected.machine.extend(pairs),
        "memory" => collected.memory.extend(pairs),
        "smp-opts" => collected.smp.extend(pairs),
        "boot-opts" => collected.boot.extend(pairs),
        "accel" => collected.accelerators.push(pairs),
        "name" => collected.name.extend(pairs),
        "action" => collected.actions.extend(pairs),
        "global" => {
            let all = [pairs.take("driver"), pairs.take("property"), pairs.take("value")];
            let [Some(driver), Some(property), Some(value)] = all else {
                let remedy = "give driver, property and value";
                return Err(ConfigError::refused(
                    format_args!("{path}:{line}"),
                    "this section lacks a value",
                    remedy,
                ));
            };
            collected.globals.push([driver, property, value]);
        }
        _ => {
            let problem = format!("there is no section [{group}]");
            let remedy = "use the names of options, such as [device] or [machine]";
            return Err(ConfigError::refused(format_args!("{path}:{line}"), problem, remedy));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(text: &str) -> Result<Collected, String> {
        let mut collected = Collected::default();
        read_text("a.cfg", text, &mut collected).map_err(|error| error.to_string())?;
        Ok(collected)
    }

    #[test]
    fn sections_are_options() {
        let text = "# a machine\n[machine]\n  type = \"pc\"\n\n[memory]\n  size = \"1024\"\n\
                    [drive \"d0\"]\n  file = \"a=b,c.img\"\n  if = \"none\"\n\
                    [device \"x\"]\n  driver = \"virtio-blk-pci\"\n  drive = \"d0\"\n\
                    [global]\n  driver = \"virtio-pci\"\n  property = \"vectors\"\n  value = \"3\"\n";
        let collected = parse(text).unwrap();
        assert_eq!(collected.machine.to_string(), "type=pc");
        assert_eq!(collected.memory.to_string(), "size=1024");
        let drive = collected.of(Group::Drive).next().unwrap();
        assert_eq!(drive.to_string(), "id=d0,file=a=b,,c.img,if=none");
        let device = collected.of(Group::Device).next().unwrap();
        assert_eq!(device.to_string(), "id=x,driver=virtio-blk-pci,drive=d0");
        assert_eq!(collected.globals, [["virtio-pci", "vectors", "3"].map(str::to_owned)]);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, complaint) in [
            ("a = \"b\"", "a.cfg:1: this value is in no section"),
            ("[machine]\nfoo", "a.cfg:2: this is neither a section nor a value"),
            ("\n[spice]\n", "a.cfg:2: there is no section [spice]"),
            ("[global]\ndriver = \"x\"", "a.cfg:1: this section lacks a value"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(complaint), "{error}");
        }
    }
}
