//! Waiting for something to become true, bounded.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;

/// Pause between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Polls until there is an answer; `what` was waited for, for the error of a timeout.
pub async fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> Result<T, Error> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = look().await {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            return Err(Error::Timeout {
                what: what.into(),
                waited: limit,
            });
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
