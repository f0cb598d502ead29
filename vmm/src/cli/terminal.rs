//! The user's terminal: raw while a guest runs, as it was on every way out.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use devices::virtio::console::Size;

/// The terminal's settings before we changed them, while they are changed. One for the process, like the terminal itself.
static SAVED: Mutex<Option<libc::termios>> = Mutex::new(None);

/// While it lives, what is typed goes to the guest key by key.
pub struct RawMode(());

impl RawMode {
    /// Switches standard input to raw mode if it is a terminal. Output processing stays on, so that our own lines look right.
    /// With `signals`, Ctrl-C and its like still end this process.
    pub fn enter(signals: bool) -> Option<Self> {
        if !std::io::stdin().is_terminal() {
            return None;
        }
        // SAFETY: termios is plain data for which all zeroes is valid; tcgetattr fills it in.
        let mut settings: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is standard input's and the pointer is valid for the call.
        if unsafe { libc::tcgetattr(libc::STDIN_FILENO, &raw mut settings) } != 0 {
            return None;
        }
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(settings);
        // SAFETY: the pointer is valid for the call.
        unsafe { libc::cfmakeraw(&raw mut settings) };
        settings.c_oflag |= libc::OPOST;
        if signals {
            settings.c_lflag |= libc::ISIG;
        }
        apply(&settings);
        Some(Self(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back if it was changed. May be called at any time and often.
pub fn restore() {
    if let Some(settings) = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        apply(&settings);
    }
}

/// Columns and rows of the terminal that standard output is; `None` if it is none.
pub fn size() -> Option<Size> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    Some(Size {
        columns: size.ws_col,
        rows: size.ws_row,
    })
}

/// A panic restores the terminal before its message is printed.
pub fn restore_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        print(info);
    }));
}

fn apply(settings: &libc::termios) {
    // SAFETY: the descriptor is standard input's and the pointer is valid for the call.
    unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, settings) };
}
