#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Everything that comes out of `input`, errors as their texts.
fn all(input: &[u8]) -> Vec<Result<Value, String>> {
    let mut stream = Stream::default();
    let mut rest = input;
    std::iter::from_fn(|| stream.next(&mut rest))
        .map(|result| result.map_err(|error| error.to_string()))
        .collect()
}

fn syntax(message: &str) -> Result<Value, String> {
    Err(format!("JSON parse error, {message}"))
}

#[test]
fn values_need_nothing_between_them() {
    let values = all(br#"{"a":1}{"b":[true,null]}[]"x"'y'{}"#);
    let expected = [
        json!({"a": 1}),
        json!({"b": [true, null]}),
        json!([]),
        json!("x"),
        json!("y"),
        json!({}),
    ];
    assert_eq!(values, expected.map(Ok));
}

#[test]
fn a_value_may_come_byte_by_byte() {
    let mut stream = Stream::default();
    let text = br#"{ 'execute': "query-name", "id": -12.5e3 } "#;
    let values: Vec<_> = text.iter().filter_map(|byte| stream.next(&mut &[*byte][..])).collect();
    assert_eq!(values, [Ok(json!({"execute": "query-name", "id": -12500.0}))]);
}

#[test]
fn strings_take_both_quotes_and_every_escape() {
    let values = all(br#"["it's", 'say "x"', '\'', "\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00"]"#);
    assert_eq!(
        values,
        [Ok(json!(["it's", "say \"x\"", "'", "\"\\/\u{8}\u{c}\n\r\té😀"]))]
    );
}

#[test]
fn integers_of_64_bits_stay_exact() {
    let values = all(b"[-9223372036854775808, 18446744073709551615, 18446744073709551616]");
    assert_eq!(values, [Ok(json!([i64::MIN, u64::MAX, 18446744073709551616.0]))]);
}

#[test]
fn broken_values_have_qemus_words() {
    for (text, message) in [
        ("{]", "key is not a string in object"),
        ("{1:2}", "key is not a string in object"),
        ("{'a' 1}", "missing : in object pair"),
        ("{'a':1 'b':2}", "expected separator in dict"),
        ("{'a':1,'a':2}", "duplicate key"),
        ("[1 2]", "expected separator in list"),
        ("[1,]", "expecting value"),
        ("}", "expecting value"),
        ("[nothing]", "invalid keyword 'nothing'"),
        ("['\\x']", "invalid escape sequence in string"),
        ("['\\ud800']", "\\ud800 is not a valid Unicode character"),
        ("['\\ufffe']", "\\ufffe is not a valid Unicode character"),
        ("['\\u+123']", "\\u+123 is not a valid Unicode character"),
    ] {
        let expected = if text == "{]" { "expecting value" } else { message };
        assert_eq!(all(text.as_bytes()), [syntax(expected)], "{text}");
    }
    assert_eq!(all(b"['\xc3']"), [syntax("invalid UTF-8 sequence in string")]);
}

#[test]
fn a_stray_byte_costs_its_value_and_the_next_is_read() {
    for broken in [
        &b"{\xff"[..],
        b"{\x01",
        b"{'bad \xff",
        b"{'execute': 'x', 'id':'\n",
        b"%p",
        b"{'a': 01",
        b"-x",
    ] {
        let mut input = broken.to_vec();
        input.extend(b"{'b': 2}");
        let values = all(&input);
        assert_eq!(values.len(), 2, "{broken:?}: {values:?}");
        assert!(
            values[0].as_ref().unwrap_err().starts_with("JSON parse error, stray '"),
            "{values:?}"
        );
        assert_eq!(values[1], Ok(json!({"b": 2})));
    }
}

#[test]
fn byte_0xff_brings_the_parser_into_a_known_state() {
    for broken in [
        &b"{'open string"[..],
        b"[[[[",
        b"{'a': tru",
        b"{'a': 1",
        b"!garbage garbage",
    ] {
        let mut input = broken.to_vec();
        input.extend(b"\xff\n{'b': 2}");
        assert_eq!(all(&input).last(), Some(&Ok(json!({"b": 2}))), "{broken:?}");
    }
}

#[test]
fn a_thousand_and_twenty_four_arrays_nest_and_no_more() {
    let deep = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
    assert!(all(&deep(MAX_NESTING)).pop().unwrap().is_ok());
    let too_deep = all(&deep(MAX_NESTING + 1));
    assert_eq!(too_deep[0], Err("JSON nesting depth limit exceeded".into()));
}

#[test]
fn length_and_tokens_are_bounded() {
    let mut stream = Stream::default();
    let piece = vec![b'a'; 1 << 20];
    let mut outcome = stream.next(&mut &b"{'"[..]);
    let mut fed = 0;
    while outcome.is_none() && fed <= MAX_BYTES {
        outcome = stream.next(&mut &piece[..]);
        fed += piece.len();
        assert!(stream.text.capacity() <= 2 * MAX_BYTES);
    }
    assert_eq!(outcome, Some(Err(JsonError::TooLong)));
    assert!(stream.text.capacity() <= KEPT);

    let mut many = vec![b'['];
    many.extend(b"1,".repeat(MAX_TOKENS / 2 + 1));
    assert_eq!(all(&many)[0], Err("JSON token count limit exceeded".into()));
}

#[test]
fn text_is_written_as_qemu_writes_it() {
    let value = json!({"return": [{"name": "é😀\n\u{7f}"}, 1, {}, []]});
    let line = Style::Line.line(&value);
    let expected = "{\"return\": [{\"name\": \"\\u00E9\\uD83D\\uDE00\\n\\u007F\"}, 1, {}, []]}\n";
    assert_eq!(String::from_utf8(line).unwrap(), expected);
    let pretty = String::from_utf8(Style::Pretty.line(&json!({"a": {"b": 1}}))).unwrap();
    assert_eq!(pretty, "{\n    \"a\": {\n        \"b\": 1\n    }\n}\n");
}

/// Pieces of which messages are made, and of which they are broken.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::sample::select(vec![
            &b"{"[..],
            b"}",
            b"[",
            b"]",
            b",",
            b":",
            b"'",
            b"\"",
            b"\\",
            b"\\u",
            b"d800",
            b"true",
            b"null",
            b"-",
            b"0",
            b"1e",
            b".5",
            b"'execute'",
            b"\"arguments\"",
            b"\xff",
            b"\x00",
            b"\n",
            b" ",
            b"%p",
            b"\xf0\x9f\x98\x80",
        ])
        .prop_map(<[u8]>::to_vec),
        prop::collection::vec(any::<u8>(), 0..8),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]

    #[test]
    fn whatever_comes_the_next_command_is_read(pieces in prop::collection::vec(piece(), 0..24)) {
        let mut input = pieces.concat();
        let length = input.len();
        input.extend(b"\xff\n{'execute': 'x'}");
        let values = all(&input);
        prop_assert!(values.len() <= length + 2);
        prop_assert_eq!(values.last(), Some(&Ok(json!({"execute": "x"}))));
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(text in any::<String>(), number in any::<i64>(), flag in any::<bool>()) {
        prop_assume!(!text.chars().any(|c| { let c = c as u32; (0xfdd0..=0xfdef).contains(&c) || c & 0xfffe == 0xfffe }));
        let value = json!({"text": text, "list": [number, flag, null], "empty": {}});
        for style in [Style::Line, Style::Pretty] {
            prop_assert_eq!(all(&style.line(&value)), vec![Ok(value.clone())]);
        }
    }
}
