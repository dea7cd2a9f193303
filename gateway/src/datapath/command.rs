//! Running nft(8), iptables-save(8) and iptables-restore(8).

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// A program that takes longer is taken to hang.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why running a program failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The program does not exist, or cannot be started.
    #[error("{program} cannot be run: {error}")]
    Start {
        /// Its name.
        program: &'static str,
        /// The system's error.
        error: std::io::Error,
    },
    /// The program did not end in time.
    #[error("{program} took longer than {TIMEOUT:?}")]
    Slow {
        /// Its name.
        program: &'static str,
    },
    /// The program ended with an error.
    #[error("{program}: {output}")]
    Failed {
        /// Its name.
        program: &'static str,
        /// Its error output, and its exit status.
        output: String,
    },
}

impl RunError {
    /// Whether the program does not exist.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Start { error, .. } if error.kind() == std::io::ErrorKind::NotFound)
    }
}

/// Runs a program to its end and returns its output. Output on stderr is ignored
/// if the exit code is 0.
///
/// # Errors
/// If the program cannot be started, hangs, or fails.
pub async fn run(program: &'static str, args: &[&str], input: &str) -> Result<String, RunError> {
    run_until(program, args, input, |_| std::future::pending()).await
}

/// Runs a program until it ends, or until `done` resolves; `done` gets the process
/// ID. In the latter case the program ends in the background, and the returned
/// output is empty.
///
/// # Errors
/// If the program cannot be started, hangs, or fails.
pub async fn run_until<F: Future<Output = ()>>(
    program: &'static str,
    args: &[&str],
    input: &str,
    done: impl FnOnce(u32) -> F,
) -> Result<String, RunError> {
    let start = |error| RunError::Start { program, error };
    // A pipe even for no input: /dev/null may not exist.
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
            // A program that does not read all of it fails by itself.
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
        // Done: the program ends in the background.
        tokio::spawn(tokio::time::timeout(TIMEOUT, ends));
        return Ok(String::new());
    };
    let output = output.map_err(|_| RunError::Slow { program })?.map_err(start)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    Err(RunError::Failed { program, output: format!("{} ({})", lines.join("; "), output.status) })
}
