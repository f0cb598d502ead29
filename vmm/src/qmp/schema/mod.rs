//! Types of arguments and results. Each is declared once, in Rust; what a command takes, how its arguments are checked and what
//! `query-qmp-schema` says of it come from that declaration.

pub mod introspect;
mod visitor;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

pub use self::visitor::read;

/// A type of QEMU's schema language QAPI (docs/devel/qapi-code-gen.rst).
#[derive(Clone, Copy, Debug)]
pub enum Type {
    /// A string.
    Str,
    /// A signed number of 64 bits.
    Int,
    /// A number without sign of 64 bits. A negative one stands for its two's complement, as in QEMU.
    Uint64,
    /// A number that fits a smaller type of C.
    Ranged {
        /// That type, for the error.
        name: &'static str,
        /// The lowest.
        min: i64,
        /// The highest.
        max: i64,
    },
    /// A number with a fraction.
    Number,
    /// True or false.
    Bool,
    /// Whatever JSON has.
    Any,
    /// Any number of one type.
    Array(&'static Type),
    /// One of several words.
    Enum(&'static Enum),
    /// Members by name.
    Object(&'static Object),
    /// A name, or what it would stand for.
    NameOr(&'static Type),
}

/// An enumeration.
#[derive(Debug)]
pub struct Enum {
    /// Its words.
    pub values: &'static [&'static str],
}

/// A structure, or a union.
#[derive(Debug)]
pub struct Object {
    /// Members that it has in any case.
    pub members: &'static [Member],
    /// Members that it has besides, by the value of one of the others.
    pub variants: Option<Variants>,
    /// Are members allowed that are not declared? They are left to the command.
    pub open: bool,
}

/// The variants of a union.
#[derive(Debug)]
pub struct Variants {
    /// The member that says which.
    pub tag: &'static str,
    /// Its values, and what they bring. A value without an entry brings nothing.
    pub cases: &'static [(&'static str, &'static Object)],
}

/// A member of a structure.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub of: Type,
    /// May it be left out?
    pub optional: bool,
}

impl Member {
    /// One that has to be there.
    pub const fn required(name: &'static str, of: Type) -> Self {
        let optional = false;
        Self { name, of, optional }
    }

    /// One that may be left out.
    pub const fn optional(name: &'static str, of: Type) -> Self {
        let optional = true;
        Self { name, of, optional }
    }
}

/// An object without members.
pub static EMPTY: Object = Object {
    members: &[],
    variants: None,
    open: false,
};

/// A type of Rust with its counterpart in QAPI.
pub trait Qapi {
    /// The counterpart.
    const TYPE: Type;
    /// As a member, may it be left out?
    const OPTIONAL: bool = false;

    /// Is it to be left out?
    fn is_absent(&self) -> bool {
        false
    }
}

/// What a command can take.
pub trait Arguments: Qapi + DeserializeOwned {}
impl<T: Qapi + DeserializeOwned> Arguments for T {}

/// What a command can return.
pub trait Returned: Qapi + Serialize {}
impl<T: Qapi + Serialize> Returned for T {}

macro_rules! counterparts {
    ($($rust:ty => $type:expr),* $(,)?) => {
        $(impl Qapi for $rust {
            const TYPE: Type = $type;
        })*
    };
}

counterparts! {
    String => Type::Str,
    &'static str => Type::Str,
    i64 => Type::Int,
    u64 => Type::Uint64,
    i32 => Type::Ranged { name: "int32_t", min: i32::MIN as i64, max: i32::MAX as i64 },
    u32 => Type::Ranged { name: "uint32_t", min: 0, max: u32::MAX as i64 },
    u16 => Type::Ranged { name: "uint16_t", min: 0, max: u16::MAX as i64 },
    u8 => Type::Ranged { name: "uint8_t", min: 0, max: u8::MAX as i64 },
    f64 => Type::Number,
    bool => Type::Bool,
    Value => Type::Any,
}

impl<T: Qapi> Qapi for Vec<T> {
    const TYPE: Type = Type::Array(&T::TYPE);
}

impl<T: Qapi> Qapi for Option<T> {
    const TYPE: Type = T::TYPE;
    const OPTIONAL: bool = true;

    fn is_absent(&self) -> bool {
        self.is_none()
    }
}

/// No arguments, or no result.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, serde::Deserialize)]
pub struct Nothing {}

impl Qapi for Nothing {
    const TYPE: Type = Type::Object(&EMPTY);
}

/// A checked value of type `T`, as it came: for unions, whose members are options that go on to where they are understood.
#[derive(Clone, PartialEq, Debug, Serialize, serde::Deserialize)]
#[serde(transparent, bound = "")]
pub struct Checked<T> {
    /// The members.
    pub members: Map<String, Value>,
    #[serde(skip)]
    of: std::marker::PhantomData<T>,
}

impl<T: Qapi> Qapi for Checked<T> {
    const TYPE: Type = T::TYPE;
}

/// Declares structures: in Rust, for serde, and for the schema. A member is `name: Type`, or `name as "qapi-name": Type` where the name
/// is no identifier; `Option` makes it optional.
macro_rules! structures {
    ($($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$doc:meta])* $member:ident $(as $qapi:literal)?: $type:ty),* $(,)? })*) => {
        $($(#[$meta])*
        #[derive(Clone, PartialEq, Debug, serde::Serialize, serde::Deserialize)]
        $vis struct $name {
            $($(#[$doc])*
            $(#[serde(rename = $qapi)])?
            #[serde(skip_serializing_if = "crate::qmp::schema::Qapi::is_absent")]
            pub $member: $type,)*
        }

        impl crate::qmp::schema::Qapi for $name {
            const TYPE: crate::qmp::schema::Type = {
                static OBJECT: crate::qmp::schema::Object = crate::qmp::schema::Object {
                    members: &[$(crate::qmp::schema::Member {
                        name: crate::qmp::schema::member_name!($member $($qapi)?),
                        of: <$type as crate::qmp::schema::Qapi>::TYPE,
                        optional: <$type as crate::qmp::schema::Qapi>::OPTIONAL,
                    }),*],
                    variants: None,
                    open: false,
                };
                crate::qmp::schema::Type::Object(&OBJECT)
            };
        })*
    };
}

macro_rules! member_name {
    ($member:ident) => {
        stringify!($member)
    };
    ($member:ident $qapi:literal) => {
        $qapi
    };
}

/// Declares enumerations: `Name = "word"`.
macro_rules! enumerations {
    ($($(#[$meta:meta])* $vis:vis enum $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal),* $(,)? })*) => {
        $($(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
        $vis enum $name {
            $($(#[$doc])* #[serde(rename = $word)] $variant,)*
        }

        impl $name {
            /// The word for it.
            #[allow(dead_code, reason = "not every enumeration is asked for its words")]
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }

        impl crate::qmp::schema::Qapi for $name {
            const TYPE: crate::qmp::schema::Type = {
                static ENUM: crate::qmp::schema::Enum = crate::qmp::schema::Enum { values: &[$($word),*] };
                crate::qmp::schema::Type::Enum(&ENUM)
            };
        })*
    };
}

pub(crate) use {enumerations, member_name, structures};

#[cfg(test)]
mod tests;
