//! Options of a device as the user writes them, `key=value,key=value`, and what they are once read.
//!
//! Text goes through three stages: [`Pairs`] is the text taken apart, [`Options`] is what the
//! tables of [`OptionSpec`] make of it, and what a device builds from that is its own. The tables
//! also make the manual.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;

/// The user asked for something that cannot be. The message says what, where, and what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// SUBJECT: there is no option NAME
    #[error("{subject}: there is no option '{name}'; {remedy}")]
    UnknownOption {
        /// The device, or the command-line option.
        subject: String,
        /// What the user wrote.
        name: String,
        /// The nearest name, or all names.
        remedy: String,
    },
    /// SUBJECT: NAME=VALUE is not EXPECTED
    #[error("{subject}: {name}={value}: expected {expected}")]
    InvalidValue {
        /// The device, or the command-line option.
        subject: String,
        /// The option.
        name: String,
        /// What the user wrote.
        value: String,
        /// What it can be.
        expected: String,
    },
    /// SUBJECT: NAME is missing
    #[error("{subject}: {name}= is missing; give {help}")]
    MissingOption {
        /// The device, or the command-line option.
        subject: String,
        /// The option.
        name: String,
        /// What it stands for.
        help: String,
    },
    /// SUBJECT: PROBLEM; REMEDY
    #[error("{subject}: {problem}; {remedy}")]
    Refused {
        /// The device, or the file.
        subject: String,
        /// What cannot be.
        problem: String,
        /// What the user can do.
        remedy: String,
    },
}

impl ConfigError {
    /// Something that no table of options says: `subject: problem; remedy`.
    pub fn refused(subject: impl fmt::Display, problem: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        Self::Refused {
            subject: subject.to_string(),
            problem: problem.to_string(),
            remedy: remedy.to_string(),
        }
    }
}

/// What an option can be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OptionKind {
    /// `on` or `off`.
    Flag,
    /// A number in decimal or, with 0x, in hexadecimal.
    Number {
        /// The lowest that is legal.
        min: u64,
        /// The highest that is legal.
        max: u64,
    },
    /// Bytes, with K, M, G or T for powers of 1024.
    Size,
    /// One of several words.
    Choice(&'static [&'static str]),
    /// A place on the bus, `slot` or `slot.function` in hexadecimal, as QEMU's `addr=`.
    Slot,
    /// Anything.
    Text,
    /// Anything; all of several hold, in their order.
    Texts,
}

impl fmt::Display for OptionKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => formatter.write_str("on|off"),
            Self::Number { min, max: u64::MAX } => write!(formatter, "a number from {min}"),
            Self::Number { min, max } => write!(formatter, "a number from {min} to {max}"),
            Self::Size => formatter.write_str("a size such as 512, 64K or 2G"),
            Self::Choice(words) => formatter.write_str(&words.join("|")),
            Self::Slot => formatter.write_str("a slot from 0 to 1f, or slot.function such as 4.0"),
            Self::Text => formatter.write_str("a text"),
            Self::Texts => formatter.write_str("a text, several times if wanted"),
        }
    }
}

/// An option that a device takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptionSpec {
    /// Its name, as QEMU spells it where QEMU has it.
    pub name: &'static str,
    /// What it can be.
    pub kind: OptionKind,
    /// What it is when the user does not say, as the user would write it.
    pub default: Option<&'static str>,
    /// What it does, half a sentence for the manual.
    pub help: &'static str,
}

impl OptionSpec {
    /// An option without a default.
    pub const fn new(name: &'static str, kind: OptionKind, help: &'static str) -> Self {
        Self {
            name,
            kind,
            default: None,
            help,
        }
    }

    /// Gives it a default.
    #[must_use]
    pub const fn or(mut self, default: &'static str) -> Self {
        self.default = Some(default);
        self
    }
}

/// Where a device stands among those that a firmware tries to start from.
pub const BOOT_INDEX: OptionSpec = OptionSpec::new(
    "bootindex",
    OptionKind::Number {
        min: 0,
        max: i32::MAX as u64,
    },
    "place in the boot order",
);

/// Who serves a device.
pub const IO_THREAD: OptionSpec = OptionSpec::new(
    "iothread",
    OptionKind::Text,
    "the I/O thread that serves it; all in turn if not given",
);

/// One table of two. `N` is how many there are in both.
pub const fn concat<const N: usize>(first: &[OptionSpec], second: &[OptionSpec]) -> [OptionSpec; N] {
    assert!(first.len() + second.len() == N, "N is the length of both tables");
    let mut all = [OptionSpec::new("", OptionKind::Flag, ""); N];
    let mut index = 0;
    while index < N {
        all[index] = if index < first.len() {
            first[index]
        } else {
            second[index - first.len()]
        };
        index += 1;
    }
    all
}

impl fmt::Display for OptionSpec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}={}  {}", self.name, self.kind, self.help)?;
        match self.default {
            Some(default) => write!(formatter, " (default: {default})"),
            None => Ok(()),
        }
    }
}

/// Device and function number that an `addr=` option names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Device number, 0 to 31.
    pub device: u8,
    /// Function number, 0 to 7.
    pub function: u8,
}

/// The text taken apart: keys and values in the user's order, nothing looked at.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Pairs(Vec<(String, String)>);

impl Pairs {
    /// Takes `text` apart at its commas. A comma that is written twice stands for itself; a comma
    /// at the end means nothing. A first piece without `=` is the value of `implied`, if there is
    /// an implied key. A number alone behind a number continues a list; any other piece without `=`
    /// is a flag that is on.
    pub fn parse(text: &str, implied: Option<&str>) -> Self {
        let is_list = |text: &str| text.split(',').all(|piece| piece.parse::<u64>().is_ok());
        let mut pairs = Self::default();
        for piece in pieces(text) {
            match (piece.split_once('='), implied, pairs.0.last_mut()) {
                (Some((key, value)), ..) => pairs.push(key, value),
                (None, Some(implied), None) => pairs.push(implied, piece),
                (None, _, Some((_, numbers))) if is_list(&piece) && is_list(numbers) => {
                    numbers.push(',');
                    numbers.push_str(&piece);
                }
                (None, ..) => pairs.push(piece, "on"),
            }
        }
        pairs
    }

    /// Adds a pair at the end, where it overrules earlier ones of the same key.
    pub fn push(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.0.push((key.into(), value.into()));
    }

    /// Takes a key out and returns its value, the last one if it was given several times.
    pub fn take(&mut self, key: &str) -> Option<String> {
        let mut taken = None;
        self.0.retain_mut(|(name, value)| {
            let found = name == key;
            if found {
                taken = Some(std::mem::take(value));
            }
            !found
        });
        taken
    }

    /// The value of a key, the last one if it was given several times.
    pub fn get(&self, key: &str) -> Option<&str> {
        let found = self.iter().filter(|(name, _)| *name == key).last();
        found.map(|(_, value)| value)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The pairs.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Pairs {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let pairs = pairs.into_iter().map(|(key, value)| (key.into(), value.into()));
        Self(pairs.collect())
    }
}

impl Extend<(String, String)> for Pairs {
    fn extend<I: IntoIterator<Item = (String, String)>>(&mut self, pairs: I) {
        self.0.extend(pairs);
    }
}

impl IntoIterator for Pairs {
    type Item = (String, String);
    type IntoIter = std::vec::IntoIter<(String, String)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl fmt::Display for Pairs {
    /// As the user would write them; [`Pairs::parse`] reads it back.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, value)) in self.iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            write!(
                formatter,
                "{separator}{}={}",
                key.replace(',', ",,"),
                value.replace(',', ",,")
            )?;
        }
        Ok(())
    }
}

/// Cuts at single commas; a double one is a comma of the piece.
fn pieces(text: &str) -> Vec<String> {
    let mut pieces = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter == ',' && letters.next_if_eq(&',').is_none() {
            pieces.push(String::new());
        } else if let Some(last) = pieces.last_mut() {
            last.push(letter);
        }
    }
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

/// An option's value, read.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Value {
    Flag(bool),
    /// A number, or a size in bytes.
    Number(u64),
    Slot(Slot),
    Text(String),
    Texts(Vec<String>),
}

/// Options as their tables have them: each known, each value of its kind, defaults filled in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    subject: String,
    specs: Vec<OptionSpec>,
    values: BTreeMap<&'static str, Value>,
}

impl Options {
    /// Reads `pairs` by the tables `specs`, which together make up what `subject` (the device as
    /// the user wrote it) takes. Of an option that is given twice the last one holds, as in QEMU.
    ///
    /// # Errors
    /// An option that no table has, or a value that is not of its kind.
    pub fn read(subject: &str, pairs: &Pairs, specs: &[&[OptionSpec]]) -> Result<Self, ConfigError> {
        let mut options = Self {
            subject: subject.to_owned(),
            specs: specs.concat(),
            values: BTreeMap::new(),
        };
        let specs = options.specs.clone();
        for spec in &specs {
            if let Some(default) = spec.default {
                options.set(spec, default)?;
            }
        }
        for (name, value) in pairs.iter() {
            let spec = specs.iter().find(|spec| spec.name == name);
            options.set(spec.ok_or_else(|| options.unknown(name))?, value)?;
        }
        Ok(options)
    }

    /// Takes `text` apart and reads it.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(subject: &str, text: &str, specs: &[&[OptionSpec]]) -> Result<Self, ConfigError> {
        Self::read(subject, &Pairs::parse(text, None), specs)
    }

    /// Whose options they are, as the user wrote it; errors begin with it.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Whether a [`OptionKind::Flag`] is on; one that was not given and has no default is off.
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.value(name), Some(Value::Flag(true)))
    }

    /// A [`OptionKind::Flag`] without a default, if it was given.
    pub fn given_flag(&self, name: &str) -> Option<bool> {
        match self.value(name) {
            Some(Value::Flag(on)) => Some(*on),
            _ => None,
        }
    }

    /// A [`OptionKind::Number`], or a [`OptionKind::Size`] in bytes.
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.value(name) {
            Some(Value::Number(number)) => Some(*number),
            _ => None,
        }
    }

    /// A [`OptionKind::Text`] or [`OptionKind::Choice`].
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.value(name) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// A [`OptionKind::Texts`]: what was given, in the user's order.
    pub fn texts(&self, name: &str) -> &[String] {
        match self.value(name) {
            Some(Value::Texts(texts)) => texts,
            _ => &[],
        }
    }

    /// Whether the option has a value, given or by default, and is no flag that is off.
    pub fn is_given(&self, name: &str) -> bool {
        self.value(name).is_some_and(|value| *value != Value::Flag(false))
    }

    /// A [`OptionKind::Text`] or [`OptionKind::Choice`] that has to be there.
    ///
    /// # Errors
    /// It is missing.
    pub fn required(&self, name: &str) -> Result<&str, ConfigError> {
        let help = self
            .specs
            .iter()
            .find(|spec| spec.name == name)
            .map_or("", |spec| spec.help);
        self.text(name).ok_or_else(|| ConfigError::MissingOption {
            subject: self.subject.clone(),
            name: name.to_owned(),
            help: help.to_owned(),
        })
    }

    /// A [`OptionKind::Slot`].
    pub fn slot(&self, name: &str) -> Option<Slot> {
        match self.value(name) {
            Some(Value::Slot(slot)) => Some(*slot),
            _ => None,
        }
    }

    /// The error for an option whose value has the right kind and is refused nevertheless.
    pub fn invalid(&self, name: &str, value: impl fmt::Display, expected: impl fmt::Display) -> ConfigError {
        ConfigError::InvalidValue {
            subject: self.subject.clone(),
            name: name.to_owned(),
            value: value.to_string(),
            expected: expected.to_string(),
        }
    }

    /// The error for these options as a whole.
    pub fn refused(&self, problem: impl fmt::Display, remedy: impl fmt::Display) -> ConfigError {
        ConfigError::refused(&self.subject, problem, remedy)
    }

    fn value(&self, name: &str) -> Option<&Value> {
        debug_assert!(self.specs.iter().any(|spec| spec.name == name), "{name} is in no table");
        self.values.get(name)
    }

    fn set(&mut self, spec: &OptionSpec, text: &str) -> Result<(), ConfigError> {
        let value = read_value(spec.kind, text).ok_or_else(|| self.invalid(spec.name, text, spec.kind))?;
        match (self.values.get_mut(spec.name), value) {
            (Some(Value::Texts(texts)), Value::Texts(more)) => texts.extend(more),
            (_, value) => {
                self.values.insert(spec.name, value);
            }
        }
        Ok(())
    }

    fn unknown(&self, name: &str) -> ConfigError {
        let names = || self.specs.iter().map(|spec| spec.name);
        let remedy = match nearest(name, names()) {
            Some(known) => format!("did you mean '{known}'?"),
            None => format!("it takes {}", names().collect::<Vec<_>>().join(", ")),
        };
        ConfigError::UnknownOption {
            subject: self.subject.clone(),
            name: name.to_owned(),
            remedy,
        }
    }
}

fn read_value(kind: OptionKind, text: &str) -> Option<Value> {
    Some(match kind {
        OptionKind::Flag => Value::Flag(read_flag(text)?),
        OptionKind::Number { min, max } => Value::Number(read_number(text).filter(|n| (min..=max).contains(n))?),
        OptionKind::Size => Value::Number(read_size(text)?),
        OptionKind::Choice(words) => Value::Text(words.contains(&text).then(|| text.to_owned())?),
        OptionKind::Slot => Value::Slot(read_slot(text)?),
        OptionKind::Text => Value::Text(text.to_owned()),
        OptionKind::Texts => Value::Texts(vec![text.to_owned()]),
    })
}

/// The words that QEMU takes (util/qemu-option.c and qapi/util.c).
fn read_flag(text: &str) -> Option<bool> {
    match text {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
    }
}

/// A number, decimal or with 0x.
pub fn read_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn read_size(text: &str) -> Option<u64> {
    let trimmed = text.trim_end_matches("iB").trim_end_matches('B');
    let digits = trimmed.trim_end_matches(|c: char| "kKmMgGtT".contains(c));
    let shift = match trimmed.strip_prefix(digits)? {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        _ => return None,
    };
    read_number(digits)?.checked_mul(1 << shift)
}

/// `slot[.function]`, both hexadecimal, with or without 0x (QEMU, hw/core/qdev-properties-system.c,
/// `set_pci_devfn`).
fn read_slot(text: &str) -> Option<Slot> {
    let (device, function) = text.split_once('.').unwrap_or((text, "0"));
    let hex = |text: &str, max: u8| {
        let digits = text.strip_prefix("0x").unwrap_or(text);
        u8::from_str_radix(digits, 16).ok().filter(|n| *n <= max)
    };
    Some(Slot {
        device: hex(device, 31)?,
        function: hex(function, 7)?,
    })
}

/// The name that the user may have meant by `name`: the one with the fewest letters to change.
pub fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, nearest) = names.map(|known| (distance(known, name), known)).min()?;
    (distance <= 1 + name.len() / 4).then_some(nearest)
}

/// Letters to change, add or leave out to get from one word to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, other) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SPECS: &[OptionSpec] = &[
        OptionSpec::new("drive", OptionKind::Text, "the disk to show"),
        OptionSpec::new("share", OptionKind::Flag, "lets others write").or("off"),
        OptionSpec::new("queues", OptionKind::Number { min: 1, max: 8 }, "number of queues").or("1"),
        OptionSpec::new("size", OptionKind::Size, "bytes"),
        OptionSpec::new("cache", OptionKind::Choice(&["none", "writeback"]), "caching").or("writeback"),
        OptionSpec::new("addr", OptionKind::Slot, "place on the bus"),
        OptionSpec::new("forward", OptionKind::Texts, "ports"),
    ];

    fn parse(text: &str) -> Result<Options, ConfigError> {
        Options::parse("test-pci", text, &[SPECS])
    }

    fn complaint(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn values_are_read_by_their_kinds() {
        let options = parse("drive=d0,share=on,queues=0x4,size=64K,cache=none,addr=1f.7").unwrap();
        assert_eq!(options.text("drive"), Some("d0"));
        assert!(options.flag("share"));
        assert_eq!(
            (options.number("queues"), options.number("size")),
            (Some(4), Some(65536))
        );
        assert_eq!(options.text("cache"), Some("none"));
        let slot = Slot {
            device: 31,
            function: 7,
        };
        assert_eq!(options.slot("addr"), Some(slot));
    }

    #[test]
    fn defaults_hold_where_nothing_is_said() {
        let options = parse("").unwrap();
        assert_eq!((options.flag("share"), options.number("queues")), (false, Some(1)));
        assert_eq!(
            (options.text("cache"), options.text("drive")),
            (Some("writeback"), None)
        );
    }

    #[test]
    fn a_double_comma_is_a_comma_and_a_last_one_is_nothing() {
        assert_eq!(parse("drive=a,,b,,,share=on,").unwrap().text("drive"), Some("a,b,"));
        assert_eq!(parse("drive=a=b").unwrap().text("drive"), Some("a=b"));
    }

    #[test]
    fn a_bare_word_is_the_implied_key_first_and_a_flag_later() {
        let pairs = Pairs::parse("virtio-rng-pci,share", Some("driver"));
        assert_eq!(
            pairs.iter().collect::<Vec<_>>(),
            [("driver", "virtio-rng-pci"), ("share", "on")]
        );
        assert!(parse("share").unwrap().flag("share"));
    }

    #[test]
    fn a_number_behind_a_number_continues_a_list() {
        assert_eq!(parse("drive=3,4,5,share").unwrap().text("drive"), Some("3,4,5"));
        assert_eq!(Pairs::parse("3,4", Some("drive")).get("drive"), Some("3,4"));
        for text in ["4", "share,4", "drive=a,4", "drive=,4"] {
            assert!(complaint(text).contains("there is no option '4'"), "{text}");
        }
    }

    #[test]
    fn the_last_of_several_holds() {
        assert_eq!(parse("queues=2,queues=3").unwrap().number("queues"), Some(3));
        let mut pairs = Pairs::parse("id=a,x=1,id=b", None);
        assert_eq!(pairs.take("id"), Some("b".to_owned()));
        assert_eq!((pairs.take("id"), pairs.iter().count()), (None, 1));
    }

    #[test]
    fn what_can_be_given_several_times_is_kept_in_order() {
        let options = parse("forward=a,share=on,forward=b").unwrap();
        assert_eq!(options.texts("forward"), ["a", "b"]);
        assert!(parse("").unwrap().texts("forward").is_empty());
    }

    #[test]
    fn a_flag_that_is_off_is_not_given() {
        let options = parse("share=off,drive=x").unwrap();
        assert!(options.is_given("drive") && !options.is_given("share") && !options.is_given("size"));
    }

    #[test]
    fn slots_are_written_as_in_qemu() {
        for text in ["4", "04", "4.0", "04.0", "0x4", "0x04.0"] {
            let slot = Slot { device: 4, function: 0 };
            assert_eq!(read_slot(text), Some(slot), "{text}");
        }
        for text in ["", "20", "4.8", "4.", "x", "-1", "4.0.0"] {
            assert_eq!(read_slot(text), None, "{text}");
        }
    }

    #[test]
    fn errors_say_what_where_and_what_to_do() {
        assert_eq!(
            complaint("drve=x"),
            "test-pci: there is no option 'drve'; did you mean 'drive'?"
        );
        assert_eq!(
            complaint("colour=red"),
            "test-pci: there is no option 'colour'; it takes drive, share, queues, size, cache, addr, forward"
        );
        assert_eq!(
            complaint("queues=9"),
            "test-pci: queues=9: expected a number from 1 to 8"
        );
        assert_eq!(complaint("share=maybe"), "test-pci: share=maybe: expected on|off");
        assert_eq!(complaint("cache=big"), "test-pci: cache=big: expected none|writeback");
        let missing = parse("").unwrap().required("drive").unwrap_err();
        assert_eq!(
            missing.to_string(),
            "test-pci: drive= is missing; give the disk to show"
        );
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "K", "1.5G", "12Q", "1KK", "99999999999T", "-1"] {
            assert_eq!(read_size(text), None, "{text}");
        }
        assert_eq!((read_size("512"), read_size("2GiB")), (Some(512), Some(2 << 30)));
    }
}
