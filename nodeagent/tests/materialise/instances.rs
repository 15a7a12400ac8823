//! Whose an instance is: foreign ones, those with processes, those that were replaced.

use std::time::Duration;

use domain::{
    config::FilterDevices,
    gpu::InstanceState,
    mode::{NodeMode, VgpuMode},
};
use nodeagent::{gpus::inventory::Inventory, materialise::settings::Settings};

use crate::{
    support::{claim, pods},
    world::{Agent, TIMEOUT, World, alone, offer},
};

/// Peer lesson: GPUs that must not be touched are not, also at the start; what is not ours is never destroyed.
#[test]
fn what_is_filtered_or_foreign_is_not_touched_at_the_start() {
    alone(async |world: World| {
        let gpus = world.provision("a100-80gb", 3, true);
        let small = offer("1g.10gb");
        let create = |gpu: usize| {
            let created = world.store().with(|state| {
                state.gpus[gpu].mig = true;
                state.gpus[gpu].create_at(small.profile_id, 0, small.size)
            });
            created.unwrap().unwrap();
        };
        (0..3).for_each(create);
        let before = world.instances();
        let settings = Settings {
            filter: FilterDevices {
                uuid: vec![gpus[1].clone()],
                index: vec![2],
            },
            ..world.settings()
        };
        let agent = Agent::start(settings, NodeMode::HamiCore);
        let inventory = agent.until("surveyed", |i| i.nvml_failure.is_none()).await;
        let known = &inventory.state.gpus;
        assert_eq!(known.keys().collect::<Vec<_>>(), [&gpus[0]]);
        let instance = &known[&gpus[0]].instances[0];
        assert_eq!(instance.state(), InstanceState::Foreign);
        // The wanted mode has to wait for whoever created the instance.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(world.instances(), before);
        let changing = agent.nvml.inventory().borrow().state.changing_to(&gpus[0]);
        assert_eq!(changing, Some(VgpuMode::HamiCore));
    });
}

/// Peer lesson: a slot is free when the process is gone, not when the pod is.
#[test]
fn processes_of_a_pod_that_is_gone_keep_its_instance_also_over_a_restart() {
    alone(async |world: World| {
        let gpus = world.provision("a100-80gb", 1, true);
        let agent = world.agent();
        let own = claim(&gpus[0], &offer("1g.10gb"), 6);
        agent.devices_of("a", &own).await;
        let mut process = world.start_process(0, true);
        let before = world.instances();
        let lingers = |inventory: &Inventory| {
            let states = inventory.state.gpus.values().flat_map(|c| &c.instances);
            let mut states =
                states.map(|instance| (instance.state(), instance.claimed_by().is_none()));
            states.next() == Some((InstanceState::InUse, true))
        };
        agent.nvml.set_pods(pods([]));
        agent.until("in use without a pod", lingers).await;
        agent.end().await;
        let agent = world.agent();
        agent.until("still in use", lingers).await;
        // Nobody else gets it meanwhile.
        agent.nvml.set_pods(pods([("b", &own)]));
        let blocked = agent
            .nvml
            .ensure_devices("b", "main", Duration::from_secs(2))
            .await;
        assert!(blocked.is_err(), "{blocked:?}");
        assert_eq!(world.instances(), before);
        process.kill().unwrap();
        process.wait().unwrap();
        let devices = agent.nvml.ensure_devices("b", "main", TIMEOUT).await;
        assert_eq!(devices.unwrap().len(), 1);
    });
}

/// Peer lesson: never destroy what is not provably ours; ids and UUIDs are reused.
#[test]
fn an_instance_that_another_tool_replaced_is_not_destroyed() {
    alone(async |world: World| {
        let gpus = world.provision("a100-80gb", 1, true);
        let agent = world.agent();
        let own = claim(&gpus[0], &offer("3g.40gb"), 0);
        let devices = agent.devices_of("a", &own).await;
        // At the same place and id and with the same UUID, but another profile.
        let (id, other) = (devices[0].gpu_instance, offer("4g.40gb"));
        let replaced = world.store().with(|state| {
            let gpu = &mut state.gpus[0];
            gpu.instances.clear();
            let id = gpu.create_at(other.profile_id, 0, other.size)?;
            gpu.create_compute(id, 3).map(|_| id)
        });
        assert_eq!(replaced.unwrap(), Ok(id));
        let before = world.instances();
        agent.nvml.set_pods(pods([]));
        let foreign = |inventory: &Inventory| {
            let mut all = inventory.state.gpus.values().flat_map(|c| &c.instances);
            all.next()
                .is_some_and(|instance| instance.state() == InstanceState::Foreign)
        };
        agent.until("it is foreign", foreign).await;
        assert_eq!(world.instances(), before);
    });
}
