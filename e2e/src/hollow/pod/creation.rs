//! The creation of a container: `PreStartContainer`, CDI, and the file that stands for it.

use std::{io, time::Duration};

use k8s_openapi::api::core::v1::Container as ContainerSpec;
use nodeagent::kubelet::api::device_plugin::{ContainerAllocateResponse, PreStartContainerRequest};
use prost::Message;

use super::pod_run::PodRun;
use crate::hollow::{
    cdi::{self, UnresolvableDevice},
    devices::Allocation,
    plugins::{self, PluginError},
    status::{State, now},
};

/// Limit of a `PreStartContainer` call (kubelet: `pluginapi.KubeletPreStartContainerRPCTimeoutInSecs`).
const PRE_START_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a container cannot be created.
#[derive(Debug, thiserror::Error)]
enum CreateError {
    #[error(transparent)]
    Plugin(#[from] PluginError),
    #[error("PreStartContainer: deadline exceeded")]
    PreStartDeadline,
    /// The plugin's words.
    #[error("PreStartContainer: {0}")]
    PreStart(String),
    #[error(transparent)]
    AllocateResponse(#[from] prost::DecodeError),
    #[error(transparent)]
    Cdi(#[from] UnresolvableDevice),
    #[error(transparent)]
    File(#[from] io::Error),
}

impl PodRun {
    /// Creates a container, retrying until it can be; one that runs already is left alone.
    pub(super) async fn start(&self, spec: &ContainerSpec) {
        let mut pause = Duration::from_secs(1);
        while !self.state(&spec.name).is_running() {
            match self.create(spec).await {
                Ok(()) => self.change(&spec.name, |container| {
                    container.state = State::Running { since: now() };
                }),
                Err(error) => {
                    let message = error.to_string();
                    tracing::warn!(
                        pod = self.key(),
                        container = spec.name,
                        message,
                        "CreateContainerError"
                    );
                    self.change(&spec.name, |container| {
                        container.state = State::Waiting {
                            reason: "CreateContainerError".to_owned(),
                            message,
                        };
                    });
                    self.report().await;
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(10));
                    continue;
                }
            }
            self.report().await;
        }
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<(), CreateError> {
        let mut names = Vec::new();
        for Allocation {
            resource,
            ids,
            response,
            ..
        } in self
            .node
            .with_devices(|devices| devices.allocations_of(&self.uid, &spec.name))
        {
            let (endpoint, pre_start) = self.plugin(&resource)?;
            if pre_start {
                let mut client = plugins::dial(&self.node, &endpoint).await?;
                // Not the order of Allocate: that, too, is as kubelet does.
                let devices_ids = ids.into_iter().rev().collect();
                let call = client.pre_start_container(PreStartContainerRequest { devices_ids });
                tokio::time::timeout(PRE_START_TIMEOUT, call)
                    .await
                    .map_err(|_| CreateError::PreStartDeadline)?
                    .map_err(|status| CreateError::PreStart(status.message().to_owned()))?;
            }
            let response = ContainerAllocateResponse::decode(response.as_slice());
            let devices = response?.cdi_devices;
            names.extend(devices.into_iter().map(|device| device.name));
        }
        let mut created = cdi::resolve(&self.node.cdi(), &names)?;
        created["pod"] = self.key().into();
        let file = self.node.container(&self.uid, &spec.name);
        std::fs::create_dir_all(file.parent().unwrap_or(&self.node.dir))?;
        Ok(std::fs::write(&file, created.to_string())?)
    }
}
