//! Faults, lost GPUs and resets.

use domain::mode::NodeMode;
use nodeagent::{
    gpus::{event::AgentEvent, inventory::Inventory},
    materialise::settings::Settings,
};
use nvml_sim::gpu::RECOVER_BY_RESET;

use crate::{
    support::{claim, pods},
    world::{Agent, TIMEOUT, World, alone, is_unhealthy, offer},
};

#[test]
fn a_gpu_that_reported_a_fault_is_reset_when_it_is_idle_and_offered_again() {
    alone(async |world: World| {
        let gpus = world.provision("h100-80gb", 2, true);
        let agent = world.agent();
        let own = claim(&gpus[0], &offer("1g.10gb"), 6);
        agent.devices_of("a", &own).await;
        let before = world.instances();
        // What comes before the agent listens is not reported.
        let listens = agent.event("GpuFault");
        agent.raise_until(&world, (31, None), listens).await;
        world.store().double_bit_error(0).unwrap();
        agent
            .until_gpu("the GPU is unhealthy", &gpus[0], is_unhealthy)
            .await;
        // Its pod goes on, and so does the other GPU.
        let of =
            |event: &AgentEvent| event.reason == "GpuFault" && event.message.contains("double bit");
        let event = agent.event_that("the double bit error", of).await;
        assert_eq!(event.pod_uid.as_deref(), Some("a"), "{event:?}");
        assert_eq!(world.instances(), before);
        let inventory = agent.nvml.inventory().borrow().clone();
        assert_eq!(inventory.unhealthy_reason(&gpus[1]), None);
        assert!(
            agent
                .nvml
                .ensure_devices("a", "main", TIMEOUT)
                .await
                .is_ok()
        );
        agent.nvml.set_pods(pods([]));
        agent
            .until_gpu("it is healthy after a reset", &gpus[0], |gpu| {
                !is_unhealthy(gpu)
            })
            .await;
        agent.event("GpuReset").await;
        let gpu = world.store().snapshot().unwrap().gpus[0].clone();
        assert_eq!((gpu.recovery_action, gpu.instances.len()), (0, 0));
    });
}

#[test]
fn an_applications_fault_and_one_of_an_instance_leave_the_gpu_alone() {
    alone(async |world: World| {
        let gpus = world.provision("a100-80gb", 1, true);
        let agent = world.agent();
        let own = claim(&gpus[0], &offer("1g.10gb"), 6);
        let devices = agent.devices_of("a", &own).await;
        let id = devices[0].gpu_instance;
        let event = agent.event("GpuFault");
        let event = agent.raise_until(&world, (31, Some(id)), event).await;
        assert!(event.message.contains("an application error"), "{event:?}");
        world.raise_xid(0, 94, Some(id));
        agent
            .until_gpu("the instance has a fault", &gpus[0], |gpu| {
                gpu.instances
                    .iter()
                    .any(|instance| instance.fault.is_some())
            })
            .await;
        assert_eq!(
            agent.nvml.inventory().borrow().unhealthy_reason(&gpus[0]),
            None
        );
        let before = world.instances();
        // The next pod at this place gets another one, although it is of the same shape.
        agent.nvml.set_pods(pods([("b", &own)]));
        agent
            .nvml
            .ensure_devices("b", "main", TIMEOUT)
            .await
            .unwrap();
        assert!(before.is_disjoint(&world.instances()), "{before:?}");
    });
}

#[test]
fn a_lost_gpu_leaves_the_others_alone_and_is_healthy_when_it_answers() {
    alone(async |world: World| {
        let gpus = world.provision("a100-80gb", 2, true);
        let lose = |lost| {
            let lose = world.store().with(|state| state.gpus[0].lost = lost);
            lose.unwrap();
        };
        let agent = world.agent();
        agent.until("surveyed", |i| i.nvml_failure.is_none()).await;
        let had = claim(&gpus[0], &offer("2g.20gb"), 0);
        agent.nvml.set_pods(pods([("had", &had)]));
        agent
            .nvml
            .ensure_devices("had", "main", TIMEOUT)
            .await
            .unwrap();
        lose(true);
        agent
            .until_gpu("lost", &gpus[0], |gpu| gpu.lost.is_some())
            .await;
        // The node and the pod that is on it get an Event.
        for uid in [None, Some("had")] {
            let of = |event: &AgentEvent| {
                event.reason == "GpuUnhealthy" && event.pod_uid.as_deref() == uid
            };
            let event = agent.event_that("GpuUnhealthy", of).await;
            assert!(event.message.contains("GPU is lost"), "{event:?}");
        }
        let own = claim(&gpus[1], &offer("2g.20gb"), 0);
        agent.devices_of("a", &own).await;
        // A pod that is bound to the lost GPU gets an Event, and is failed if that goes on.
        let other = claim(&gpus[0], &offer("2g.20gb"), 0);
        agent.nvml.set_pods(pods([("a", &own), ("b", &other)]));
        let event = agent.event("InstanceCreationFailed").await;
        assert_eq!(event.pod_uid.as_deref(), Some("b"), "{event:?}");
        lose(false);
        agent
            .until_gpu("back", &gpus[0], |gpu| !is_unhealthy(gpu))
            .await;
        agent
            .nvml
            .ensure_devices("b", "main", TIMEOUT)
            .await
            .unwrap();
        // Lost when the agent starts, it holds up nobody either.
        agent.end().await;
        lose(true);
        let agent = world.agent();
        let surveyed = agent.until("surveyed", Inventory::is_surveyed).await;
        assert!(surveyed.nvml_failure.is_some());
        agent.devices_of("a", &own).await;
    });
}

/// A GPU stays unhealthy while the driver requests a reset, and is healthy after it.
#[test]
fn a_reset_by_the_driver_that_is_pending_is_seen_at_the_start() {
    alone(async |world: World| {
        let gpus = world.provision("h100-80gb", 1, true);
        let set = |state: &mut nvml_sim::state::State| {
            state.gpus[0].recovery_action = RECOVER_BY_RESET;
        };
        world.store().with(set).unwrap();
        let settings = Settings {
            reset_command: vec![],
            ..world.settings()
        };
        let agent = Agent::start(settings, NodeMode::Mig);
        agent.until_gpu("unhealthy", &gpus[0], is_unhealthy).await;
        let event = agent.event("GpuUnhealthy").await;
        assert!(event.message.contains("requests a GPU reset"), "{event:?}");
        agent.end().await;
        let agent = world.agent();
        agent
            .until_gpu("healthy", &gpus[0], |gpu| !is_unhealthy(gpu))
            .await;
    });
}
