//! GPUs that answer some calls otherwise than the others.

use std::fs;

use domain::mode::VgpuMode;
use nodeagent::{
    gpus::inventory::Inventory, materialise::settings::Settings, nvml::data::MemorySource,
};
use nvml_sim::fault::{Action, Control, Rule};

use domain::mode::NodeMode;

use crate::world::{Agent, World, alone, is_unhealthy};

/// `NVML_ERROR_NOT_SUPPORTED` and `NVML_ERROR_UNKNOWN`.
const NOT_SUPPORTED: u32 = 3;
const UNKNOWN: u32 = 999;

/// Lets a call on GPU 0 fail.
fn fail(world: &World, call: &str, code: u32) {
    let rule = Rule {
        call: call.to_owned(),
        gpu: Some(0),
        nth: None,
        times: None,
        action: Action::Code(code),
    };
    let control = Control {
        rules: vec![rule],
        ..Control::default()
    };
    world.store().control(Some(&control)).unwrap();
}

/// Issue 12: a GPU whose memory NVML cannot report (GB10) is healthy, and has the size that the settings name.
#[test]
fn a_gpu_of_unknown_memory_is_offered_with_the_size_of_the_settings_or_whole() {
    alone(async |world: World| {
        let gpus = world.provision("a100-80gb", 2, false);
        fail(&world, "nvmlDeviceGetMemoryInfo", NOT_SUPPORTED);
        let surveyed = |inventory: &Inventory| inventory.nvml_failure.is_none();
        for (memory_mib, source, mib) in [
            (None, MemorySource::Unknown, 0),
            (Some(98_304), MemorySource::Settings, 98_304),
        ] {
            let settings = Settings {
                memory_mib,
                ..world.settings()
            };
            let agent = Agent::start(settings, NodeMode::HamiCore);
            let inventory = agent.until("surveyed", surveyed).await;
            let [odd, other] = [0, 1].map(|at: usize| &inventory.state.gpus[&gpus[at]]);
            assert!(!is_unhealthy(odd) && !is_unhealthy(other));
            assert_eq!(odd.mode(), VgpuMode::HamiCore);
            let models = [odd, other].map(|gpu| &gpu.surveyed.model);
            assert_eq!(models.map(|model| model.memory_mib), [mib, 81_920]);
            assert_ne!(models[0].name, models[1].name, "planned by themselves");
            let sources = inventory.found.iter().map(|gpu| gpu.memory);
            assert!(sources.eq([source, MemorySource::Nvml]));
            agent.end().await;
        }
    });
}

/// Issue 12: one call that fails costs its GPU alone, which says why.
#[test]
fn a_call_that_fails_costs_its_gpu_alone_until_it_succeeds() {
    alone(async |world: World| {
        let gpus = world.provision("a100-80gb", 2, true);
        for call in [
            "nvmlDeviceGetMinorNumber",
            "nvmlDeviceGetMigMode",
            "nvmlDeviceGetMemoryInfo",
            "nvmlDeviceGetName",
            "nvmlDeviceGetGpuInstancePossiblePlacements_v2",
        ] {
            fail(&world, call, UNKNOWN);
            let agent = world.agent();
            let surveyed = agent.until(call, Inventory::is_surveyed).await;
            assert_eq!(surveyed.nvml_failure, None, "{call}: the others answer");
            let reason = surveyed.unhealthy_reason(&gpus[0]).unwrap();
            assert!(reason.contains(call), "{reason}");
            assert_eq!(surveyed.unhealthy_reason(&gpus[1]), None, "{call}");
            world.store().control(None).unwrap();
            agent
                .until_gpu("healthy again", &gpus[0], |gpu| !is_unhealthy(gpu))
                .await;
            agent.end().await;
        }
    });
}

/// Issue 12: on x86 NVML reports no NUMA node; that of the PCI device counts.
#[test]
fn the_numa_node_is_that_of_the_pci_device() {
    alone(async |world: World| {
        let gpus = world.provision("a100-80gb", 2, true);
        let settings = world.settings();
        let device = settings.sysfs.join("bus/pci/devices/0000:02:00.0");
        fs::create_dir_all(&device).unwrap();
        fs::write(device.join("numa_node"), "1\n").unwrap();
        let agent = world.agent();
        let inventory = agent.until("surveyed", |i| i.nvml_failure.is_none()).await;
        let nodes = gpus
            .iter()
            .map(|uuid| inventory.state.gpus[uuid].surveyed.numa);
        assert!(nodes.eq([None, Some(1)]));
    });
}
