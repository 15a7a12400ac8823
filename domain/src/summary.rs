//! The lines of a `GpuNode` that `kubectl get` prints.

use crate::{
    demand::ContainerKind,
    gpu::{Gpu, Instance, InstanceState},
    mode::VgpuMode,
    slices::Slices,
    status::GpuNodeStatus,
};

/// How much of a GPU is used.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fill {
    Full,
    Part,
    Free,
    Unhealthy,
}

impl GpuNodeStatus {
    /// Fills [`summary`](Self::summary), [`layout`](Self::layout) and [`in_use`](Self::in_use) from the GPUs.
    #[must_use]
    pub fn with_summary(mut self) -> Self {
        let in_use: usize = self.gpus.iter().map(in_use).sum();
        self.in_use = u32::try_from(in_use).unwrap_or(u32::MAX);
        let lines: Vec<String> = self.gpus.iter().map(line).collect();
        self.layout = lines.join(" | ");
        let fills: Vec<Fill> = self.gpus.iter().map(|gpu| self.fill(gpu)).collect();
        let named = [
            (Fill::Full, "full"),
            (Fill::Part, "part"),
            (Fill::Free, "free"),
            (Fill::Unhealthy, "unhealthy"),
        ];
        let counts = named.into_iter().filter_map(|(fill, name)| {
            let count = fills.iter().filter(|known| **known == fill).count();
            (count > 0).then(|| format!("{count} {name}"))
        });
        self.summary = counts.collect::<Vec<_>>().join(", ");
        self
    }

    fn fill(&self, gpu: &Gpu) -> Fill {
        if gpu.unhealthy.is_some() {
            return Fill::Unhealthy;
        }
        let (is_used, is_full) = match gpu.mode {
            VgpuMode::Mig => {
                let all = self
                    .model(&gpu.model)
                    .map_or(0, |model| model.memory_slices);
                let held: Slices = gpu
                    .instances
                    .iter()
                    .filter(|instance| instance.state != InstanceState::Idle)
                    .map(Instance::slices)
                    .collect();
                (held.count() > 0, held.count() >= u32::from(all))
            }
            VgpuMode::HamiCore => {
                let shares = gpu.used_shares.iter();
                let running = shares.filter(|share| share.kind != ContainerKind::Init);
                let (mut count, mut mib, mut cores) = (0, 0, 0);
                for share in running {
                    count += 1;
                    mib += share.memory_mib;
                    cores += share.cores;
                }
                let is_full = count >= gpu.max_shares || mib >= gpu.memory_mib || cores >= 100;
                (!gpu.used_shares.is_empty(), is_full)
            }
        };
        match (is_used, is_full) {
            (false, _) => Fill::Free,
            (true, false) => Fill::Part,
            (true, true) => Fill::Full,
        }
    }
}

/// Instances and shares in use.
fn in_use(gpu: &Gpu) -> usize {
    let instances = gpu.instances.iter();
    let instances = instances.filter(|instance| instance.state == InstanceState::InUse);
    let shares = gpu.used_shares.iter();
    let shares = shares.filter(|share| share.kind != ContainerKind::Init);
    instances.count() + shares.count()
}

/// A GPU with all that is on it.
fn line(gpu: &Gpu) -> String {
    let on_it = match gpu.mode {
        VgpuMode::Mig => instances(gpu),
        VgpuMode::HamiCore => shares(gpu),
    };
    let unhealthy = gpu.unhealthy.as_ref().map_or("", |_| " (unhealthy)");
    let to = gpu.changing_to.map(|mode| format!(" (to {mode})"));
    let to = to.unwrap_or_default();
    format!("{}: {on_it}{unhealthy}{to}", gpu.index)
}

fn instances(gpu: &Gpu) -> String {
    let mut instances: Vec<_> = gpu.instances.iter().collect();
    instances.sort_by_key(|instance| (instance.start, instance.gpu_instance_id));
    let words = instances.into_iter().map(|instance| {
        let who = match (instance.state, &instance.pod) {
            (InstanceState::InUse | InstanceState::Creating, Some(pod)) => pod,
            (InstanceState::Creating, None) => "creating",
            (InstanceState::InUse, None) => "in-use",
            (InstanceState::Idle, _) => "idle",
            (InstanceState::Foreign, _) => "foreign",
            (InstanceState::Quarantined, _) => "quarantined",
        };
        format!("{}@{}={who}", instance.profile, instance.start)
    });
    let words: Vec<String> = words.collect();
    if words.is_empty() {
        "-".to_owned()
    } else {
        words.join(" ")
    }
}

fn shares(gpu: &Gpu) -> String {
    let mut words = vec!["hami-core".to_owned()];
    words.extend(gpu.used_shares.iter().map(|share| {
        let cores = match share.cores {
            0 => String::new(),
            cores => format!("/{cores}%"),
        };
        format!("{}MiB{cores}={}", share.memory_mib, share.pod)
    }));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fixtures, gpu::UsedShare};

    fn share(number: usize, memory_mib: u64, cores: u32) -> UsedShare {
        UsedShare {
            pod: format!("default/pod-{number}"),
            pod_uid: format!("uid-{number}"),
            container: "main".into(),
            kind: ContainerKind::App,
            memory_mib,
            cores,
        }
    }

    /// Issue 12: shares are counted and named, and the column of `kubectl get` stays short with 50 pods.
    #[test]
    fn shares_are_counted_and_named_and_the_column_stays_short() {
        let model = fixtures::a100_80gb();
        let mut status = fixtures::node("n", &model, 8, VgpuMode::HamiCore);
        for number in 0..50 {
            status.gpus[number / 10]
                .used_shares
                .push(share(number, 8_000, 10));
        }
        status.gpus[5].used_shares.push(share(50, 3_000, 0));
        let mut init = share(50, 6_000, 0);
        init.kind = ContainerKind::Init;
        status.gpus[5].used_shares.push(init);
        let status = status.with_summary();
        assert_eq!(status.in_use, 51, "an init container's is not in addition");
        assert_eq!(status.summary, "5 full, 1 part, 2 free");
        // NAME, MODE, IN-USE, READY and AGE with three blanks after each.
        let others = "gpu-node-0123456789   hami-core   51       True    10d";
        assert!(others.len() + 3 + status.summary.len() <= 80);
        assert!(
            status
                .layout
                .contains("0: hami-core 8000MiB/10%=default/pod-0 8000MiB")
        );
        assert!(
            status
                .layout
                .contains("5: hami-core 3000MiB=default/pod-50")
        );
        assert!(status.layout.ends_with("7: hami-core"));
        let json = serde_json::to_value(&status).unwrap();
        let first = &json["gpus"][0]["usedShares"][0];
        let expected = serde_json::json!({ "pod": "default/pod-0", "podUid": "uid-0",
            "container": "main", "memoryMib": 8_000, "cores": 10 });
        assert_eq!(*first, expected);
        assert_eq!(
            serde_json::from_value::<GpuNodeStatus>(json).unwrap(),
            status
        );
    }

    #[test]
    fn the_layout_names_the_pods() {
        let mut status = fixtures::node("n", &fixtures::a100_80gb(), 2, VgpuMode::Mig);
        status.gpus[0].instances.push(Instance {
            profile: "1g.10gb".into(),
            start: 6,
            size: 1,
            gpu_instance_id: 13,
            uuid: Some("MIG-1".into()),
            memory_mib: 9_728,
            state: InstanceState::InUse,
            pod: Some("default/a".into()),
            pod_uid: Some("u".into()),
            container: Some("main".into()),
            reason: None,
        });
        status.gpus[1].unhealthy = Some("XID 79".into());
        status.gpus[1].changing_to = Some(VgpuMode::HamiCore);
        let status = status.with_summary();
        assert_eq!(
            status.layout,
            "0: 1g.10gb@6=default/a | 1: - (unhealthy) (to hami-core)"
        );
        assert_eq!(status.in_use, 1);
        assert_eq!(status.summary, "1 part, 1 unhealthy");
        let json = serde_json::to_string(&status).unwrap();
        assert_eq!(
            serde_json::from_str::<GpuNodeStatus>(&json).unwrap(),
            status
        );
    }
}
