//! Errors as a client sees them: a class, for programs, and a description, for people.

use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};

/// What a program can tell errors apart by (QEMU, qapi/error.json, `QapiErrorClass`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum ErrorClass {
    /// Anything that has no class of its own.
    GenericError,
    /// There is no such command, or not now.
    CommandNotFound,
    /// The device has not been activated by its guest driver.
    DeviceNotActive,
    /// There is no such device.
    DeviceNotFound,
    /// The host's KVM lacks something.
    KVMMissingCap,
}

/// Why a command was not done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error {
    /// For programs.
    pub class: ErrorClass,
    /// For people, in one line.
    pub description: String,
}

impl Error {
    /// An error of class [`ErrorClass::GenericError`].
    pub fn new(description: impl fmt::Display) -> Self {
        Self::with_class(ErrorClass::GenericError, description)
    }

    /// An error of any class.
    pub fn with_class(class: ErrorClass, description: impl fmt::Display) -> Self {
        let description = description.to_string();
        Self { class, description }
    }

    /// There is no device `name`.
    pub fn device_not_found(name: impl fmt::Display) -> Self {
        Self::with_class(ErrorClass::DeviceNotFound, format_args!("Device '{name}' not found"))
    }

    /// The value of the response's member `error`.
    pub fn to_value(&self) -> Value {
        json!({"class": self.class, "desc": self.description})
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.description)
    }
}

impl std::error::Error for Error {}

impl From<devices::virtio::options::ConfigError> for Error {
    fn from(error: devices::virtio::options::ConfigError) -> Self {
        Self::new(error)
    }
}
