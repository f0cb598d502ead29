//! A monitor for people: a prompt, a line, an answer. The lines are those of `human-monitor-command`.

use super::commands::{self, Context};
use super::link::Link;

/// Bytes of a line; what is beyond is dropped (QEMU, include/qemu/readline.h, READLINE_CMD_BUF_SIZE).
const LONGEST: usize = 4095;

/// As QEMU's, by which scripts know that an answer is complete.
const PROMPT: &str = "(qemu) ";

/// What has come of a line so far.
#[derive(Default)]
pub struct Lines {
    line: Vec<u8>,
    /// The last byte ended a line as a terminal does; a line feed behind it belongs to it.
    after_return: bool,
}

impl Lines {
    /// Says what a client is told first.
    pub fn greet(link: &Link) {
        let commands::control::VersionInfo { qemu, package } = commands::control::version();
        let (major, minor, micro) = (qemu.major, qemu.minor, qemu.micro);
        link.send_text(&format!(
            "QEMU {major}.{minor}.{micro} monitor ({package}) - type 'help' for more information\r\n{PROMPT}"
        ));
    }

    /// Takes a line from the front of `input`, does what it says and answers. `false` when no line is complete; then all of `input` is
    /// taken.
    pub fn serve(&mut self, input: &mut &[u8], context: &Context<'_>) -> bool {
        while let Some((byte, rest)) = input.split_first() {
            *input = rest;
            let continues = *byte == b'\n' && std::mem::take(&mut self.after_return);
            match byte {
                b'\n' if continues => {}
                b'\n' | b'\r' => {
                    self.after_return = *byte == b'\r';
                    let line = std::mem::take(&mut self.line);
                    let answer = commands::answer_line(context, &String::from_utf8_lossy(&line));
                    context.link.send_text(&format!("{answer}{PROMPT}"));
                    return true;
                }
                _ => {
                    self.after_return = false;
                    if self.line.len() < LONGEST {
                        self.line.push(*byte);
                    }
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::qmp::target::Order;
    use crate::qmp::testing::Client;

    /// What the monitor says to these bytes.
    fn converse(client: &Client, lines: &mut Lines, mut input: &[u8]) -> String {
        let context = client.context();
        while lines.serve(&mut input, &context) {}
        String::from_utf8(client.sent()).unwrap()
    }

    #[test]
    fn a_line_is_answered_when_it_is_complete_and_a_prompt_follows() {
        let (client, mut lines) = (Client::raw(), Lines::default());
        Lines::greet(&client.link);
        let greeting = converse(&client, &mut lines, b"");
        assert!(greeting.starts_with("QEMU 7.2.0 monitor (Innkeeper "), "{greeting}");
        assert!(greeting.ends_with("information\r\n(qemu) "), "{greeting}");
        assert_eq!(converse(&client, &mut lines, b"info st"), "");
        let answer = converse(&client, &mut lines, b"atus\r");
        assert_eq!(answer, "VM status: running\r\n(qemu) ");
        assert_eq!(converse(&client, &mut lines, b"\n"), "", "it ended the last line");
        assert_eq!(converse(&client, &mut lines, b"\n\n"), "(qemu) (qemu) ");
        assert_eq!(
            converse(&client, &mut lines, b"info nothing\n"),
            "unknown command: 'info nothing'\r\n(qemu) "
        );
    }

    #[test]
    fn lines_are_carried_out_in_their_order_and_long_ones_are_cut() {
        let (client, mut lines) = (Client::raw(), Lines::default());
        converse(&client, &mut lines, b"stop\nsystem_powerdown\ncont\n");
        assert_eq!(
            *client.target.orders.lock().unwrap(),
            [Order::Stop, Order::Powerdown, Order::Cont]
        );
        let answer = converse(&client, &mut lines, &[&[b'x'; 2 * LONGEST][..], b"\n"].concat());
        assert_eq!(answer.matches('x').count(), LONGEST);
    }
}
