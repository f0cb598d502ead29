//! Arguments as options: what a client gives in JSON becomes what the command line would say.

use devices::virtio::options::Pairs;
use serde_json::{Map, Value};

use super::error::Error;

/// Members of members get the names of both, with a point between (QEMU, qobject/block-qdict.c, `qdict_flatten`).
pub fn flatten(members: Map<String, Value>) -> Pairs {
    let mut pairs = Pairs::default();
    for (name, value) in members {
        push(&mut pairs, name, value);
    }
    pairs
}

fn push(pairs: &mut Pairs, name: String, value: Value) {
    match value {
        Value::Object(members) => {
            for (member, value) in members {
                push(pairs, format!("{name}.{member}"), value);
            }
        }
        Value::Array(elements) => {
            for (index, value) in elements.into_iter().enumerate() {
                push(pairs, format!("{name}.{index}"), value);
            }
        }
        Value::Null => {}
        value => pairs.push(name, text(&value)),
    }
}

/// A scalar as the command line spells it.
pub fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "on".to_owned(),
        Value::Bool(false) => "off".to_owned(),
        value => value.to_string(),
    }
}

/// Sees that a name is one that QEMU takes (util/id.c): a letter, then letters, digits, `-`, `.` and `_`.
///
/// # Errors
/// It is none.
pub fn check_id(parameter: &str, id: &str) -> Result<(), Error> {
    let rest = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if id.starts_with(|c: char| c.is_ascii_alphabetic()) && id.chars().all(rest) {
        return Ok(());
    }
    Err(Error::new(format_args!(
        "Parameter '{parameter}' expects an identifier"
    )))
}
