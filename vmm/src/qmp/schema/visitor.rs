//! Holds values against types, as strictly as QEMU's input visitor and in its words (qapi/qobject-input-visitor.c).

use std::fmt::Display;

use serde_json::{Map, Number, Value};

use super::{Arguments, Member, Object, Type};
use crate::qmp::error::Error;

/// Makes a `T` of `value`.
///
/// # Errors
/// The first member that is missing, wrong, or too many, by its path.
pub fn read<T: Arguments>(mut value: Value) -> Result<T, Error> {
    check(T::TYPE, &mut value, "")?;
    // What the type allows, serde reads; a difference between the two would be a defect of ours.
    serde_json::from_value(value).map_err(Error::new)
}

/// Sees that `value` is what `of` says. Numbers are brought into range where QEMU does so.
fn check(of: Type, value: &mut Value, path: &str) -> Result<(), Error> {
    match of {
        Type::Str => expect(value.is_string(), path, "string"),
        Type::Bool => expect(value.is_boolean(), path, "boolean"),
        Type::Number => expect(value.is_number(), path, "number"),
        Type::Any => Ok(()),
        Type::Int => expect(value.is_i64(), path, "integer"),
        Type::Uint64 => match uint64(value) {
            Some(number) => {
                *value = Value::from(number);
                Ok(())
            }
            None => Err(wanted(path, "uint64")),
        },
        Type::Ranged { name, min, max } => match value.as_i64() {
            Some(number) if (min..=max).contains(&number) => Ok(()),
            Some(_) => Err(wanted(path, name)),
            None if min < 0 => expect(false, path, "integer"),
            None => Err(wanted(path, if value.is_u64() { name } else { "uint64" })),
        },
        Type::Enum(of) => {
            expect(value.is_string(), path, "string")?;
            let word = value.as_str().unwrap_or_default();
            if of.values.contains(&word) {
                return Ok(());
            }
            let name = path.rsplit('.').next().unwrap_or_default();
            Err(Error::new(format_args!(
                "Parameter '{name}' does not accept value '{word}'"
            )))
        }
        Type::Array(of) => {
            let Value::Array(elements) = value else {
                return expect(false, path, "array");
            };
            let mut elements = elements.iter_mut().enumerate();
            elements.try_for_each(|(index, element)| check(*of, element, &format!("{path}[{index}]")))
        }
        Type::Object(of) => {
            let Value::Object(members) = value else {
                return expect(false, path, "object");
            };
            check_members(of, members, path)
        }
        Type::NameOr(_) if value.is_string() => Ok(()),
        Type::NameOr(of) => check(*of, value, path),
    }
}

fn check_members(object: &Object, members: &mut Map<String, Value>, path: &str) -> Result<(), Error> {
    for member in object.members {
        check_member(member, members, path)?;
    }
    let variant = object.variants.as_ref().and_then(|variants| {
        let tag = members.get(variants.tag)?.as_str()?;
        variants.cases.iter().find(|(case, _)| *case == tag)
    });
    let of_variant = variant.map_or(&[][..], |(_, object)| object.members);
    for member in of_variant {
        check_member(member, members, path)?;
    }
    let declared = |name: &str| {
        object
            .members
            .iter()
            .chain(of_variant)
            .any(|member| member.name == name)
    };
    match members.keys().find(|name| !object.open && !declared(name)) {
        Some(name) => Err(Error::new(format_args!(
            "Parameter '{}' is unexpected",
            join(path, name)
        ))),
        None => Ok(()),
    }
}

fn check_member(member: &Member, members: &mut Map<String, Value>, path: &str) -> Result<(), Error> {
    let path = join(path, member.name);
    match members.get_mut(member.name) {
        Some(value) => check(member.of, value, &path),
        None if member.optional => Ok(()),
        None => Err(Error::new(format_args!("Parameter '{path}' is missing"))),
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// A number, a negative one as its two's complement.
fn uint64(value: &Value) -> Option<u64> {
    let number = value.as_number()?;
    number
        .as_u64()
        .or_else(|| Number::as_i64(number).map(i64::cast_unsigned))
}

fn expect(holds: bool, path: &str, kind: &str) -> Result<(), Error> {
    let error = || Error::new(format_args!("Invalid parameter type for '{path}', expected: {kind}"));
    if holds { Ok(()) } else { Err(error()) }
}

fn wanted(path: &str, what: impl Display) -> Error {
    Error::new(format_args!("Parameter '{path}' expects {what}"))
}
