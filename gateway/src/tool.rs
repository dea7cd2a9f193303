//! Running the programs that read and write the kernel's packet filter.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// One that takes longer hangs.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why a program did not do what it was run for.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It is not there, or cannot be started.
    #[error("{program} cannot be run: {error}")]
    Start {
        /// Its name.
        program: &'static str,
        /// What the system said.
        error: std::io::Error,
    },
    /// It hangs.
    #[error("{program} took longer than {TIMEOUT:?}")]
    Slow {
        /// Its name.
        program: &'static str,
    },
    /// It refused.
    #[error("{program}: {said}")]
    Failed {
        /// Its name.
        program: &'static str,
        /// What it printed, and its exit status.
        said: String,
    },
}

/// Runs a program to its end and returns its output. What it says on stderr is
/// an error only if its exit code is.
pub async fn run(program: &'static str, args: &[&str], input: &str) -> Result<String, RunError> {
    run_until(program, args, input, |_| std::future::pending()).await
}

/// The same, but not to its end if `done`, which is told its number, says
/// before that it has done what it was run for; there is no output then.
pub async fn run_until<F: Future<Output = ()>>(
    program: &'static str,
    args: &[&str],
    input: &str,
    done: impl FnOnce(u32) -> F,
) -> Result<String, RunError> {
    let start = |error| RunError::Start { program, error };
    // A pipe even for no input: /dev/null need not be there.
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let done = child.id().map(done);
    let done = async {
        match done {
            Some(done) => done.await,
            None => std::future::pending().await,
        }
    };
    let stdin = child.stdin.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read to the end says why itself.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let mut ends = Box::pin(child.wait_with_output());
    let both = async { tokio::join!(feed, &mut ends).1 };
    let output = tokio::select! {
        output = tokio::time::timeout(TIMEOUT, both) => Some(output),
        () = done => None,
    };
    let Some(output) = output else {
        // It is left to end by itself.
        tokio::spawn(tokio::time::timeout(TIMEOUT, ends));
        return Ok(String::new());
    };
    let output = output.map_err(|_| RunError::Slow { program })?.map_err(start)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    Err(RunError::Failed { program, said: format!("{} ({})", said.join("; "), output.status) })
}
