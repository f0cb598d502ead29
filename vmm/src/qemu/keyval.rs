//! Values of options, `key=value,key=value` or JSON, and the reading of them key by key.

use devices::virtio::options::{ConfigError, Pairs, nearest, read_number};
use serde_json::Value;

use crate::qmp::json;

/// Takes the value of the option `subject` apart. Where QEMU takes JSON too, so does this: a text that begins with a
/// brace.
///
/// # Errors
/// The JSON is none, or is not an object of plain values.
pub fn parse(subject: &str, text: &str, implied: Option<&str>) -> Result<Pairs, ConfigError> {
    if !text.starts_with('{') {
        return Ok(Pairs::parse(text, implied));
    }
    let value = json::from_text(text).map_err(|error| {
        ConfigError::refused(
            subject,
            format_args!("this is not JSON: {error}"),
            "write an object, or key=value pairs",
        )
    })?;
    from_json(subject, &value)
}

/// The members of an object, those of objects within it with dotted keys: `{"file": {"driver": "file"}}` is
/// `file.driver=file`.
///
/// # Errors
/// It is no object.
pub fn from_json(subject: &str, value: &Value) -> Result<Pairs, ConfigError> {
    if !value.is_object() {
        return Err(ConfigError::refused(
            subject,
            "this is not a JSON object",
            "write {\"driver\": ...}",
        ));
    }
    let mut pairs = Pairs::default();
    flatten(String::new(), value, &mut pairs);
    Ok(pairs)
}

/// No deeper than [`json::MAX_NESTING`].
fn flatten(key: String, value: &Value, pairs: &mut Pairs) {
    let below = |name: &str| {
        if key.is_empty() {
            name.to_owned()
        } else {
            format!("{key}.{name}")
        }
    };
    match value {
        Value::Object(members) => members
            .iter()
            .for_each(|(name, value)| flatten(below(name), value, pairs)),
        Value::Array(items) => (0..)
            .zip(items)
            .for_each(|(index, value): (u32, _)| flatten(below(&index.to_string()), value, pairs)),
        Value::Bool(flag) => pairs.push(key, if *flag { "on" } else { "off" }),
        Value::Number(number) => pairs.push(key, number.to_string()),
        Value::String(text) => pairs.push(key, text.as_str()),
        Value::Null => {}
    }
}

/// A key that needs nothing done when it has one of some values.
pub struct Settled {
    /// The key.
    pub key: &'static str,
    /// The values that are as things are here; none for any value.
    pub values: &'static [&'static str],
    /// Why that is so, as the end of a message about another value.
    pub why: &'static str,
}

impl Settled {
    /// QEMU's word for what it holds, as far as its values say so.
    pub fn kind(&self) -> &'static str {
        match self.values {
            [value, ..] if value.parse::<u64>().is_ok() && self.key.ends_with("_size") => "size",
            [value, ..] if value.parse::<u64>().is_ok() => "uint32",
            [] | ["on" | "off", ..] => "bool",
            _ => "str",
        }
    }
}

/// A [`Settled`].
pub const fn settled(key: &'static str, values: &'static [&'static str], why: &'static str) -> Settled {
    Settled { key, values, why }
}

/// Keys and values that are being read: each key is taken out, and what is left at the end is unknown.
#[derive(Debug)]
pub struct Reader {
    subject: String,
    pairs: Pairs,
    known: Vec<String>,
}

impl Reader {
    /// Reads `pairs` of `subject`, with which messages begin.
    pub fn new(subject: impl Into<String>, pairs: Pairs) -> Self {
        Self {
            subject: subject.into(),
            pairs,
            known: Vec::new(),
        }
    }

    /// With what messages begin.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The keys that are left.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.pairs.iter().map(|(key, _)| key)
    }

    /// The text of a key.
    pub fn text(&mut self, key: &str) -> Option<String> {
        self.known.push(key.to_owned());
        self.pairs.take(key)
    }

    /// All texts of a key, in the user's order.
    pub fn texts(&mut self, key: &str) -> Vec<String> {
        let all: Vec<_> = self
            .pairs
            .iter()
            .filter(|(name, _)| *name == key)
            .map(|(_, text)| text.to_owned())
            .collect();
        self.text(key);
        all
    }

    /// The text of a key that has to be there.
    ///
    /// # Errors
    /// It is not.
    pub fn required(&mut self, key: &str, help: &str) -> Result<String, ConfigError> {
        self.text(key).ok_or_else(|| ConfigError::MissingOption {
            subject: self.subject.clone(),
            name: key.to_owned(),
            help: help.to_owned(),
        })
    }

    /// `on` or `off`.
    ///
    /// # Errors
    /// It is neither.
    pub fn flag(&mut self, key: &str) -> Result<Option<bool>, ConfigError> {
        let Some(text) = self.text(key) else { return Ok(None) };
        match canonical(&text) {
            "on" => Ok(Some(true)),
            "off" => Ok(Some(false)),
            _ => Err(self.invalid(key, &text, "on|off")),
        }
    }

    /// A number, decimal or with 0x.
    ///
    /// # Errors
    /// It is none.
    pub fn number(&mut self, key: &str) -> Result<Option<u64>, ConfigError> {
        let Some(text) = self.text(key) else { return Ok(None) };
        match read_number(&text) {
            Some(number) => Ok(Some(number)),
            None => Err(self.invalid(key, &text, "a number")),
        }
    }

    /// Takes keys out that have a value that is as things are here.
    ///
    /// # Errors
    /// One has another value.
    pub fn settle(&mut self, table: &[Settled]) -> Result<(), ConfigError> {
        for row in table {
            let Some(value) = self.text(row.key) else { continue };
            let fits = row.values.is_empty() || row.values.contains(&canonical(&value));
            if !fits {
                let expected = format!("{}: {}", row.values.join("|"), row.why);
                return Err(self.invalid(row.key, &value, &expected));
            }
        }
        Ok(())
    }

    /// The error for a value.
    pub fn invalid(&self, key: &str, value: &str, expected: &str) -> ConfigError {
        ConfigError::InvalidValue {
            subject: self.subject.clone(),
            name: key.to_owned(),
            value: value.to_owned(),
            expected: expected.to_owned(),
        }
    }

    /// The error for all of it.
    pub fn refused(&self, problem: &str, remedy: &str) -> ConfigError {
        ConfigError::refused(&self.subject, problem, remedy)
    }

    /// What is left, for another table.
    pub fn rest(self) -> Pairs {
        self.pairs
    }

    /// Sees that nothing is left.
    ///
    /// # Errors
    /// A key that nobody took.
    pub fn finish(self) -> Result<(), ConfigError> {
        let Some((name, _)) = self.pairs.iter().next() else {
            return Ok(());
        };
        let known = || self.known.iter().map(String::as_str);
        let remedy = match nearest(name, known()) {
            Some(known) => format!("did you mean '{known}'?"),
            None => format!("it takes {}", known().collect::<Vec<_>>().join(", ")),
        };
        Err(ConfigError::UnknownOption {
            subject: self.subject.clone(),
            name: name.to_owned(),
            remedy,
        })
    }
}

/// `on` and `off` for all words that QEMU takes for them; any other text as it is.
pub fn canonical(text: &str) -> &str {
    match text {
        "on" | "yes" | "true" | "y" => "on",
        "off" | "no" | "false" | "n" => "off",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        parse("-x", text, Some("driver")).unwrap().into_iter().collect()
    }

    fn expect(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect()
    }

    #[test]
    fn a_double_comma_is_a_comma_and_a_last_one_is_nothing() {
        assert_eq!(
            pairs("virtio-blk-pci,serial=a,,b,"),
            expect(&[("driver", "virtio-blk-pci"), ("serial", "a,b")])
        );
    }

    #[test]
    fn json_says_the_same_as_dotted_keys() {
        let json =
            r#"{"driver":"qcow2","read-only":true,"file":{"driver":"file","filename":"a,b"},"fds":[3,4],"x":null}"#;
        let mut found = pairs(json);
        found.sort();
        let mut expected = pairs("driver=qcow2,read-only=on,file.driver=file,file.filename=a,,b,fds.0=3,fds.1=4");
        expected.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn strings_of_json_may_stand_in_single_quotes() {
        let expected = expect(&[("driver", "virtio-rng-pci"), ("id", "r")]);
        assert_eq!(pairs("{'driver': 'virtio-rng-pci', 'id': 'r'}"), expected);
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for text in ["{", "{}}", "{\"a\"}", "{} 1"] {
            assert!(
                parse("-device", text, None)
                    .unwrap_err()
                    .to_string()
                    .starts_with("-device: this is not JSON")
            );
        }
        assert!(from_json("-device", &Value::Null).is_err());
    }

    #[test]
    fn a_key_that_nobody_takes_is_named() {
        let mut reader = Reader::new("-mon", Pairs::parse("chardev=a,mod=control", None));
        reader.text("chardev");
        reader.text("mode");
        let error = reader.finish().unwrap_err().to_string();
        assert_eq!(error, "-mon: there is no option 'mod'; did you mean 'mode'?");
    }

    #[test]
    fn a_settled_key_is_taken_and_another_value_of_it_refused() {
        let table = [settled("usb", &["off"], "there is no USB"), settled("hpet", &[], "")];
        let mut reader = Reader::new("-machine", Pairs::parse("usb=no,hpet=on", None));
        assert_eq!(reader.settle(&table), Ok(()));
        assert_eq!(reader.finish(), Ok(()));
        let mut reader = Reader::new("-machine", Pairs::parse("usb=on", None));
        let error = reader.settle(&table).unwrap_err().to_string();
        assert_eq!(error, "-machine: usb=on: expected off: there is no USB");
    }
}
