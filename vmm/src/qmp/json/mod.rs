//! JSON as QEMU's monitor reads and writes it: RFC 8259, strings in single quotes besides, values back to back without anything between
//! them, and a way out of every error. The bounds are those of QEMU's qobject/json-streamer.c.

mod lexer;
mod parser;
mod writer;

use serde_json::Value;

pub use self::writer::Style;

use self::lexer::{Lexed, Lexer, TokenKind};
use self::parser::Token;

/// Bytes of tokens that one value may have.
pub const MAX_BYTES: usize = 64 << 20;
/// Tokens that one value may have.
pub const MAX_TOKENS: usize = 2 << 20;
/// Arrays and objects within each other.
pub const MAX_NESTING: usize = 1 << 10;

/// The bytes are no JSON, or more than anyone needs
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JsonError {
    /// Tokens that make no value
    #[error("JSON parse error, {0}")]
    Syntax(String),
    /// Longer than [`MAX_BYTES`]
    #[error("JSON token size limit exceeded")]
    TooLong,
    /// More tokens than [`MAX_TOKENS`]
    #[error("JSON token count limit exceeded")]
    TooManyTokens,
    /// Deeper than [`MAX_NESTING`]
    #[error("JSON nesting depth limit exceeded")]
    TooDeep,
}

/// Reads a text that is one value.
///
/// # Errors
/// It is none, or something follows it.
pub fn from_text(text: &str) -> Result<Value, JsonError> {
    // What ends a number or a word at the end of the text.
    let text = format!("{text}\n");
    let mut rest = text.as_bytes();
    let incomplete = || Err(JsonError::Syntax("the value is not complete".to_owned()));
    let value = Stream::default().next(&mut rest).unwrap_or_else(incomplete)?;
    if rest.trim_ascii().is_empty() {
        Ok(value)
    } else {
        Err(JsonError::Syntax("something follows the value".to_owned()))
    }
}

/// Takes bytes as they come and gives values, and errors in their places.
///
/// An error drops what has been read of its value. After a byte that is in no token the input is skipped up to the next bracket, brace,
/// comma, colon or line end, or byte 0xfe or 0xff, by which a client can bring the parser into a known state.
#[derive(Default)]
pub struct Stream {
    lexer: Lexer,
    /// The tokens' text, one behind the other.
    text: Vec<u8>,
    tokens: Vec<Token>,
    braces: isize,
    brackets: isize,
}

impl Stream {
    /// Takes bytes from the front of `input` up to the end of the next value or error, which is returned. `None` when all are taken and
    /// the value is not complete.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Result<Value, JsonError>> {
        while let Some((&byte, rest)) = input.split_first() {
            let step = self.lexer.step(byte);
            if step.consumed {
                *input = rest;
            }
            let result = match step.lexed {
                Lexed::Nothing => None,
                Lexed::Text if self.text.len() < MAX_BYTES => {
                    self.text.push(byte);
                    None
                }
                Lexed::Text => {
                    self.lexer = Lexer::default();
                    Some(Err(JsonError::TooLong))
                }
                Lexed::Token(kind) => {
                    if step.consumed {
                        self.text.push(byte);
                    }
                    self.token(kind)
                }
                Lexed::Stray => {
                    self.text.push(byte);
                    let stray = String::from_utf8_lossy(self.text.get(self.start()..).unwrap_or_default());
                    Some(Err(JsonError::Syntax(format!("stray '{stray}'"))))
                }
            };
            if result.is_some() {
                self.clear();
                return result;
            }
        }
        None
    }

    /// Where the text of the token that is being read starts.
    fn start(&self) -> usize {
        self.tokens.last().map_or(0, |token| token.end)
    }

    fn token(&mut self, kind: TokenKind) -> Option<Result<Value, JsonError>> {
        match kind {
            TokenKind::OpenBrace => self.braces += 1,
            TokenKind::CloseBrace => self.braces -= 1,
            TokenKind::OpenBracket => self.brackets += 1,
            TokenKind::CloseBracket => self.brackets -= 1,
            _ => {}
        }
        if self.tokens.len() >= MAX_TOKENS {
            return Some(Err(JsonError::TooManyTokens));
        }
        if self.braces + self.brackets > MAX_NESTING as isize {
            return Some(Err(JsonError::TooDeep));
        }
        self.tokens.push(Token {
            kind,
            start: self.start(),
            end: self.text.len(),
        });
        let open = self.braces > 0 || self.brackets > 0;
        if open && self.braces >= 0 && self.brackets >= 0 {
            return None;
        }
        Some(parser::parse(&self.text, &self.tokens))
    }

    /// Forgets the value, and gives large buffers back.
    fn clear(&mut self) {
        (self.braces, self.brackets) = (0, 0);
        self.text.clear();
        self.text.shrink_to(KEPT);
        self.tokens.clear();
        self.tokens.shrink_to(KEPT / size_of::<Token>());
    }
}

/// Bytes of buffer that are kept between values.
const KEPT: usize = 64 << 10;

#[cfg(test)]
mod tests;
