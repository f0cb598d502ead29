//! The protocol above JSON: the greeting, negotiation, requests and responses (QEMU, docs/interop/qmp-spec.txt).

use serde_json::{Map, Value, json};

use super::commands::{self, Context, control};
use super::error::{Error, ErrorClass};
use super::json::JsonError;

/// What the server says first.
pub fn greeting() -> Value {
    json!({"QMP": {"version": control::version(), "capabilities": []}})
}

/// Does what `request` says, and returns the response.
pub fn answer(request: Result<Value, JsonError>, context: &Context<'_>) -> Value {
    let mut id = None;
    let result = match request {
        Ok(Value::Object(mut members)) => {
            id = members.remove("id");
            Request::read(members).and_then(|request| request.run(context))
        }
        Ok(_) => Err(Error::new("QMP input must be a JSON object")),
        Err(error) => Err(Error::new(error)),
    };
    let mut response = match result {
        Ok(value) => Map::from_iter([("return".to_owned(), value)]),
        Err(error) => Map::from_iter([("error".to_owned(), error.to_value())]),
    };
    if let Some(id) = id {
        response.insert("id".to_owned(), id);
    }
    Value::Object(response)
}

/// A command with its arguments, neither looked at.
struct Request {
    command: String,
    arguments: Map<String, Value>,
}

impl Request {
    fn read(members: Map<String, Value>) -> Result<Self, Error> {
        let mut command = None;
        let mut arguments = Map::new();
        for (name, value) in members {
            match (name.as_str(), value) {
                ("execute", Value::String(name)) => command = Some(name),
                ("execute", _) => return Err(Error::new("QMP input member 'execute' must be a string")),
                ("arguments", Value::Object(members)) => arguments = members,
                ("arguments", _) => return Err(Error::new("QMP input member 'arguments' must be an object")),
                _ => return Err(Error::new(format_args!("QMP input member '{name}' is unexpected"))),
            }
        }
        match command {
            Some(command) => Ok(Self { command, arguments }),
            None => Err(Error::new("QMP input lacks member 'execute'")),
        }
    }

    fn run(self, context: &Context<'_>) -> Result<Value, Error> {
        let negotiates = self.command == control::NEGOTIATION;
        if !context.link.is_negotiated() && !negotiates {
            let expecting = "Expecting capabilities negotiation with 'qmp_capabilities'";
            return Err(Error::with_class(ErrorClass::CommandNotFound, expecting));
        }
        let Some(command) = commands::find(&self.command) else {
            let unknown = format_args!("The command {} has not been found", self.command);
            return Err(Error::with_class(ErrorClass::CommandNotFound, unknown));
        };
        (command.run)(context, Value::Object(self.arguments))
    }
}

#[cfg(test)]
mod tests;
