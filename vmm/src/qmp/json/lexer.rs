//! From bytes to tokens, one byte at a time.

/// What a token is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TokenKind {
    OpenBrace,
    CloseBrace,
    OpenBracket,
    CloseBracket,
    Colon,
    Comma,
    Integer,
    Float,
    /// Lower-case letters.
    Keyword,
    /// With its quotes and escapes.
    String,
}

/// What a byte meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lexed {
    /// It belongs to no token.
    Nothing,
    /// It belongs to a token that goes on.
    Text,
    /// A token is complete: with this byte, or before it when the byte is not consumed.
    Token(TokenKind),
    /// No token can have it.
    Stray,
}

/// The outcome for one byte.
pub(super) struct Step {
    pub(super) lexed: Lexed,
    /// Else the byte is to be given again.
    pub(super) consumed: bool,
}

/// Where in a token we are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    #[default]
    Start,
    /// Behind a stray byte.
    Recovery,
    String {
        quote: u8,
        escaped: bool,
    },
    Sign,
    Zero,
    Digits,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
    Keyword,
}

/// What a state makes of a byte.
enum Move {
    /// The byte belongs to the token.
    Into(State),
    /// The byte ends the token, and belongs to it.
    End(TokenKind),
    /// The token ended before the byte.
    Before(TokenKind),
    /// White space.
    Skip,
    /// Skipped until something promising comes.
    Lost,
    /// Something promising: from the start with this byte.
    Restart,
    Stray,
}

/// The lexer's state between bytes.
#[derive(Default)]
pub(super) struct Lexer(State);

impl Lexer {
    /// Takes a byte.
    pub(super) fn step(&mut self, byte: u8) -> Step {
        let (state, lexed, consumed) = match self.0.take(byte) {
            Move::Into(state) => (state, Lexed::Text, true),
            Move::End(kind) => (State::Start, Lexed::Token(kind), true),
            Move::Before(kind) => (State::Start, Lexed::Token(kind), false),
            Move::Skip => (State::Start, Lexed::Nothing, true),
            Move::Lost => (State::Recovery, Lexed::Nothing, true),
            Move::Restart => (State::Start, Lexed::Nothing, false),
            Move::Stray => (State::Recovery, Lexed::Stray, true),
        };
        self.0 = state;
        Step { lexed, consumed }
    }
}

impl State {
    fn take(self, byte: u8) -> Move {
        match (self, byte) {
            (Self::Start, _) => start(byte),
            (Self::Recovery, b'[' | b']' | b'{' | b'}' | b':' | b',' | 0xfe | 0xff) => Move::Restart,
            (Self::Recovery, 0..=0x1f) if byte != b'\t' => Move::Restart,
            (Self::Recovery, _) => Move::Lost,

            (Self::String { .. }, 0..=0x1f | 0xfe | 0xff) => Move::Stray,
            (Self::String { quote, escaped: true }, _) => Move::Into(Self::String { quote, escaped: false }),
            (Self::String { quote, .. }, b'\\') => Move::Into(Self::String { quote, escaped: true }),
            (Self::String { quote, .. }, _) if byte == quote => Move::End(TokenKind::String),
            (Self::String { .. }, _) => Move::Into(self),

            (Self::Sign, b'0') => Move::Into(Self::Zero),
            (Self::Sign, b'1'..=b'9') | (Self::Digits, b'0'..=b'9') => Move::Into(Self::Digits),
            (Self::Zero, b'0'..=b'9') => Move::Stray,
            (Self::Zero | Self::Digits, b'.') => Move::Into(Self::Point),
            (Self::Digits | Self::Fraction, b'e' | b'E') => Move::Into(Self::Exponent),
            (Self::Zero | Self::Digits, _) => Move::Before(TokenKind::Integer),
            (Self::Point | Self::Fraction, b'0'..=b'9') => Move::Into(Self::Fraction),
            (Self::Exponent, b'+' | b'-') => Move::Into(Self::ExponentSign),
            (Self::Exponent | Self::ExponentSign | Self::ExponentDigits, b'0'..=b'9') => {
                Move::Into(Self::ExponentDigits)
            }
            (Self::Fraction | Self::ExponentDigits, _) => Move::Before(TokenKind::Float),
            (Self::Sign | Self::Point | Self::Exponent | Self::ExponentSign, _) => Move::Stray,

            (Self::Keyword, b'a'..=b'z') => Move::Into(Self::Keyword),
            (Self::Keyword, _) => Move::Before(TokenKind::Keyword),
        }
    }
}

fn start(byte: u8) -> Move {
    match byte {
        b' ' | b'\t' | b'\r' | b'\n' => Move::Skip,
        b'{' => Move::End(TokenKind::OpenBrace),
        b'}' => Move::End(TokenKind::CloseBrace),
        b'[' => Move::End(TokenKind::OpenBracket),
        b']' => Move::End(TokenKind::CloseBracket),
        b':' => Move::End(TokenKind::Colon),
        b',' => Move::End(TokenKind::Comma),
        b'"' | b'\'' => Move::Into(State::String {
            quote: byte,
            escaped: false,
        }),
        b'-' => Move::Into(State::Sign),
        b'0' => Move::Into(State::Zero),
        b'1'..=b'9' => Move::Into(State::Digits),
        b'a'..=b'z' => Move::Into(State::Keyword),
        _ => Move::Stray,
    }
}
