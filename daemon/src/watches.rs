//! Watches of the API server: a list of objects, then each change, for ever.

use std::{collections::BTreeSet, fmt::Debug};

use futures::{StreamExt, pin_mut};
use kube::{
    Api, ResourceExt,
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use serde::de::DeserializeOwned;

use crate::ready::Latch;

/// One change of a watched kind.
#[derive(Debug)]
pub enum Change<K> {
    /// The object exists, in this state.
    Apply(Box<K>),
    /// The object was deleted; this was its last state.
    Delete(Box<K>),
    /// A list is complete: objects that are not in it are gone.
    Complete {
        /// UIDs of the objects in the list.
        uids: BTreeSet<String>,
        /// Names of the objects in the list.
        names: BTreeSet<String>,
    },
}

/// Calls `on_change` for every change of the objects of a kind, for ever; releases the latch after the first list.
pub async fn watch<K>(
    api: Api<K>,
    config: watcher::Config,
    latch: Option<Latch>,
    mut on_change: impl FnMut(Change<K>),
) where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut latch = latch;
    let (mut uids, mut names) = (BTreeSet::new(), BTreeSet::new());
    let events = watcher(api, config)
        .default_backoff()
        // Half of a pod's bytes, and nobody reads them.
        .modify(|object| object.managed_fields_mut().clear());
    pin_mut!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => {
                uids.clear();
                names.clear();
            }
            Ok(Event::InitApply(object)) => {
                uids.extend(object.uid());
                names.insert(object.name_any());
                on_change(Change::Apply(Box::new(object)));
            }
            Ok(Event::InitDone) => {
                on_change(Change::Complete {
                    uids: std::mem::take(&mut uids),
                    names: std::mem::take(&mut names),
                });
                if let Some(latch) = latch.take() {
                    latch.release();
                }
            }
            Ok(Event::Apply(object)) => on_change(Change::Apply(Box::new(object))),
            Ok(Event::Delete(object)) => on_change(Change::Delete(Box::new(object))),
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "Watch failed, retrying"
            ),
        }
    }
}
