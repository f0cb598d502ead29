//! QEMU's command line as programs ask for it, from the table that also makes its help.

use super::{Command, Context, command};
use crate::qemu::args::{self, Row, Treatment};
use crate::qmp::error::Error;
use crate::qmp::schema::{enumerations, structures};

pub(super) static COMMANDS: &[Command] = &[command!("query-command-line-options", query_command_line_options)];

enumerations! {
    enum ParameterType {
        String = "string",
        Boolean = "boolean",
        Number = "number",
        Size = "size",
    }
}

structures! {
    struct OptionName {
        option: Option<String>,
    }
    struct ParameterInfo {
        name: String,
        of as "type": ParameterType,
        help: Option<String>,
    }
    struct OptionInfo {
        option: String,
        parameters: Vec<ParameterInfo>,
    }
}

fn query_command_line_options(_: &Context<'_>, arguments: OptionName) -> Result<Vec<OptionInfo>, Error> {
    let is_taken = |row: &&Row| matches!(row.treatment, Treatment::Acts(_)) && row.argument.is_some();
    let rows = args::rows().filter(is_taken);
    let wanted = |row: &&Row| arguments.option.as_deref().is_none_or(|name| row.name == name);
    let info = |row: &Row| OptionInfo {
        option: row.name.to_owned(),
        parameters: row.argument.map(parameters).unwrap_or_default(),
    };
    let options: Vec<_> = rows.filter(wanted).map(info).collect();
    match arguments.option {
        Some(name) if options.is_empty() => Err(Error::new(format_args!("invalid option name: {name}"))),
        _ => Ok(options),
    }
}

/// The keys in what the manual says of an option: `[guest=]NAME[,process=NAME]` has guest and process.
fn parameters(manual: &str) -> Vec<ParameterInfo> {
    let in_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let key = |(at, _): (usize, &str)| {
        let (before, behind) = (manual.get(..at)?, manual.get(at + 1..)?);
        let name = before
            .rsplit(|c| !in_name(c))
            .next()
            .filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase()))?;
        let value: &str = behind
            .trim_start_matches(']')
            .split([',', '[', ']'])
            .next()
            .unwrap_or_default();
        let of = match value {
            "on|off" | "off|on" => ParameterType::Boolean,
            "SIZE" => ParameterType::Size,
            "N" => ParameterType::Number,
            _ => ParameterType::String,
        };
        let (name, help) = (name.to_owned(), None);
        Some(ParameterInfo { name, of, help })
    };
    manual.match_indices('=').filter_map(key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_in_the_manual() {
        let found = parameters("[guest=]NAME[,process=NAME][,debug-threads=on|off][,size=SIZE]");
        let found: Vec<_> = found
            .iter()
            .map(|parameter| (parameter.name.as_str(), parameter.of))
            .collect();
        let expected = [
            ("guest", ParameterType::String),
            ("process", ParameterType::String),
            ("debug-threads", ParameterType::Boolean),
            ("size", ParameterType::Size),
        ];
        assert_eq!(found, expected);
        assert!(parameters("DRIVER.PROPERTY=VALUE").is_empty());
    }
}
