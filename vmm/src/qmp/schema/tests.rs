#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::*;
use crate::qmp::commands;
use crate::qmp::event::EVENTS;

enumerations! {
    enum Colour {
        Red = "red",
        DarkBlue = "dark-blue",
    }
}

structures! {
    struct Inner {
        flag as "a-flag": bool,
        small: Option<u16>,
    }
    struct Outer {
        name: String,
        colour: Option<Colour>,
        inner: Option<Inner>,
        list: Option<Vec<Inner>>,
        signed: Option<i64>,
        bytes: Option<u64>,
        anything: Option<Value>,
    }
}

fn complaint(value: Value) -> String {
    read::<Outer>(value).unwrap_err().to_string()
}

#[test]
fn what_fits_is_read() {
    let outer: Outer = read(json!({
        "name": "x", "colour": "dark-blue", "list": [{"a-flag": true}, {"a-flag": false, "small": 65535}],
        "signed": -1, "bytes": u64::MAX, "anything": [null],
    }))
    .unwrap();
    assert_eq!(
        (outer.colour, outer.signed, outer.bytes),
        (Some(Colour::DarkBlue), Some(-1), Some(u64::MAX))
    );
    assert_eq!(outer.list.unwrap()[1].small, Some(65535));
}

#[test]
fn what_does_not_fit_is_named_by_its_path_in_qemus_words() {
    for (value, expected) in [
        (json!([]), "Invalid parameter type for '', expected: object"),
        (json!({}), "Parameter 'name' is missing"),
        (
            json!({"name": 1}),
            "Invalid parameter type for 'name', expected: string",
        ),
        (json!({"name": "", "x": 1}), "Parameter 'x' is unexpected"),
        (
            json!({"name": "", "colour": "green"}),
            "Parameter 'colour' does not accept value 'green'",
        ),
        (
            json!({"name": "", "colour": null}),
            "Invalid parameter type for 'colour', expected: string",
        ),
        (
            json!({"name": "", "inner": 1}),
            "Invalid parameter type for 'inner', expected: object",
        ),
        (json!({"name": "", "inner": {}}), "Parameter 'inner.a-flag' is missing"),
        (
            json!({"name": "", "inner": {"a-flag": true, "y": 1}}),
            "Parameter 'inner.y' is unexpected",
        ),
        (
            json!({"name": "", "inner": {"a-flag": 1}}),
            "Invalid parameter type for 'inner.a-flag', expected: boolean",
        ),
        (
            json!({"name": "", "list": {}}),
            "Invalid parameter type for 'list', expected: array",
        ),
        (
            json!({"name": "", "list": [{"a-flag": true}, {"a-flag": true, "small": 65536}]}),
            "Parameter 'list[1].small' expects uint16_t",
        ),
        (
            json!({"name": "", "signed": u64::MAX}),
            "Invalid parameter type for 'signed', expected: integer",
        ),
        (
            json!({"name": "", "signed": 1.5}),
            "Invalid parameter type for 'signed', expected: integer",
        ),
        (json!({"name": "", "bytes": "1"}), "Parameter 'bytes' expects uint64"),
    ] {
        assert_eq!(complaint(value.clone()), expected, "{value}");
    }
}

#[test]
fn a_negative_number_without_sign_is_its_complement() {
    let outer: Outer = read(json!({"name": "", "bytes": -1})).unwrap();
    assert_eq!(outer.bytes, Some(u64::MAX));
}

#[test]
fn what_is_absent_is_not_written() {
    let inner = Inner {
        flag: true,
        small: None,
    };
    assert_eq!(serde_json::to_value(inner).unwrap(), json!({"a-flag": true}));
}

fn described() -> BTreeMap<String, Value> {
    let entries = introspect::describe(commands::all());
    let count = entries.len();
    let name = |entry: &Value| entry["name"].as_str().unwrap().to_owned();
    let by_name: BTreeMap<_, _> = entries.into_iter().map(|entry| (name(&entry), entry)).collect();
    assert_eq!(by_name.len(), count, "a name stands for two things");
    by_name
}

#[test]
fn the_schema_lists_every_command_and_event_once() {
    let described = described();
    let of = |kind: &str| -> BTreeSet<_> {
        described
            .values()
            .filter(|entry| entry["meta-type"] == kind)
            .map(|entry| entry["name"].as_str().unwrap())
            .collect()
    };
    assert_eq!(of("command"), commands::all().map(|command| command.name).collect());
    assert_eq!(commands::all().count(), of("command").len(), "a command is there twice");
    assert_eq!(of("event"), EVENTS.iter().map(|event| event.name).collect());
}

#[test]
fn every_type_that_the_schema_mentions_is_described() {
    fn types(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    if ["type", "arg-type", "ret-type", "element-type"].contains(&name.as_str()) {
                        found.insert(value.as_str().unwrap().to_owned());
                    }
                    types(value, found);
                }
            }
            Value::Array(elements) => elements.iter().for_each(|element| types(element, found)),
            _ => {}
        }
    }
    let described = described();
    let mut mentioned = BTreeSet::new();
    described.values().for_each(|entry| types(entry, &mut mentioned));
    for name in mentioned {
        assert!(described.contains_key(&name), "{name}");
    }
}

#[test]
fn a_structure_is_described_by_its_members() {
    let described = described();
    let arguments = described["device_del"]["arg-type"].as_str().unwrap();
    assert_eq!(described[arguments]["members"], json!([{"name": "id", "type": "str"}]));
    assert_eq!(
        described[described["stop"]["ret-type"].as_str().unwrap()]["members"],
        json!([])
    );
    assert_eq!(
        described["qom-list-types"]["ret-type"].as_str().unwrap().chars().next(),
        Some('[')
    );
}
