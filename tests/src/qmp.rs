//! A client of QMP, as small as tests need it.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Error;

/// Who has not answered for so long never will. Generous: the emulated lab shares two cores.
const PATIENCE: Duration = Duration::from_secs(90);

/// A client that has negotiated.
pub struct Client {
    stream: BufReader<UnixStream>,
    /// Events that nobody has asked for yet.
    events: VecDeque<Value>,
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// Nobody listens there, or it is not QMP.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut client = Self {
            stream: BufReader::new(stream),
            events: VecDeque::new(),
        };
        let greeting = client.message()?;
        if greeting.get("QMP").is_none() {
            return Err(format!("no greeting: {greeting}").into());
        }
        client.ask("qmp_capabilities", json!({}))?;
        Ok(client)
    }

    /// Gives a command and returns what the machine answers.
    ///
    /// # Errors
    /// The machine refused, with its words; or it is gone.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        let text = json!({"execute": command, "arguments": arguments}).to_string();
        self.stream.get_mut().write_all(text.as_bytes())?;
        loop {
            let mut message = self.message()?;
            if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = message.get("error") {
                return Err(format!("{command}: {error}").into());
            }
            self.events.push_back(message);
        }
    }

    /// Waits for the next event called `name` of whose data `is_it` says that it is the one, and returns its data. Other events stay.
    ///
    /// # Errors
    /// It does not come.
    pub fn event(&mut self, name: &str, is_it: impl Fn(&Value) -> bool) -> Result<Value, Error> {
        let fits = |event: &Value| event["event"] == name && is_it(&event["data"]);
        if let Some(mut event) = self.events.iter().position(fits).and_then(|at| self.events.remove(at)) {
            return Ok(event["data"].take());
        }
        loop {
            let mut message = self.message().map_err(|error| format!("no {name}: {error}"))?;
            if fits(&message) {
                return Ok(message["data"].take());
            }
            self.events.push_back(message);
        }
    }

    /// Forgets the events called `name` that have come, and says how many they were.
    pub fn forget(&mut self, name: &str) -> usize {
        let before = self.events.len();
        self.events.retain(|event| event["event"] != name);
        before - self.events.len()
    }

    fn message(&mut self) -> Result<Value, Error> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => Err("the monitor has closed".into()),
            Ok(_) => Ok(serde_json::from_str(&line)?),
            Err(error) => Err(format!("the monitor is silent: {error}").into()),
        }
    }
}
