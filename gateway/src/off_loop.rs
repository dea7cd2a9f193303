//! Work that is not done on the agent's thread: inside one call of it the kernel may walk
//! the connections of the whole node.

use std::io;

/// Does `work` on another thread, which has a runtime of its own, and returns its result.
/// It goes on to its end even if the returned future is dropped.
///
/// # Errors
/// Those of `work`, and if there is no thread or runtime for it.
pub async fn off_loop<T, F>(work: impl FnOnce() -> F + Send + 'static) -> io::Result<T>
where
    T: Send + 'static,
    F: Future<Output = io::Result<T>>,
{
    let run = || tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work());
    tokio::task::spawn_blocking(run).await.map_err(io::Error::other)?
}
