//! A driver whose calls hang, or that was replaced.

use std::time::Duration;

use nvml_sim::fault::Action;

use crate::{
    support::{claim, pods},
    world::{TIMEOUT, World, alone, is_unhealthy, offer},
};

#[test]
fn a_call_that_hangs_is_reported_and_holds_up_nobody_who_asks() {
    alone(async |world: World| {
        let gpus = world.provision("a100-80gb", 2, true);
        let agent = world.agent();
        agent.until("surveyed", |i| i.nvml_failure.is_none()).await;
        let watched = agent.nvml.clone().watch_for_hangs(Duration::from_secs(1));
        tokio::spawn(watched);
        // Longer than the watch's limit, and over before the test's.
        let slow = Action::DelayMs(6_000);
        world.order_faults(&[("nvmlDeviceCreateGpuInstanceWithPlacement", slow, Some(1))]);
        let own = claim(&gpus[0], &offer("1g.10gb"), 6);
        agent.nvml.set_pods(pods([("a", &own)]));
        let limit = Duration::from_millis(500);
        let blocked = agent
            .nvml
            .ensure_devices("a", "main", limit)
            .await
            .unwrap_err();
        assert!(
            blocked.to_string().contains("NVML may be slow"),
            "{blocked}"
        );
        let event = agent.event("NvmlHangs").await;
        assert!(event.message.contains("creating 1g.10gb"), "{event:?}");
        let inventory = agent.nvml.inventory().borrow().clone();
        assert!(
            inventory.unhealthy_reason(&gpus[1]).is_some(),
            "no GPU can be used now"
        );
        agent.until("it returned", |i| i.nvml_hang.is_none()).await;
        agent
            .nvml
            .ensure_devices("a", "main", TIMEOUT)
            .await
            .unwrap();
    });
}

/// Issue 12: while the GPU operator upgrades the driver, no session is open and nothing is offered.
#[test]
fn the_driver_is_left_alone_while_it_is_upgraded() {
    alone(async |world: World| {
        let gpus = world.provision("a100-80gb", 1, true);
        let agent = world.agent();
        agent.until("surveyed", |i| i.nvml_failure.is_none()).await;
        let own = claim(&gpus[0], &offer("1g.10gb"), 6);
        agent.nvml.set_pods(pods([("a", &own)]));
        let devices = agent.nvml.ensure_devices("a", "main", TIMEOUT).await;
        assert_eq!(devices.unwrap().len(), 1);
        agent.nvml.set_pause(Some("upgrade".to_owned()));
        agent.until("paused", |i| i.pause.is_some()).await;
        assert_eq!(world.store().sessions(), 0);
        let reason = agent.nvml.inventory().borrow().unhealthy_reason(&gpus[0]);
        assert_eq!(reason.as_deref(), Some("upgrade"));
        let blocked = agent.nvml.ensure_devices("a", "main", TIMEOUT).await;
        assert_eq!(blocked.unwrap_err().to_string(), "upgrade");
        // The new driver knows none of the instances.
        nvml_sim::reboot(&world.dir).unwrap();
        agent.nvml.set_pause(None);
        agent.until("back", |i| i.pause.is_none()).await;
        let devices = agent.nvml.ensure_devices("a", "main", TIMEOUT).await;
        assert_eq!(devices.unwrap().len(), 1);
        // One that starts meanwhile does not open the driver, and one that ends does not open it again.
        agent.nvml.set_pause(Some("upgrade".to_owned()));
        agent.until("paused", |i| i.pause.is_some()).await;
        agent.end().await;
        assert_eq!(world.store().sessions(), 0);
    });
}

#[test]
fn a_driver_that_was_replaced_ends_the_agent_and_a_dead_session_is_opened_again() {
    alone(async |world: World| {
        let gpus = world.provision("a100-80gb", 1, true);
        let agent = world.agent();
        agent.until("surveyed", |i| i.nvml_failure.is_none()).await;
        // UNINITIALIZED: the driver was reloaded.
        world.order_faults(&[("nvmlDeviceGetCount_v2", Action::Code(1), None)]);
        let fails = agent.until("NVML fails", |i| i.nvml_failure.is_some());
        agent.raise_until(&world, (154, None), fails).await;
        world.order_faults(&[]);
        agent
            .until("NVML answers", |i| i.nvml_failure.is_none())
            .await;
        assert!(!is_unhealthy(
            &agent.nvml.inventory().borrow().state.gpus[&gpus[0]]
        ));
        // LIB_RM_VERSION_MISMATCH: only a new process loads the new library.
        world.order_faults(&[
            ("nvmlDeviceGetCount_v2", Action::Code(1), None),
            ("nvmlInit_v2", Action::Code(18), None),
        ]);
        let watched = agent.nvml.clone().watch_for_hangs(Duration::from_secs(1));
        let ended = tokio::time::timeout(TIMEOUT, watched);
        let ended = agent.raise_until(&world, (154, None), ended).await;
        assert!(ended.unwrap().is_err());
    });
}
