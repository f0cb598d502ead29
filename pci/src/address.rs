//! Where a function sits on the bus: bus, device and function number.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A function's place, `bus:device.function`: 8, 5 and 3 bits wide (PCI Local Bus 3.0, section 3.2.2.3.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Address {
    bus: u8,
    devfn: u8,
}

impl Address {
    /// The function `device.function` of bus `bus`, or `None` when a number is out of range.
    pub const fn new(bus: u8, device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 {
            Some(Self {
                bus,
                devfn: device << 3 | function,
            })
        } else {
            None
        }
    }

    /// The function that the eight bits device (5) and function (3) name on bus `bus`.
    pub const fn from_devfn(bus: u8, devfn: u8) -> Self {
        Self { bus, devfn }
    }

    /// Bus number.
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// Device number (slot), 0 to 31.
    pub const fn device(self) -> u8 {
        self.devfn >> 3
    }

    /// Function number, 0 to 7.
    pub const fn function(self) -> u8 {
        self.devfn & 7
    }

    /// Device and function number in one byte, as configuration mechanism #1 carries them.
    pub const fn devfn(self) -> u8 {
        self.devfn
    }
}

/// As lspci prints it: `00:03.0`.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus, self.device(), self.function())
    }
}

/// The text is not of the form `bus:device.function`, or a number is out of range
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a PCI address; write it as bus:device.function in hexadecimal, for example 00:03.0")]
pub struct ParseAddressError;

/// Takes `bus:device.function`, `device.function` and `device` in hexadecimal (QEMU's `addr=` spelling).
impl FromStr for Address {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, ParseAddressError> {
        let number =
            |digits: &str| u8::from_str_radix(digits.trim_start_matches("0x"), 16).map_err(|_| ParseAddressError);
        let (bus, rest) = text.split_once(':').unwrap_or(("0", text));
        let (device, function) = rest.split_once('.').unwrap_or((rest, "0"));
        Self::new(number(bus)?, number(device)?, number(function)?).ok_or(ParseAddressError)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn prints_and_parses_as_lspci_does() {
        let address = Address::new(0, 0x1f, 3).unwrap();
        assert_eq!(address.to_string(), "00:1f.3");
        assert_eq!("00:1f.3".parse(), Ok(address));
    }

    #[test]
    fn qemu_spellings_of_a_slot_are_equal() {
        let slot = Address::new(0, 4, 0).unwrap();
        for spelling in ["4", "4.0", "04.0", "0x4", "0x04.0", "00:04.0"] {
            assert_eq!(spelling.parse(), Ok(slot), "{spelling}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for spelling in ["20", "0.8", "100:0.0", "", "x", "1.2.3"] {
            assert_eq!(spelling.parse::<Address>(), Err(ParseAddressError), "{spelling}");
        }
    }
}
