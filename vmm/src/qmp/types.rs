//! Types of devices and objects by name, as QEMU's object model has them, made from the tables of devices.

use devices::virtio::info::{CHILDREN, DEVICES};
use devices::virtio::options::{OptionKind, OptionSpec, Options, Pairs};
use serde_json::Value;

use super::target::Board;

/// A type.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TypeRow {
    /// Its name.
    pub name: String,
    /// What it is a kind of; nothing for the root.
    pub parent: Option<String>,
    /// There is nothing that is of this type and no other.
    pub is_abstract: bool,
}

/// Types that every device is a kind of.
const ROOTS: [(&str, Option<&str>, bool); 5] = [
    ("object", None, true),
    ("device", Some("object"), true),
    ("pci-device", Some("device"), true),
    ("virtio-pci", Some("pci-device"), true),
    ("machine", Some("object"), true),
];

/// Objects that `object-add` makes, and what each is a kind of.
pub const OBJECTS: [(&str, &str); 7] = [
    ("iothread", "object"),
    ("rng-builtin", "rng-backend"),
    ("rng-random", "rng-backend"),
    ("memory-backend-ram", "memory-backend"),
    ("memory-backend-memfd", "memory-backend"),
    ("memory-backend-file", "memory-backend"),
    ("filter-dump", "netfilter"),
];

/// All types.
pub fn all() -> Vec<TypeRow> {
    let row = |name: &str, parent: Option<&str>, is_abstract| TypeRow {
        name: name.to_owned(),
        parent: parent.map(str::to_owned),
        is_abstract,
    };
    let mut rows: Vec<_> = ROOTS.iter().map(|(name, parent, is)| row(name, *parent, *is)).collect();
    for info in DEVICES {
        let base = format!("{}-base", info.name);
        rows.push(row(&base, Some("virtio-pci"), true));
        rows.push(row(info.name, Some(&base), false));
        if info.transitional_id.is_some() {
            for variant in ["transitional", "non-transitional"] {
                rows.push(row(&format!("{}-{variant}", info.name), Some(&base), false));
            }
        }
    }
    rows.extend(CHILDREN.iter().map(|child| row(child.name, Some("device"), false)));
    rows.extend(Board::ALL.map(|board| row(&format!("{}-machine", board.name()), Some("machine"), false)));
    for (name, parent) in OBJECTS {
        if !rows.iter().any(|row| row.name == parent) {
            rows.push(row(parent, Some("object"), true));
        }
        rows.push(row(name, Some(parent), false));
    }
    rows
}

/// Those of `rows` that are a kind of `ancestor`, itself among them.
pub fn kinds_of<'a>(rows: &'a [TypeRow], ancestor: &str) -> Vec<&'a TypeRow> {
    let parent = |name: &str| rows.iter().find(|row| row.name == name)?.parent.as_deref();
    let is_kind =
        |row: &&TypeRow| std::iter::successors(Some(row.name.as_str()), |name| parent(name)).any(|n| n == ancestor);
    rows.iter().filter(is_kind).collect()
}

/// The options of the device type `name`.
pub fn options_of(name: &str) -> Option<Vec<&'static OptionSpec>> {
    if let Some(child) = CHILDREN.iter().find(|child| child.name == name) {
        return Some(child.options.iter().collect());
    }
    let (info, _) = devices::virtio::info::find(name).ok()?;
    // Only whole names are names of types.
    name.starts_with(info.name).then(|| info.all_options().collect())
}

/// QEMU's name for what an option holds.
pub fn property_type(kind: OptionKind) -> &'static str {
    match kind {
        OptionKind::Flag => "bool",
        OptionKind::Number { max: 0..=0xff, .. } => "uint8",
        OptionKind::Number {
            max: 0x100..=0xffff, ..
        } => "uint16",
        OptionKind::Number {
            max: 0x1_0000..=0xffff_ffff,
            ..
        } => "uint32",
        OptionKind::Number { .. } => "uint64",
        OptionKind::Size => "size",
        OptionKind::Choice(words) if words.contains(&"auto") && words.contains(&"on") => "OnOffAuto",
        OptionKind::Slot => "int32",
        OptionKind::Choice(_) | OptionKind::Text | OptionKind::Texts => "str",
    }
}

/// An option's value in JSON: what `pairs` say, else the default.
pub fn property_value(spec: &'static OptionSpec, pairs: &Pairs) -> Option<Value> {
    let mut own = Pairs::default();
    if let Some(text) = pairs.get(spec.name) {
        own.push(spec.name, text);
    }
    let table = std::slice::from_ref(spec);
    let options = Options::read(spec.name, &own, &[table]).ok()?;
    match spec.kind {
        OptionKind::Flag => (own.get(spec.name).or(spec.default)).map(|_| options.flag(spec.name).into()),
        OptionKind::Number { .. } | OptionKind::Size => options.number(spec.name).map(Value::from),
        OptionKind::Choice(_) | OptionKind::Text | OptionKind::Texts => options.text(spec.name).map(Value::from),
        OptionKind::Slot => options
            .slot(spec.name)
            .map(|slot| (slot.device << 3 | slot.function).into()),
    }
}
