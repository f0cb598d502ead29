//! The words of QEMU's command line: which options there are, what each takes, and what becomes of it here. The table
//! also makes `-help` and the manual.

mod group;
mod table;

use devices::virtio::options::{ConfigError, nearest};

pub use group::Group;
pub use table::SECTIONS;

/// A part of the manual.
#[derive(Debug)]
pub struct Section {
    /// What its options are about.
    pub title: &'static str,
    /// They.
    pub rows: &'static [Row],
}

/// All options.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    SECTIONS.iter().flat_map(|section| section.rows)
}

/// An option of QEMU's command line.
#[derive(Debug)]
pub struct Row {
    /// Its name, without the dash.
    pub name: &'static str,
    /// What follows it, as the manual writes it; `None` for an option that stands alone.
    pub argument: Option<&'static str>,
    /// What becomes of it.
    pub treatment: Treatment,
    /// What it does here, half a sentence.
    pub help: &'static str,
}

/// What becomes of an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Treatment {
    /// Acted on.
    Acts(Opt),
    /// Taken without a word: a guest cannot tell, or what it concerns is not there.
    Idle,
    /// Taken, and the user is told what does not happen.
    Told,
    /// Not taken.
    Refused,
}

/// The options that are acted on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Opt {
    Accel,
    Action,
    Append,
    Audiodev,
    Bios,
    Boot,
    Cpu,
    Daemonize,
    Display,
    /// One of what can be there several times.
    Each(Group),
    Echr,
    EnableKvm,
    Global,
    Help,
    Initrd,
    Kernel,
    Machine,
    Memory,
    Monitor,
    Name,
    Net,
    NoReboot,
    NoShutdown,
    NoDefaults,
    NoGraphic,
    Overcommit,
    Parallel,
    Paused,
    Pidfile,
    Qmp,
    QmpPretty,
    Qtest,
    QtestLog,
    ReadConfig,
    Rtc,
    RunWith,
    Sandbox,
    Serial,
    Set,
    Smp,
    Uuid,
    Version,
    Vga,
    Vnc,
}

/// An option that the user gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arg {
    /// Which.
    pub option: Opt,
    /// How it is written, with its dash.
    pub name: String,
    /// What followed it; empty for an option that stands alone.
    pub value: String,
}

/// The options that are acted on, in the user's order, and what the user is to be told about others.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Args {
    /// Options.
    pub args: Vec<Arg>,
    /// One line each.
    pub notes: Vec<String>,
}

/// Takes the words of a command line, without the program's name, apart. One dash or two, as in QEMU.
///
/// # Errors
/// A word that is no option, an option without what has to follow it, or one that is refused here.
pub fn tokenise(words: impl IntoIterator<Item = String>) -> Result<Args, ConfigError> {
    let mut words = words.into_iter();
    let mut found = Args::default();
    while let Some(word) = words.next() {
        let Some(name) = word.strip_prefix('-').filter(|name| !name.is_empty()) else {
            return Err(ConfigError::refused(
                &word,
                "a bare file name is an IDE disk on QEMU, and there is no IDE here",
                format_args!("write -drive file={word},format=raw,if=virtio"),
            ));
        };
        let row = find(&word, name.strip_prefix('-').unwrap_or(name))?;
        let value = match row.argument {
            None => String::new(),
            Some(argument) => words.next().ok_or_else(|| {
                ConfigError::refused(
                    &word,
                    "what follows it is missing",
                    format_args!("write -{} {argument}", row.name),
                )
            })?,
        };
        match row.treatment {
            Treatment::Acts(option) => found.args.push(Arg {
                option,
                name: format!("-{}", row.name),
                value,
            }),
            Treatment::Idle => {}
            Treatment::Told => found.notes.push(format!("-{}: {}", row.name, row.help)),
            Treatment::Refused => {
                return Err(ConfigError::refused(
                    format_args!("-{}", row.name),
                    "not supported",
                    row.help,
                ));
            }
        }
    }
    Ok(found)
}

fn find(word: &str, name: &str) -> Result<&'static Row, ConfigError> {
    if let Some(row) = rows().find(|row| row.name == name) {
        return Ok(row);
    }
    let remedy = match nearest(name, rows().map(|row| row.name)) {
        Some(known) => format!("did you mean '-{known}'?"),
        None => "-help lists all".to_owned(),
    };
    Err(ConfigError::refused(word, "there is no such option", remedy))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn split(text: &str) -> Result<Vec<(Opt, String)>, String> {
        let found = tokenise(text.split_whitespace().map(str::to_owned)).map_err(|error| error.to_string())?;
        Ok(found.args.into_iter().map(|arg| (arg.option, arg.value)).collect())
    }

    #[test]
    fn one_dash_is_as_good_as_two() {
        let expected = Ok(vec![(Opt::Memory, "256".into()), (Opt::Paused, String::new())]);
        assert_eq!(split("-m 256 -S"), expected);
        assert_eq!(split("--m 256 --S"), expected);
    }

    #[test]
    fn a_value_may_begin_with_a_dash() {
        assert_eq!(split("-append -S"), Ok(vec![(Opt::Append, "-S".into())]));
    }

    #[test]
    fn mistakes_are_named_in_one_line() {
        for (text, complaint) in [
            ("-kernal x", "-kernal: there is no such option; did you mean '-kernel'?"),
            ("-zzzzzzzzzz", "-zzzzzzzzzz: there is no such option; -help lists all"),
            ("-m", "-m: what follows it is missing; write -m [size=]SIZE"),
            ("-", "-: a bare file name is an IDE disk"),
            ("disk.img", "write -drive file=disk.img,format=raw,if=virtio"),
            ("-usb", "-usb: not supported; there is no USB"),
        ] {
            let error = split(text).unwrap_err();
            assert!(error.contains(complaint), "{error}");
        }
    }

    #[test]
    fn what_does_not_happen_is_told_and_what_nobody_can_tell_is_not() {
        let found = tokenise(["-d", "int", "-no-user-config", "-no-hpet"].map(str::to_owned)).unwrap();
        assert_eq!(found.args, []);
        assert_eq!(found.notes.len(), 1);
        assert!(found.notes[0].starts_with("-d: "), "{}", found.notes[0]);
    }

    #[test]
    fn names_are_unique_and_helped() {
        for (index, row) in rows().enumerate() {
            assert!(rows().take(index).all(|other| other.name != row.name), "{}", row.name);
            assert!(!row.help.is_empty() && !row.help.contains('\n'), "{}", row.name);
        }
    }
}
