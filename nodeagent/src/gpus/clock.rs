//! Time as the decisions see it.

/// Milliseconds on the agent's own monotonic clock, since its start.
pub type Millis = u64;

/// The earliest time at which something is to be done.
#[derive(Debug, Default)]
pub(crate) struct Wakeup(Option<Millis>);

impl Wakeup {
    /// Wakes up at this time, if not earlier.
    pub(crate) fn request(&mut self, at: Millis) {
        self.0 = Some(self.0.map_or(at, |known| known.min(at)));
    }

    /// The time; `None`: nothing was requested.
    pub(crate) fn time(&self) -> Option<Millis> {
        self.0
    }
}
