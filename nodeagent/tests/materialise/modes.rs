//! Modes: changed, kept over a reboot, not supported.

use domain::mode::VgpuMode;
use nvml_sim::fault::{Action, Control, Rule};

use crate::{
    support::{claim, pods},
    world::{TIMEOUT, World, alone, is_unhealthy, offer},
};

/// Peer lesson: both results of `SetMigMode`; a mode that cannot be changed is reported, with the processes that prevent it.
#[test]
fn a_mode_that_waits_for_a_reset_or_a_client_is_reported_and_comes_by_itself() {
    alone(async |world: World| {
        let gpus = world.provision("a100-80gb", 1, false);
        let mut client = world.start_process(0, false);
        // SUCCESS, and an activation status of IN_USE: only the pending mode changes.
        world.order_faults(&[("nvmlDeviceSetMigMode", Action::Activation(19), Some(1))]);
        let agent = world.agent();
        let event = agent.event("ModeChangeFailed").await;
        let name = format!("(process {})", client.id());
        assert!(event.message.contains(&name), "{event:?}");
        let mode = |world: &World| {
            let gpu = &world.store().snapshot().unwrap().gpus[0];
            (gpu.mig, gpu.pending)
        };
        assert_eq!(
            mode(&world),
            (false, false),
            "not asked while somebody is on it"
        );
        client.kill().unwrap();
        client.wait().unwrap();
        agent
            .until_gpu("MIG mode by a reset", &gpus[0], |gpu| {
                gpu.mode() == VgpuMode::Mig
            })
            .await;
        assert_eq!(mode(&world), (true, true));
        agent.event("ModeChanged").await;
    });
}

#[test]
fn after_a_reboot_mode_and_instances_come_back_by_themselves() {
    alone(async |world: World| {
        let gpus = world.provision("h100-80gb", 1, true);
        let agent = world.agent();
        let [stays, goes] = [6, 0].map(|start| claim(&gpus[0], &offer("1g.10gb"), start));
        agent
            .nvml
            .set_pods(pods([("stays", &stays), ("goes", &goes)]));
        for uid in ["stays", "goes"] {
            agent
                .nvml
                .ensure_devices(uid, "main", TIMEOUT)
                .await
                .unwrap();
        }
        agent.end().await;
        nvml_sim::reboot(&world.dir).unwrap();
        assert!(
            !world.store().snapshot().unwrap().gpus[0].mig,
            "Hopper forgets"
        );
        let agent = world.agent();
        agent.nvml.set_pods(pods([("stays", &stays)]));
        let devices = agent.nvml.ensure_devices("stays", "main", TIMEOUT).await;
        assert_eq!(devices.unwrap().len(), 1);
        let starts: Vec<u8> = world
            .instances()
            .iter()
            .map(|(_, start, ..)| *start)
            .collect();
        assert_eq!(starts, [6]);
    });
}

/// Peer lesson: GPUs without MIG go on working.
#[test]
fn a_gpu_without_mig_works_on_in_shares_on_a_mig_node() {
    alone(async |world: World| {
        let gpus = world.provision("a100-80gb", 2, true);
        let rule = Rule {
            call: "nvmlDeviceGetMigMode".to_owned(),
            gpu: Some(1),
            nth: None,
            times: None,
            // NOT_SUPPORTED
            action: Action::Code(3),
        };
        let control = Control {
            rules: vec![rule],
            ..Control::default()
        };
        world.store().control(Some(&control)).unwrap();
        let agent = world.agent();
        let inventory = agent.until("surveyed", |i| i.nvml_failure.is_none()).await;
        let plain = &inventory.state.gpus[&gpus[1]];
        assert_eq!(
            (plain.mode(), is_unhealthy(plain)),
            (VgpuMode::HamiCore, false)
        );
        assert!(plain.surveyed.model.offers.is_empty());
        assert_eq!(inventory.state.changing_to(&gpus[1]), None);
        let own = claim(&gpus[0], &offer("1g.10gb"), 6);
        agent.devices_of("a", &own).await;
    });
}
