//! One test in a process of its own: a failing assertion ends the whole program.

use std::path::Path;
use std::time::{Duration, Instant};

use xtask::lab::process::{Ended, watch};
use xtask::{Result, tool};

use super::suite::Test;
use super::variant::{Stage, Variant};

/// What came of a test.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It passed, in this time.
    Passed(Duration),
    /// The test itself found that it cannot run, and why.
    Skipped(String),
    /// It failed: why, and all that was printed.
    Failed { reason: String, output: String },
    /// It was not run, since it cannot pass.
    Known(&'static str),
}

/// Runs `test` of `program` on devices that appear as `variant`.
///
/// # Errors
/// The program cannot be started.
pub fn run(program: &Path, test: &Test, stage: &Stage, variant: Variant, limit: Duration) -> Result<Verdict> {
    // The assertion that failed is on standard error, where it stands in the test on standard output.
    let mut command = tool::command("sh");
    command
        .args(["-c", "exec \"$0\" --tap -k -p \"$1\" 2>&1"])
        .arg(program)
        .arg(&test.path);
    stage.prepare(&mut command, variant);
    let started = Instant::now();
    let mut output = String::new();
    let ended = watch(&mut command, &[], limit, &mut |line| {
        output.push_str(&String::from_utf8_lossy(line))
    })?;
    let succeeded = match ended {
        Ended::Exited(status) => status.success(),
        Ended::TimedOut => {
            let reason = format!("did not end within {} s", limit.as_secs());
            return Ok(Verdict::Failed { reason, output });
        }
    };
    Ok(judge(&test.path, succeeded, output, started.elapsed()))
}

/// Reads what a test printed in TAP, the Test Anything Protocol.
fn judge(path: &str, succeeded: bool, output: String, took: Duration) -> Verdict {
    let mut results = output
        .lines()
        .filter(|line| line.starts_with("ok ") || line.starts_with("not ok "));
    let result = results.find_map(|line| Some((line.starts_with("ok "), line.split_once(path)?.1.trim())));
    match result {
        Some((true, rest)) if succeeded => match rest.strip_prefix("# SKIP") {
            Some(why) => Verdict::Skipped(why.trim().to_owned()),
            None => Verdict::Passed(took),
        },
        _ => Verdict::Failed {
            reason: reason(&output),
            output,
        },
    }
}

/// The line of the output that says best what went wrong: the program's own words, then the assertion, then the last.
fn reason(output: &str) -> String {
    let starts = |words: &'static [&str]| {
        move |line: &&str| words.iter().any(|word| line.starts_with(word)) && !line.ends_with("OK")
    };
    let lines = || output.lines().map(str::trim).filter(|line| !line.is_empty());
    lines()
        .find(starts(&["innkeeper:", "qemu-system-x86_64:", "thread '"]))
        .or_else(|| lines().find(starts(&["Bail out!", "ERROR:", "**ERROR", "not ok"])))
        .or_else(|| lines().rfind(|line| !line.starts_with('#')))
        .unwrap_or("ended without a word")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOK: Duration = Duration::from_secs(1);

    #[test]
    fn a_test_passes_when_its_own_line_and_its_status_say_so() {
        let output = "# random seed: R02S\nok 1 /x86_64/a/b\n1..1\n";
        assert_eq!(judge("/x86_64/a/b", true, output.into(), TOOK), Verdict::Passed(TOOK));
        for (path, succeeded) in [("/x86_64/a/b", false), ("/x86_64/a/c", true)] {
            let verdict = judge(path, succeeded, output.into(), TOOK);
            assert!(matches!(verdict, Verdict::Failed { .. }), "{verdict:?}");
        }
    }

    #[test]
    fn a_test_may_skip_itself() {
        let output = "ok 1 /x86_64/a # SKIP no socket\n1..1\n";
        assert_eq!(
            judge("/x86_64/a", true, output.into(), TOOK),
            Verdict::Skipped("no socket".into())
        );
    }

    #[test]
    fn the_reason_is_the_programs_own_words_or_the_assertion() {
        let assertion = "# start\nBail out! ERROR:../a.c:12:f: assertion failed\nAborted\n";
        assert_eq!(reason(assertion), "Bail out! ERROR:../a.c:12:f: assertion failed");
        let words = format!("{assertion}innkeeper: -frob: there is no such option\n");
        assert_eq!(reason(&words), "innkeeper: -frob: there is no such option");
        assert_eq!(reason("# only comments\n"), "ended without a word");
    }
}
