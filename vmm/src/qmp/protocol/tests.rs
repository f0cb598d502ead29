#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::qmp::testing::{Client, generic};

/// The class of the only answer, which is an error.
fn class(answers: &[Value]) -> &str {
    assert_eq!(answers.len(), 1, "{answers:?}");
    answers[0]["error"]["class"].as_str().unwrap()
}

/// What QEMU's qmp-test sends in `test_malformed`.
fn malformed(client: &Client) {
    for broken in [
        &b"{]\n"[..],
        b"{\xff",
        b"{\x01",
        b"{'bad \xff",
        b"{'execute': 'nonexistent', 'id':'\n",
        b"%p",
    ] {
        assert_eq!(class(&client.send(broken)), "GenericError", "{broken:?}");
        assert_eq!(
            class(&client.send(b"{ 'execute': 'no-such-cmd' }\n")),
            "CommandNotFound",
            "{broken:?}"
        );
    }
    for (request, description) in [
        ("null\n", "QMP input must be a JSON object"),
        ("{}", "QMP input lacks member 'execute'"),
        ("{ 'execute': true }", "QMP input member 'execute' must be a string"),
        (
            "{ 'execute': 'no-such-cmd', 'arguments': [] }",
            "QMP input member 'arguments' must be an object",
        ),
        (
            "{ 'execute': 'no-such-cmd', 'extra': true }",
            "QMP input member 'extra' is unexpected",
        ),
        (
            "{ 'exec-oob': 'query-version' }",
            "QMP input member 'exec-oob' is unexpected",
        ),
    ] {
        let answers = client.send(request.as_bytes());
        assert_eq!(
            answers,
            [json!({"error": {"class": "GenericError", "desc": description}})],
            "{request}"
        );
    }
}

#[test]
fn nothing_but_negotiation_is_done_before_it() {
    let client = Client::raw();
    let expecting = "Expecting capabilities negotiation with 'qmp_capabilities'";
    let not_yet = ("CommandNotFound".to_owned(), expecting.to_owned());
    assert_eq!(client.fails("query-version", json!({})), not_yet);
    malformed(&client);
    let unavailable = client.fails("qmp_capabilities", json!({"enable": ["oob"]}));
    assert_eq!(unavailable, generic("Capability oob not available"));
    let unknown = client.fails("qmp_capabilities", json!({"enable": ["x"]}));
    assert_eq!(unknown.0, "GenericError");
    assert_eq!(client.run("qmp_capabilities", json!({})), Ok(json!({})));
    let complete = "Capabilities negotiation is already complete, command ignored";
    let again = ("CommandNotFound".to_owned(), complete.to_owned());
    assert_eq!(client.fails("qmp_capabilities", json!({})), again);
    assert_eq!(client.run("query-version", json!({})).unwrap()["qemu"]["major"], 7);
    malformed(&client);
}

#[test]
fn the_id_comes_back_whatever_it_is() {
    let client = Client::new();
    for id in [json!("cookie#1"), json!(2), json!(null), json!({"a": [1.5]})] {
        let request = json!({"execute": "query-name", "id": id}).to_string();
        assert_eq!(
            client.send(request.as_bytes()),
            [json!({"return": {"name": "gast"}, "id": id})]
        );
        let request = json!({"execute": "device_del", "id": id}).to_string();
        let missing = json!({"class": "GenericError", "desc": "Parameter 'id' is missing"});
        assert_eq!(client.send(request.as_bytes()), [json!({"error": missing, "id": id})]);
    }
}

#[test]
fn events_come_after_negotiation_only_and_with_the_time() {
    let client = Client::raw();
    client.target.monitors.emit(crate::qmp::event::Event::Stop);
    assert!(client.events().is_empty());
    client.run("qmp_capabilities", json!({})).unwrap();
    client.run("stop", json!({})).unwrap();
    let events = client.events();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["event"], "STOP");
    assert!(events[0].get("data").is_none());
    assert!(events[0]["timestamp"]["seconds"].as_u64().unwrap() > 1_600_000_000);
    assert!(events[0]["timestamp"]["microseconds"].as_u64().unwrap() < 1_000_000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]

    /// Every request that is an object gets one answer, with the request's id.
    #[test]
    fn whatever_is_asked_is_answered(
        command in prop_oneof![
            prop::sample::select(crate::qmp::commands::all().map(|command| command.name).collect::<Vec<_>>()).prop_map(Value::from),
            Just(json!(17)),
            "[a-z-]{0,12}".prop_map(Value::from),
        ],
        arguments in arguments(),
        id in any::<Option<i64>>(),
    ) {
        thread_local! { static CLIENT: Client = Client::new(); }
        let mut request = json!({"execute": command, "arguments": arguments});
        if let Some(id) = id {
            request["id"] = id.into();
        }
        let answers = CLIENT.with(|client| client.send(request.to_string().as_bytes()));
        prop_assert_eq!(answers.len(), 1);
        prop_assert_eq!(answers[0].get("id").cloned(), id.map(Value::from));
        prop_assert!(answers[0].get("return").is_some() != answers[0].get("error").is_some());
        CLIENT.with(|client| client.events());
    }
}

/// Arguments by names that commands have, with values of all kinds.
fn arguments() -> impl Strategy<Value = Value> {
    let names = [
        "id",
        "device",
        "path",
        "property",
        "value",
        "driver",
        "node-name",
        "size",
        "name",
        "up",
        "type",
        "command-line",
        "backend",
        "data",
        "queue",
        "typename",
        "qom-type",
        "addr",
        "option",
        "implements",
        "abstract",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
        prop::sample::select(vec![
            "virtio-rng-pci",
            "hubport",
            "user",
            "null-co",
            "/machine",
            "/machine/peripheral",
            "info pci",
            "d0"
        ])
        .prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(4, 16, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(prop::sample::select(names.to_vec()), inner, 0..4)
                .prop_map(|members| json!(members)),
        ]
    });
    prop::collection::btree_map(prop::sample::select(names.to_vec()), value, 0..4).prop_map(|members| json!(members))
}
