//! What `query-qmp-schema` answers: commands, events and all their types, where types of ours are known by numbers
//! (QEMU, qapi/introspect.json).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::{Value, json};

use super::{EMPTY, Enum, Member, Object, Type};
use crate::qmp::commands::Command;
use crate::qmp::event::EVENTS;

/// The description of `commands` and of all events.
pub fn describe<'a>(commands: impl Iterator<Item = &'a Command>) -> Vec<Value> {
    let mut book = Book::default();
    // The type without members is number 0, as in QEMU.
    book.name(Type::Object(&EMPTY));
    let mut entries = Vec::new();
    for command in commands {
        let (arguments, returns) = (book.name(command.arguments), book.name(command.returns));
        entries.push(json!({"meta-type": "command", "name": command.name, "arg-type": arguments, "ret-type": returns}));
    }
    for event in EVENTS {
        entries.push(json!({"meta-type": "event", "name": event.name, "arg-type": book.name(event.data)}));
    }
    while let Some(pending) = book.pending.pop_front() {
        let entry = book.entry(pending);
        entries.push(entry);
    }
    entries
}

enum Pending {
    Builtin(&'static str, &'static str),
    Array(Type),
    Enum(String, &'static Enum),
    Object(String, &'static Object),
    Alternate(String, Type),
}

/// The types that were met, and those of them that are still to be described.
#[derive(Default)]
struct Book {
    /// Numbers by where the declaration is.
    numbers: BTreeMap<(bool, usize), usize>,
    met: BTreeSet<String>,
    pending: VecDeque<Pending>,
}

impl Book {
    /// A type's name; describes it later if it is met for the first time.
    fn name(&mut self, of: Type) -> String {
        let (name, pending) = match of {
            Type::Str => builtin("str", "string"),
            Type::Int | Type::Uint64 | Type::Ranged { .. } => builtin("int", "int"),
            Type::Number => builtin("number", "number"),
            Type::Bool => builtin("bool", "boolean"),
            Type::Any => builtin("any", "value"),
            Type::Array(of) => (format!("[{}]", self.name(*of)), Pending::Array(*of)),
            Type::Enum(of) => {
                let name = self.number(false, std::ptr::from_ref(of).addr());
                (name.clone(), Pending::Enum(name, of))
            }
            Type::Object(of) => {
                let name = self.number(false, std::ptr::from_ref(of).addr());
                (name.clone(), Pending::Object(name, of))
            }
            Type::NameOr(of) => {
                let name = self.number(true, address(*of));
                (name.clone(), Pending::Alternate(name, *of))
            }
        };
        if self.met.insert(name.clone()) {
            self.pending.push_back(pending);
        }
        name
    }

    fn number(&mut self, alternate: bool, address: usize) -> String {
        let next = self.numbers.len();
        self.numbers.entry((alternate, address)).or_insert(next).to_string()
    }

    fn entry(&mut self, pending: Pending) -> Value {
        match pending {
            Pending::Builtin(name, kind) => json!({"meta-type": "builtin", "name": name, "json-type": kind}),
            Pending::Array(of) => {
                let element = self.name(of);
                json!({"meta-type": "array", "name": format!("[{element}]"), "element-type": element})
            }
            Pending::Enum(name, of) => {
                let members: Vec<_> = of.values.iter().map(|value| json!({"name": value})).collect();
                json!({"meta-type": "enum", "name": name, "members": members, "values": of.values})
            }
            Pending::Alternate(name, of) => {
                let members = [self.name(of), self.name(Type::Str)].map(|of| json!({"type": of}));
                json!({"meta-type": "alternate", "name": name, "members": members})
            }
            Pending::Object(name, of) => self.object(&name, of),
        }
    }

    fn object(&mut self, name: &str, of: &Object) -> Value {
        let members: Vec<_> = of.members.iter().map(|member| self.member(member)).collect();
        let mut entry = json!({"meta-type": "object", "name": name, "members": members});
        if let Some(variants) = &of.variants {
            let tag = of.members.iter().find(|member| member.name == variants.tag);
            let values = match tag.map(|member| member.of) {
                Some(Type::Enum(of)) => of.values,
                _ => &[],
            };
            let case = |value: &&'static str| {
                let of = variants.cases.iter().find(|(case, _)| case == value);
                json!({"case": value, "type": self.name(Type::Object(of.map_or(&EMPTY, |(_, of)| of)))})
            };
            let cases: Vec<_> = values.iter().map(case).collect();
            entry["tag"] = variants.tag.into();
            entry["variants"] = cases.into();
        }
        entry
    }

    fn member(&mut self, member: &Member) -> Value {
        let mut entry = json!({"name": member.name, "type": self.name(member.of)});
        if member.optional {
            entry["default"] = Value::Null;
        }
        entry
    }
}

fn builtin(name: &'static str, kind: &'static str) -> (String, Pending) {
    (name.to_owned(), Pending::Builtin(name, kind))
}

/// Where the declaration of an object is; alternates are of objects only.
fn address(of: Type) -> usize {
    match of {
        Type::Object(of) => std::ptr::from_ref(of).addr(),
        _ => 0,
    }
}
