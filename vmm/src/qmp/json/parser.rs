//! From tokens to a value. The words of the errors are those of QEMU's qobject/json-parser.c.

use serde_json::{Map, Number, Value};

use super::JsonError;
use super::lexer::TokenKind;

/// A token and where its text is.
pub(super) struct Token {
    pub(super) kind: TokenKind,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// Makes the value that `tokens`, whose texts are in `text`, stand for.
///
/// # Errors
/// They stand for none.
pub(super) fn parse(text: &[u8], tokens: &[Token]) -> Result<Value, JsonError> {
    Parser { text, tokens }.value()
}

fn error<T>(message: impl Into<String>) -> Result<T, JsonError> {
    Err(JsonError::Syntax(message.into()))
}

struct Parser<'a> {
    text: &'a [u8],
    /// Those that are left.
    tokens: &'a [Token],
}

impl Parser<'_> {
    fn peek(&self) -> Result<TokenKind, JsonError> {
        match self.tokens.first() {
            Some(token) => Ok(token.kind),
            None => error("premature EOI"),
        }
    }

    fn pop(&mut self) -> Result<TokenKind, JsonError> {
        let kind = self.peek()?;
        self.tokens = self.tokens.get(1..).unwrap_or_default();
        Ok(kind)
    }

    /// The text of the next token.
    fn bytes(&self) -> &[u8] {
        let token = self.tokens.first();
        token
            .and_then(|token| self.text.get(token.start..token.end))
            .unwrap_or_default()
    }

    /// Recurses; the stream sees to it that it is not deep.
    fn value(&mut self) -> Result<Value, JsonError> {
        let value = match self.peek()? {
            TokenKind::OpenBrace => return self.object(),
            TokenKind::OpenBracket => return self.array(),
            TokenKind::Keyword => keyword(self.bytes()),
            TokenKind::String => string(self.bytes()).map(Value::String),
            TokenKind::Integer | TokenKind::Float => number(self.bytes()),
            _ => error("expecting value"),
        }?;
        self.pop()?;
        Ok(value)
    }

    fn object(&mut self) -> Result<Value, JsonError> {
        self.pop()?;
        let mut members = Map::new();
        if self.peek()? == TokenKind::CloseBrace {
            self.pop()?;
            return Ok(Value::Object(members));
        }
        loop {
            self.pair(&mut members)?;
            match self.pop()? {
                TokenKind::CloseBrace => return Ok(Value::Object(members)),
                TokenKind::Comma => {}
                _ => return error("expected separator in dict"),
            }
        }
    }

    fn pair(&mut self, members: &mut Map<String, Value>) -> Result<(), JsonError> {
        let Value::String(key) = self.value()? else {
            return error("key is not a string in object");
        };
        if self.pop()? != TokenKind::Colon {
            return error("missing : in object pair");
        }
        let value = self.value()?;
        if members.contains_key(&key) {
            return error("duplicate key");
        }
        members.insert(key, value);
        Ok(())
    }

    fn array(&mut self) -> Result<Value, JsonError> {
        self.pop()?;
        let mut elements = Vec::new();
        if self.peek()? == TokenKind::CloseBracket {
            self.pop()?;
            return Ok(Value::Array(elements));
        }
        loop {
            elements.push(self.value()?);
            match self.pop()? {
                TokenKind::CloseBracket => return Ok(Value::Array(elements)),
                TokenKind::Comma => {}
                _ => return error("expected separator in list"),
            }
        }
    }
}

fn keyword(text: &[u8]) -> Result<Value, JsonError> {
    match text {
        b"true" => Ok(Value::Bool(true)),
        b"false" => Ok(Value::Bool(false)),
        b"null" => Ok(Value::Null),
        _ => error(format!("invalid keyword '{}'", String::from_utf8_lossy(text))),
    }
}

/// An integer if 64 bits with or without sign hold it, else the nearest number that a double can be.
fn number(text: &[u8]) -> Result<Value, JsonError> {
    let text = str::from_utf8(text).unwrap_or_default();
    let integer = text
        .parse::<i64>()
        .map(Number::from)
        .or_else(|_| text.parse::<u64>().map(Number::from));
    let float = || text.parse::<f64>().unwrap_or_default().clamp(f64::MIN, f64::MAX);
    let number = integer.ok().or_else(|| Number::from_f64(float()));
    Ok(number.map_or(Value::Null, Value::Number))
}

/// A string without its quotes, its escapes resolved.
fn string(text: &[u8]) -> Result<String, JsonError> {
    let inner = text.get(1..text.len().saturating_sub(1)).unwrap_or_default();
    let Ok(inner) = str::from_utf8(inner) else {
        return error("invalid UTF-8 sequence in string");
    };
    let mut result = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(character) = rest.chars().next() {
        let (decoded, length) = match character {
            '\\' => escape(rest)?,
            other if is_noncharacter(other) => return error("invalid UTF-8 sequence in string"),
            other => (other, other.len_utf8()),
        };
        result.push(decoded);
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(result)
}

/// The character that the escape at the start of `text` stands for, and the escape's length.
fn escape(text: &str) -> Result<(char, usize), JsonError> {
    let character = match text.as_bytes().get(1) {
        Some(&byte @ (b'"' | b'\'' | b'\\' | b'/')) => char::from(byte),
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => return unicode_escape(text),
        _ => return error("invalid escape sequence in string"),
    };
    Ok((character, 2))
}

/// Bytes of `\uXXXX`.
const UNICODE_ESCAPE: usize = 6;

fn unicode_escape(text: &str) -> Result<(char, usize), JsonError> {
    let unit = |at: usize| {
        let escape = text.get(at..at.checked_add(UNICODE_ESCAPE)?)?;
        let digits = escape.strip_prefix("\\u")?;
        // A sign would pass for a digit.
        let hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        hex.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
    };
    let (code, length) = match (unit(0), unit(UNICODE_ESCAPE)) {
        (Some(high @ 0xd800..=0xdbff), Some(low @ 0xdc00..=0xdfff)) => (
            Some(0x10000 + ((high & 0x3ff) << 10) + (low & 0x3ff)),
            2 * UNICODE_ESCAPE,
        ),
        (code, _) => (code, UNICODE_ESCAPE),
    };
    match code.and_then(char::from_u32).filter(|c| !is_noncharacter(*c)) {
        Some(character) => Ok((character, length)),
        None => {
            let shown: String = text.chars().take(length).collect();
            error(format!("{shown} is not a valid Unicode character"))
        }
    }
}

/// The 66 code points that no text has (The Unicode Standard, section 23.7), which QEMU refuses.
fn is_noncharacter(character: char) -> bool {
    let code = u32::from(character);
    (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe
}
