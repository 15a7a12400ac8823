//! How each disturbance is inflicted, and how it ends.

use std::time::Duration;

use e2e::{cluster::component::Component, tessera::agent};
use k8s_openapi::jiff::Timestamp;
use kube::api::DeleteParams;
use rand::{Rng, seq::IndexedRandom};
use tokio::time::Instant;

use super::{
    Chaos,
    disturbance::{Disturbance, JUMPS},
    faults::{self, STORM_FAILURES},
    frozen::Frozen,
    limits::FEW_FAILURES,
    look,
    nodes::{FOREIGN, NODES, REAL, is_foreign},
};

/// How long a node is without power, at least: more than a second, the resolution of times in the API.
const POWER_OFF_TIME: Duration = Duration::from_millis(1_500);

impl Chaos {
    /// Begins a disturbance; [`Self::restore`] ends it.
    pub(super) async fn disturb(&mut self, what: Disturbance) -> anyhow::Result<()> {
        let node = *NODES.choose(&mut self.random).unwrap_or(&REAL);
        let gpus = self.tessera.cluster.state_dir.gpus(node);
        match what {
            Disturbance::AgentKilled => self.kill(agent(node)).await,
            Disturbance::PluginKilled => self.kill("plugin".to_owned()).await,
            Disturbance::WebhookKilled => self.kill("webhook".to_owned()).await,
            Disturbance::SchedulerKilled => self.kill("tessera-scheduler".to_owned()).await,
            Disturbance::AgentFrozen => {
                self.freeze(agent(node));
                Ok(())
            }
            Disturbance::PluginFrozen => {
                self.freeze("plugin".to_owned());
                Ok(())
            }
            Disturbance::AgentUpdated => {
                let away = self.random_time(1_000..4_000);
                self.restart(agent(node), away).await
            }
            Disturbance::KubeletRestarted => {
                let kubelet = self.tessera.kubelet(node);
                self.restart(kubelet, Duration::ZERO).await
            }
            Disturbance::ApiServerAway => {
                let name = Component::ApiServer.name().to_owned();
                self.kill(name.clone()).await?;
                let until = Instant::now() + self.random_time(2_000..3_500);
                self.away.insert(name, until);
                Ok(())
            }
            Disturbance::NodeRebooted(node) => self.reboot(node).await,
            Disturbance::ClockJumps => {
                let offset = *JUMPS.choose(&mut self.random).unwrap_or(&"+2h");
                println!("         {offset}");
                self.tessera.set_clock(offset)?;
                self.clock_back = Some(Instant::now() + self.random_time(8_000..15_000));
                Ok(())
            }
            Disturbance::DestroyInUse => {
                let times = self.random.random_range(FEW_FAILURES);
                faults::inject(&gpus, faults::destroy_in_use(times.into())).await
            }
            Disturbance::DestroyStorm => self.storm().await,
            Disturbance::CreateFails => {
                let times = self.random.random_range(1..3);
                faults::inject(&gpus, faults::create_fails(times)).await
            }
            Disturbance::GpuFault => {
                let gpu = self.one_gpu(node)?;
                faults::fault(&gpus, gpu).await
            }
            Disturbance::GpuLost => {
                let (gpu, time) = (self.one_gpu(node)?, self.random_time(3_000..8_000));
                faults::lose(&gpus, gpu, time).await
            }
        }
    }

    /// Any GPU of a node but the one with the foreign instance, which no agent can recover.
    fn one_gpu(&mut self, node: &str) -> anyhow::Result<usize> {
        let count = self.simulated_gpus(node)?.gpus.len();
        let ours: Vec<usize> = (0..count).filter(|gpu| !is_foreign(node, *gpu)).collect();
        let gpu = ours.choose(&mut self.random).copied().unwrap_or_default();
        println!("         GPU {gpu} of {node}");
        Ok(gpu)
    }

    async fn kill(&mut self, name: String) -> anyhow::Result<()> {
        self.tessera.cluster.processes.crash(&name).await?;
        let until = Instant::now() + self.random_time(0..1_500);
        self.away.insert(name, until);
        Ok(())
    }

    /// Ends a process in order; it is started again after this time.
    async fn restart(&mut self, name: String, away: Duration) -> anyhow::Result<()> {
        self.tessera.cluster.processes.stop(&name).await?;
        self.away.insert(name, Instant::now() + away);
        Ok(())
    }

    fn freeze(&mut self, name: String) {
        let time = self.random_time(3_000..8_000);
        if let Some(process) = self.tessera.cluster.processes.running(&name) {
            self.frozen.push(Frozen::new(name, process, time));
        }
    }

    /// Reboots a node. Every other time its agent is up before kubelet, and its pods come back; otherwise kubelet fails them.
    async fn reboot(&mut self, node: &'static str) -> anyhow::Result<()> {
        self.tessera.power_off(node).await?;
        self.checker.reboot(node);
        self.rebooted.insert(node, Timestamp::now());
        if node == FOREIGN.0 {
            self.make_foreign()?;
        }
        let what = Disturbance::NodeRebooted(node);
        let times = self.tally.disturbances.get(&what);
        let late = if times.is_some_and(|times| times % 2 == 0) {
            self.random_time(3_000..6_000)
        } else {
            Duration::ZERO
        };
        println!("         its agent starts {} ms late", late.as_millis());
        let on = Instant::now() + POWER_OFF_TIME;
        let kubelet = self.tessera.kubelet(node);
        self.away.insert(agent(node), on + late);
        self.away.insert(kubelet, on + Duration::from_secs(1));
        if node == REAL {
            let containerd = Component::Containerd.name().to_owned();
            self.away.insert(containerd, on);
        }
        Ok(())
    }

    /// On one GPU with instances of ours nothing can be destroyed, for longer than it takes to be quarantined.
    async fn storm(&mut self) -> anyhow::Result<()> {
        let mut used = Vec::new();
        for node in NODES {
            for (index, gpu) in self.simulated_gpus(node)?.gpus.into_iter().enumerate() {
                if gpu.instances.len() > usize::from(is_foreign(node, index)) {
                    used.push((node, index, gpu.uuid()));
                }
            }
        }
        let Some((node, index, uuid)) = used.choose(&mut self.random) else {
            return Ok(());
        };
        let times = [(); 2].map(|()| self.random.random_range(STORM_FAILURES));
        let time = self.random_time(12_000..20_000);
        println!("         GPU {index} of {node}");
        let gpus = self.tessera.cluster.state_dir.gpus(node);
        faults::inject(&gpus, faults::storm(*index, times)).await?;
        self.storms.push((*node, Instant::now() + time));
        let until = self.started.elapsed() + time;
        self.checker.storm(node, uuid, until);
        // Otherwise the agent might have nothing to destroy there in this time.
        let pods = self.pods();
        let here = |pod: &look::Pod| pod.slots.iter().any(|slot| slot.gpu == *uuid);
        for pod in self.claimed_pods().await.unwrap_or_default() {
            let params = DeleteParams::default();
            if here(&pod) && pods.delete(&pod.name, &params).await.is_ok() {
                self.tally.deleted += 1;
            }
        }
        Ok(())
    }
}
