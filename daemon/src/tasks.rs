//! The named tasks of a process: the first to end ends the process, so that Kubernetes restarts it.

use std::{collections::HashMap, future::Future, time::Duration};

use anyhow::{Context, bail};
use tokio::task::{Id, JoinSet};
use tracing::Instrument;

use crate::shutdown::CancellationToken;

/// Time for tasks to end after the shutdown signal.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Tasks that live as long as the process.
#[derive(Debug)]
pub struct Tasks {
    token: CancellationToken,
    running: JoinSet<anyhow::Result<()>>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    /// No tasks yet; cancelling `token` ends them in order.
    pub fn new(token: CancellationToken) -> Self {
        Self {
            token,
            running: JoinSet::new(),
            names: HashMap::new(),
        }
    }

    /// Starts a task, in a span of its name.
    pub fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let handle = self
            .running
            .spawn(task.instrument(tracing::info_span!("task", name)));
        self.names.insert(handle.id(), name);
    }

    /// Starts a watch or loop that never ends by itself, until the token fires.
    pub fn spawn_loop(
        &mut self,
        name: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn(name, until(self.token.clone(), work));
    }

    /// Waits for the token, then for the tasks; a task that ends before is an error that names it.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let token = self.token.clone();
        let early = tokio::select! {
            () = token.cancelled() => None,
            ended = self.running.join_next_with_id() => ended,
        };
        let result = match early {
            Some(Ok((id, Ok(())))) if !self.token.is_cancelled() => {
                Err(anyhow::anyhow!("task {} ended early", self.name(id)))
            }
            None | Some(Ok((_, Ok(())))) => Ok(()),
            Some(Ok((id, Err(error)))) => {
                Err(error.context(format!("task {} failed", self.name(id))))
            }
            Some(Err(error)) => {
                let name = self.name(error.id());
                Err(error).with_context(|| format!("task {name} panicked"))
            }
        };
        self.token.cancel();
        let drained = tokio::time::timeout(DRAIN_TIMEOUT, async {
            while let Some(ended) = self.running.join_next().await {
                ended??;
            }
            anyhow::Ok(())
        })
        .await;
        result?;
        if let Ok(rest) = drained {
            rest
        } else {
            let late = self.running.len();
            tracing::warn!(late, "Tasks did not end before the drain timeout");
            Ok(())
        }
    }

    fn name(&self, id: Id) -> &'static str {
        self.names.get(&id).copied().unwrap_or("unnamed")
    }
}

/// Runs a watch or loop until the token fires; an end before that is an error.
async fn until(token: CancellationToken, work: impl Future<Output = ()>) -> anyhow::Result<()> {
    match token.run_until_cancelled(work).await {
        None => Ok(()),
        // What it worked on ended with the token, and was noticed first.
        Some(()) if token.is_cancelled() => Ok(()),
        Some(()) => bail!("it ended by itself"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_dead_task_ends_the_process() {
        let token = CancellationToken::new();
        let mut tasks = Tasks::new(token.clone());
        let waiting = token.clone();
        tasks.spawn("steady", async move {
            waiting.cancelled().await;
            Ok(())
        });
        tasks.spawn("weak", async { bail!("no more") });
        let error = format!("{:#}", tasks.run().await.unwrap_err());
        assert_eq!(error, "task weak failed: no more");
        assert!(token.is_cancelled());
    }

    #[tokio::test]
    async fn a_shutdown_is_no_error() {
        let token = CancellationToken::new();
        let mut tasks = Tasks::new(token.clone());
        tasks.spawn_loop("steady", std::future::pending());
        // As a loop does that sees its channel closed in the poll in which the token fires.
        let shutdown = token.clone();
        tasks.spawn_loop("ends with the token", async move { shutdown.cancel() });
        tasks.run().await.unwrap();
    }
}
