//! Plans a whole pod on one node: which GPU, which profile, which start, for every device of every container.
//!
//! ```text
//! plan (which cards, which mode) ──► search (all devices) ──► choices (one device) ──► fit, geometry
//!                                        └──► init, explain
//! ```

mod choices;
mod explain;
mod fit;
mod geometry;
mod init;
pub mod outcome;
mod placed;
mod search;

use domain::{config::Config, demand::Demand, mode::VgpuMode, refusal::Refusal};

use self::{fit::Fit, outcome::Plan, search::search};
use crate::card::Card;

/// Plans the demand on a node with these cards.
///
/// Deterministic: the same cards in the same order give the same plan. Running instances are never
/// moved; a larger memory size than the smallest sufficient one is taken only where the pod or the
/// configuration allows it, and no card of the node has room for the right one.
///
/// # Errors
/// The [`Refusal`] names the scarce thing.
pub fn plan(cards: &[Card<'_>], demand: &Demand, config: &Config) -> Result<Plan, Refusal> {
    let usable = usable(cards, demand)?;
    let used = cards.iter().map(Card::used).sum::<f64>()
        / f64::from(u32::try_from(cards.len()).unwrap_or(u32::MAX));
    let in_mode = |mode| {
        let fit = Fit {
            demand,
            config,
            mode,
        };
        let plan = plan_in_mode(fit, &usable)?;
        Ok(Plan { used, ..plan })
    };
    if let Some(mode) = demand.mode {
        return in_mode(mode);
    }
    match (in_mode(VgpuMode::Mig), in_mode(VgpuMode::HamiCore)) {
        (Ok(mig), Ok(hami_core))
            if (hami_core.changes_mode, hami_core.suitability)
                < (mig.changes_mode, mig.suitability) =>
        {
            Ok(hami_core)
        }
        (Ok(plan), _) | (_, Ok(plan)) => Ok(plan),
        // That no GPU works in a mode is of no interest where others work in the other one.
        (Err(Refusal::Mode(_)), Err(refusal)) | (Err(refusal), Err(Refusal::Mode(_))) => {
            Err(refusal)
        }
        (Err(mig), Err(hami_core)) => Err(Refusal::Both(Box::new(mig), Box::new(hami_core))),
    }
}

/// The healthy cards that the pod accepts.
fn usable<'c, 'a>(cards: &'c [Card<'a>], demand: &Demand) -> Result<Vec<&'c Card<'a>>, Refusal> {
    if cards.is_empty() {
        return Err(Refusal::NoGpu);
    }
    let mut usable: Vec<&Card<'_>> = cards
        .iter()
        .filter(|card| demand.gpus.accepts(&card.model.name, &card.gpu.uuid))
        .collect();
    if usable.is_empty() {
        return Err(Refusal::Model);
    }
    usable.retain(|card| card.gpu.unhealthy.is_none());
    if usable.is_empty() {
        return Err(Refusal::Unhealthy);
    }
    Ok(usable)
}

/// Plans on the cards of one mode; where that fails, also on idle cards that would change to it.
fn plan_in_mode(fit: Fit<'_>, usable: &[&Card<'_>]) -> Result<Plan, Refusal> {
    let mode = fit.mode;
    let all: Vec<_> = usable.iter().filter(|card| card.gpu.mode == mode).collect();
    let staying: Vec<Card<'_>> = all
        .iter()
        .filter(|card| card.gpu.changing_to.is_none())
        .map(|card| (**card).clone())
        .collect();
    let refusal = if staying.is_empty() {
        let to = all.iter().find_map(|card| card.gpu.changing_to);
        if all.is_empty() {
            Refusal::Mode(mode)
        } else {
            Refusal::Changing(to.unwrap_or(mode))
        }
    } else {
        match search(fit, &staying) {
            Ok(plan) => return Ok(plan),
            Err(refusal) => refusal,
        }
    };
    // They count as if they had changed: their instances, all idle, will be gone.
    let changeable = usable.iter().filter(|card| {
        let gpu = card.gpu;
        gpu.auto_mode && gpu.mode != mode && gpu.changing_to.is_none() && card.is_idle()
    });
    let changeable: Vec<Card<'_>> = changeable.map(|card| (**card).clone()).collect();
    if changeable.is_empty() {
        return Err(refusal);
    }
    let plan = search(fit, &[staying, changeable].concat()).map_err(|_| refusal)?;
    Ok(Plan {
        changes_mode: true,
        ..plan
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::{fixtures, status::GpuNodeStatus};

    fn refusal(node: &GpuNodeStatus, demand: &Demand) -> Refusal {
        let model = fixtures::a30();
        let cards: Vec<Card<'_>> = node
            .gpus
            .iter()
            .map(|gpu| Card::new(gpu, &model, None))
            .collect();
        plan(&cards, demand, &Config::default()).unwrap_err()
    }

    #[test]
    fn what_is_missing_first_is_what_is_refused() {
        let mut node = fixtures::node("n", &fixtures::a30(), 1, VgpuMode::Mig);
        let mut demand = fixtures::demand(5_000);
        demand.mode = Some(VgpuMode::HamiCore);
        let no_gpu = fixtures::node("n", &fixtures::a30(), 0, VgpuMode::Mig);
        assert_eq!(refusal(&no_gpu, &demand), Refusal::NoGpu);
        assert_eq!(refusal(&node, &demand), Refusal::Mode(VgpuMode::HamiCore));
        node.gpus[0].changing_to = Some(VgpuMode::HamiCore);
        demand.mode = None;
        assert_eq!(
            refusal(&node, &demand),
            Refusal::Changing(VgpuMode::HamiCore)
        );
        node.gpus[0].unhealthy = Some("XID 79".to_owned());
        assert_eq!(refusal(&node, &demand), Refusal::Unhealthy);
        demand.gpus.types = vec!["h100".to_owned()];
        assert_eq!(refusal(&node, &demand), Refusal::Model);
    }
}
