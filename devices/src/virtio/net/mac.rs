//! Hardware addresses, and who has which.

#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of an address.
pub const MAC_BYTES: usize = 6;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct MacAddress(pub [u8; MAC_BYTES]);

impl MacAddress {
    /// Everyone.
    pub const BROADCAST: Self = Self([0xff; MAC_BYTES]);

    /// Whether it names a group of cards rather than one.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// The address in the low 48 bits, first byte lowest.
    pub(super) fn to_bits(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }

    /// The other way.
    pub(super) fn from_bits(bits: u64) -> Self {
        let [a, b, c, d, e, f, ..] = bits.to_le_bytes();
        Self([a, b, c, d, e, f])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// The text is no address
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("six pairs of hexadecimal digits, as 52:54:00:12:34:56")]
pub struct NoMacAddress;

impl FromStr for MacAddress {
    type Err = NoMacAddress;

    /// As QEMU reads it: colons or dashes between the bytes.
    fn from_str(text: &str) -> Result<Self, NoMacAddress> {
        let mut bytes = [0; MAC_BYTES];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|part| (1..=2).contains(&part.len()));
            let digits = part.filter(|part| part.bytes().all(|digit| digit.is_ascii_hexdigit()));
            *byte = u8::from_str_radix(digits.ok_or(NoMacAddress)?, 16).map_err(|_| NoMacAddress)?;
        }
        parts.next().is_none().then_some(Self(bytes)).ok_or(NoMacAddress)
    }
}

/// The first five bytes of the addresses that are given out (QEMU, net/net.c,
/// `qemu_macaddr_default_if_unset`).
const PREFIX: [u8; 5] = [0x52, 0x54, 0x00, 0x12, 0x34];
/// The first last byte.
const FIRST: u8 = 0x56;

/// The addresses in use by the cards of one machine, as far as they begin as those that are given
/// out.
#[derive(Clone, Default)]
pub(super) struct MacPool(Arc<Mutex<Users>>);

/// How many cards use the address that ends so.
struct Users([u32; 256]);

impl Default for Users {
    fn default() -> Self {
        Self([0; 256])
    }
}

impl MacPool {
    /// The address `wanted`, or the lowest that is free; without any left, the last.
    pub(super) fn claim(&self, wanted: Option<MacAddress>) -> MacClaim {
        let mut users = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let address = wanted.unwrap_or_else(|| {
            let free = (FIRST..u8::MAX).find(|&last| users.0.get(usize::from(last)) == Some(&0));
            let [a, b, c, d, e] = PREFIX;
            MacAddress([a, b, c, d, e, free.unwrap_or(u8::MAX)])
        });
        if let Some(count) = users.of(address) {
            *count += 1;
        }
        drop(users);
        MacClaim {
            pool: self.clone(),
            address,
        }
    }
}

impl Users {
    fn of(&mut self, MacAddress([a, b, c, d, e, last]): MacAddress) -> Option<&mut u32> {
        let ours = [a, b, c, d, e] == PREFIX;
        self.0.get_mut(usize::from(last)).filter(|_| ours)
    }
}

/// A card's claim on its address; dropping it gives the address back.
pub(super) struct MacClaim {
    pool: MacPool,
    address: MacAddress,
}

impl MacClaim {
    pub(super) fn address(&self) -> MacAddress {
        self.address
    }
}

impl Drop for MacClaim {
    fn drop(&mut self) {
        let mut users = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = users.of(self.address) {
            *count = count.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        let address = MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0xff]);
        assert_eq!("52:54:00:12:34:FF".parse(), Ok(address));
        assert_eq!("52-54-0-12-34-ff".parse(), Ok(address));
        assert_eq!(address.to_string(), "52:54:00:12:34:ff");
        assert_eq!(MacAddress::from_bits(address.to_bits()), address);
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:00:12:34:5g",
            "52:54:00:12:34:+5",
        ] {
            assert_eq!(text.parse::<MacAddress>(), Err(NoMacAddress), "{text}");
        }
    }

    #[test]
    fn cards_get_the_lowest_address_that_is_free() {
        let pool = MacPool::default();
        let taken = pool.claim(Some("52:54:00:12:34:57".parse().unwrap()));
        let (first, second) = (pool.claim(None), pool.claim(None));
        assert_eq!(first.address().to_string(), "52:54:00:12:34:56");
        assert_eq!(second.address().to_string(), "52:54:00:12:34:58");
        drop((taken, first));
        assert_eq!(pool.claim(None).address().to_string(), "52:54:00:12:34:56");
    }

    #[test]
    fn an_address_that_is_not_ours_takes_nothing() {
        let pool = MacPool::default();
        let _other = pool.claim(Some("02:00:00:00:00:56".parse().unwrap()));
        assert_eq!(pool.claim(None).address().to_string(), "52:54:00:12:34:56");
    }
}
