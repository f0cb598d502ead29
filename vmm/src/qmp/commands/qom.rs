//! The tree of objects: `/machine`, the devices that the user added below it, `/objects` and `/chardevs`.

use devices::virtio::options::OptionKind;
use serde_json::{Value, json};

use super::{Command, Context, command};
use crate::qemu::properties;
use crate::qmp::error::{Error, ErrorClass};
use crate::qmp::schema::{Nothing, structures};
use crate::qmp::{tree, types};

pub(super) static COMMANDS: &[Command] = &[
    command!("qom-list", qom_list),
    command!("qom-get", qom_get),
    command!("qom-set", qom_set),
    command!("qom-list-types", qom_list_types),
    command!("device-list-properties", device_list_properties),
];

structures! {
    struct At {
        path: String,
    }
    struct PropertyAt {
        path: String,
        property: String,
    }
    struct NewValue {
        path: String,
        property: String,
        value: Value,
    }
    struct ListTypes {
        implements: Option<String>,
        is_abstract as "abstract": Option<bool>,
    }
    struct ObjectTypeInfo {
        name: String,
        is_abstract as "abstract": Option<bool>,
        parent: Option<String>,
    }
    struct TypeName {
        typename: String,
    }
    struct ObjectPropertyInfo {
        name: String,
        of as "type": String,
        description: Option<String>,
        default_value as "default-value": Option<Value>,
    }
}

fn qom_list(context: &Context<'_>, arguments: At) -> Result<Vec<ObjectPropertyInfo>, Error> {
    let properties = tree::find(context, &arguments.path)?.properties(context).into_iter();
    let info = properties.map(|property| ObjectPropertyInfo {
        name: property.name,
        of: property.kind,
        description: None,
        default_value: None,
    });
    Ok(info.collect())
}

fn qom_get(context: &Context<'_>, arguments: PropertyAt) -> Result<Value, Error> {
    tree::find(context, &arguments.path)?.get(context, &arguments.property)
}

fn qom_set(context: &Context<'_>, arguments: NewValue) -> Result<Nothing, Error> {
    let node = tree::find(context, &arguments.path)?;
    node.set(context, &arguments.property, &arguments.value)?;
    Ok(Nothing {})
}

fn qom_list_types(_: &Context<'_>, arguments: ListTypes) -> Result<Vec<ObjectTypeInfo>, Error> {
    let rows = types::all();
    let ancestor = arguments.implements.as_deref().unwrap_or("object");
    let with_abstract = arguments.is_abstract.unwrap_or(false);
    let kinds = types::kinds_of(&rows, ancestor).into_iter();
    let info = |row: &types::TypeRow| ObjectTypeInfo {
        name: row.name.clone(),
        is_abstract: row.is_abstract.then_some(true),
        parent: row.parent.clone(),
    };
    Ok(kinds
        .filter(|row| with_abstract || !row.is_abstract)
        .map(info)
        .collect())
}

fn device_list_properties(_: &Context<'_>, arguments: TypeName) -> Result<Vec<ObjectPropertyInfo>, Error> {
    let name = &arguments.typename;
    let Some(options) = types::options_of(name) else {
        let rows = types::all();
        let known = rows.iter().find(|row| row.name == *name);
        return Err(match known {
            None => Error::with_class(ErrorClass::DeviceNotFound, format_args!("Device '{name}' not found")),
            Some(_) if types::kinds_of(&rows, "device").iter().any(|row| row.name == *name) => {
                Error::new("Parameter 'typename' expects a non-abstract device type")
            }
            Some(_) => Error::new("Parameter 'typename' expects a device type"),
        });
    };
    let info = |spec: &'static devices::virtio::options::OptionSpec| ObjectPropertyInfo {
        name: spec.name.to_owned(),
        of: types::property_type(spec.kind).to_owned(),
        description: Some(spec.help.to_owned()),
        default_value: match spec.kind {
            OptionKind::Slot => Some(json!(-1)),
            _ => types::property_value(spec, &Default::default()),
        },
    };
    let beside = properties::beside_options(name).into_iter();
    let beside = beside.filter(|listed| options.iter().all(|spec| spec.name != listed.name));
    let beside = beside.map(|listed| ObjectPropertyInfo {
        name: listed.name.to_owned(),
        of: listed.of.to_owned(),
        description: Some(listed.help.to_owned()).filter(|help| !help.is_empty()),
        default_value: None,
    });
    Ok(options.iter().copied().map(info).chain(beside).collect())
}
