//! The escape key of a terminal that belongs to a guest.

#![forbid(unsafe_code)]

/// What a person asked for with the escape key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Escape {
    /// Ctrl-A x.
    Quit,
    /// Ctrl-A h or Ctrl-A ?.
    Help,
}

/// Ctrl-A, the escape key of QEMU's `-nographic`.
const ESCAPE_KEY: u8 = 1;

/// Finds the escapes in what a person types.
#[derive(Default, Debug)]
pub struct EscapeFilter {
    armed: bool,
}

impl EscapeFilter {
    /// Splits `typed` into what the guest gets (appended to `guest`, never more than was typed) and what we do.
    pub fn filter(&mut self, typed: &[u8], guest: &mut impl Extend<u8>) -> Vec<Escape> {
        let mut escapes = Vec::new();
        for &byte in typed {
            if !std::mem::take(&mut self.armed) {
                if byte == ESCAPE_KEY {
                    self.armed = true;
                } else {
                    guest.extend([byte]);
                }
                continue;
            }
            match byte {
                b'x' => escapes.push(Escape::Quit),
                b'h' | b'?' => escapes.push(Escape::Help),
                ESCAPE_KEY | b'a' => guest.extend([ESCAPE_KEY]),
                _ => {}
            }
        }
        escapes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_key_is_seen_across_reads() {
        let mut filter = EscapeFilter::default();
        let mut guest = Vec::new();
        assert!(filter.filter(b"ab\x01", &mut guest).is_empty());
        assert_eq!(filter.filter(b"xcd", &mut guest), [Escape::Quit]);
        assert_eq!(guest, b"abcd");
    }

    #[test]
    fn the_escape_key_twice_sends_it_once() {
        let mut guest = Vec::new();
        let escapes = EscapeFilter::default().filter(b"\x01\x01h\x01h", &mut guest);
        assert_eq!(
            (guest.as_slice(), escapes.as_slice()),
            (&b"\x01h"[..], &[Escape::Help][..])
        );
    }
}
