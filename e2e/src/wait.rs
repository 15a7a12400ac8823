//! Waiting for something to become true, bounded.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;

/// Between two looks.
const STEP: Duration = Duration::from_millis(50);

/// Looks again and again until there is an answer; `what` goes into the error when the time is over.
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
        tokio::time::sleep(STEP).await;
    }
}
