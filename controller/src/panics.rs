//! Panics: contained where one object or one key is handled, fatal elsewhere.
//!
//! The controller reads objects that anyone may write. A mistake in how one of
//! them is handled must cost that object, not every Service of the cluster:
//! [`contain`] drops it, and the caller names it in the log. A panic anywhere
//! else ends the process at once, so that no task is missing while the others
//! go on.

use std::any::Any;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

thread_local! {
    /// Whether this thread is inside [`contain`].
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// A panic that was contained: its message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("internal error: {0}")]
pub struct Panic(String);

impl Panic {
    fn of(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        Self(text.unwrap_or("panic").to_owned())
    }
}

/// Has every panic outside [`contain`] end the process, after its report.
pub fn abort_unless_contained() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        if !CONTAINED.get() {
            std::process::abort();
        }
    }));
}

/// Runs `work`.
///
/// What it shares with others must bear being left half done: every state here
/// is brought up to date again by the next event or run.
///
/// # Errors
/// It panicked.
pub fn contain<T>(work: impl FnOnce() -> T) -> Result<T, Panic> {
    let outer = CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(outer);
    result.map_err(|payload| Panic::of(payload.as_ref()))
}

/// [`contain`] for a future.
///
/// # Errors
/// It panicked.
pub async fn contain_future<T>(work: impl Future<Output = T>) -> Result<T, Panic> {
    let mut work = pin!(work);
    poll_fn(|cx| match contain(|| work.as_mut().poll(cx)) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn contained_panic_is_returned_as_its_message() {
        assert_eq!(contain(|| 1), Ok(1));
        assert_eq!(contain(|| panic!("no {}", "way")), Err::<(), _>(Panic("no way".into())));
        let late = async {
            tokio::task::yield_now().await;
            panic!("late")
        };
        assert_eq!(contain_future(late).await, Err::<(), _>(Panic("late".into())));
        assert!(!CONTAINED.get());
    }
}
