//! What devices and the machine have to say while a guest runs: a line each on standard error.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write as _};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Shows messages from now on: errors, warnings, and what somebody waits for.
pub(super) fn show() {
    // A terminal may be in raw mode, where a line does not end by itself.
    let end = if io::stderr().is_terminal() { "\r\n" } else { "\n" };
    let messages = Messages(move |line: &str| {
        // In one piece, and for a reader that may have gone: then there is nobody to tell, and the guest goes on.
        let _ = io::stderr().write_all(format!("innkeeper: {line}{end}").as_bytes());
    });
    // Whoever uses the library may have set up something else.
    let _ = tracing::subscriber::set_global_default(messages);
}

/// Gives each message to a function.
struct Messages<W>(W);

impl<W: Fn(&str) + 'static> Subscriber for Messages<W> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        (self.0)(&line.0);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The text of a message.
#[derive(Default)]
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // A string takes what it is given.
            let _ = write!(self.0, "{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn warnings_are_shown_and_details_are_not() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let shown = Arc::clone(&lines);
        let messages = Messages(move |line: &str| {
            if let Ok(mut lines) = shown.lock() {
                lines.push(line.to_owned());
            }
        });
        tracing::subscriber::with_default(messages, || {
            tracing::warn!(rule = "r1", "net{}: the backend has gone", 0);
            tracing::debug!("a detail");
            tracing::error!("disk: no more");
        });
        let lines = lines.lock().map(|lines| lines.clone()).unwrap_or_default();
        assert_eq!(lines, ["net0: the backend has gone", "disk: no more"]);
    }
}
