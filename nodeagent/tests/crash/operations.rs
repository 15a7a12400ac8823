//! The operations during which the agent is killed.

use std::path::Path;

use domain::{
    gpu::{Model, Offer},
    mode::VgpuMode,
};
use nvml_sim::store::Store;

use crate::{
    agent::{Goal, output_text, run_agent},
    operation::Operation,
    support::claim,
    world::{FOREIGN, copy, two_gpus},
};

/// Creating, destroying and adopting an instance of one profile, beside a running pod's and a foreign one.
pub(crate) fn of_profile(dir: &Path, key: &str, model: &Model, offer: &Offer) -> Vec<Operation> {
    let base = dir.join("base");
    let [gpu, other] = two_gpus(&base, key, true);
    let small = model.offers.iter().find(|o| o.is_plain()).unwrap();
    let start = offer.starts[0];
    let window = offer.windows().next().unwrap();
    let mut free = small.windows().zip(&small.starts);
    // Beside it where there is space, else on the other GPU.
    let beside = match free.find(|(own, _)| !own.overlaps(window)) {
        Some((_, start)) => (0, *start),
        None => (1, *small.starts.last().unwrap()),
    };
    let bystander = claim([&gpu, &other][beside.0], small, beside.1);
    let foreign = Store::new(&base)
        .with(|state| state.gpus[1].create_at(small.profile_id, FOREIGN.1, small.size));
    assert!(foreign.unwrap().is_ok());
    let done = |dir: &Path, goal: &Goal| {
        let output = run_agent(dir, goal);
        let text = output_text(&output);
        assert!(output.status.success(), "{key} {}: {text}", offer.profile);
    };
    let own = claim(&gpu, offer, start);
    let alone = Goal::new(&[("beside", &bystander)], None);
    done(&base, &Goal::new(&[("beside", &bystander)], Some("beside")));
    let both = Goal::new(&[("beside", &bystander), ("own", &own)], Some("own"));
    let with = dir.join("with");
    copy(&base, &with);
    done(&with, &both);
    let (mut one, mut two) = (vec![FOREIGN, beside], vec![FOREIGN, beside, (0, start)]);
    one.sort_unstable();
    two.sort_unstable();
    vec![
        Operation {
            name: "create",
            base,
            goal: both.clone(),
            // The pod starts, or it was deleted in the meantime.
            after: vec![(both.clone(), two.clone()), (alone.clone(), one.clone())],
            same: one.clone(),
        },
        Operation {
            name: "destroy",
            base: with.clone(),
            goal: alone.clone(),
            after: vec![(alone, one.clone())],
            same: one,
        },
        Operation {
            name: "adopt",
            base: with,
            goal: both.clone(),
            after: vec![(both, two.clone())],
            same: two,
        },
    ]
}

/// MIG mode on and off.
pub(crate) fn of_mode(dir: &Path, key: &str) -> Vec<Operation> {
    let of = |name: &'static str, mode: VgpuMode| {
        let base = dir.join(name);
        two_gpus(&base, key, mode != VgpuMode::Mig);
        let goal = Goal {
            mode: mode.to_string(),
            ..Goal::new(&[], None)
        };
        Operation {
            name,
            base,
            goal: goal.clone(),
            after: vec![(goal, vec![])],
            same: vec![],
        }
    };
    vec![of("on", VgpuMode::Mig), of("off", VgpuMode::HamiCore)]
}
