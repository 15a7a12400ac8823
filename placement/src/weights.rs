//! What placements are weighed by: for each model of card its potential, in the mix of profiles that is claimed.

use std::collections::{BTreeMap, HashMap};

use domain::{claim::Claim, gpu::Model, mode::VgpuMode, rule::Rule};

use crate::{
    card::Card,
    layouts::Layouts,
    mix::Mix,
    potential::{Potential, Weighing},
    rule::{fills_empty_cards, many_cards_empty, weighing},
};

/// The weights of all models of card that some node has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Weights {
    rule: Rule,
    /// How many instances of each profile are claimed.
    claimed: BTreeMap<String, u32>,
    models: Vec<WeighedModel>,
    /// For each node what its cards add to the counts, in the order of `models`.
    counts: HashMap<String, Vec<Count>>,
}

/// A model of card, and its potential in the present mix.
#[derive(Clone, Debug)]
struct WeighedModel {
    model: Model,
    layouts: Layouts,
    mix: Mix,
    weighing: Weighing,
    potential: Potential,
    /// The potential while many cards are empty, where the rule has one.
    filling: Option<Potential>,
    count: Count,
}

/// MIG cards of a model, and those of which nothing is held.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    cards: u32,
    empty: u32,
}

impl WeighedModel {
    fn new(model: Model, layouts: Layouts, mix: Mix, rule: Rule) -> Self {
        let weighing = weighing(rule).unwrap_or_default();
        let filling = fills_empty_cards(rule);
        Self {
            potential: Potential::new(&layouts, weighing, &mix),
            filling: filling.then(|| Potential::new(&layouts, Weighing::Filling, &mix)),
            model,
            layouts,
            mix,
            weighing,
            count: Count::default(),
        }
    }

    fn potential(&self) -> &Potential {
        match &self.filling {
            Some(filling) if many_cards_empty(self.count.cards, self.count.empty) => filling,
            _ => &self.potential,
        }
    }
}

impl Weights {
    /// Places by another rule from now on.
    pub(crate) fn set_rule(&mut self, rule: Rule) {
        self.rule = rule;
        for known in &mut self.models {
            let count = known.count;
            let (model, layouts) = (known.model.clone(), known.layouts.clone());
            *known = WeighedModel::new(model, layouts, known.mix.clone(), rule);
            known.count = count;
        }
    }

    /// Weighs the states of a model's cards by something else from now on; returns whether that is new.
    pub(crate) fn set_weighing(&mut self, model: &str, weighing: Weighing) -> bool {
        let mut changed = false;
        for known in &mut self.models {
            if known.model.name == model && known.weighing != weighing {
                known.weighing = weighing;
                known.potential = Potential::new(&known.layouts, weighing, &known.mix);
                changed = true;
            }
        }
        changed
    }

    /// The models of MIG cards by name, with the mix that is claimed.
    pub(crate) fn mixes(&self) -> Vec<(String, Layouts, Mix)> {
        let all = self.models.iter();
        all.map(|known| {
            (
                known.model.name.clone(),
                known.layouts.clone(),
                known.mix.clone(),
            )
        })
        .collect()
    }

    /// Adds those of the models that are new and can do MIG.
    pub(crate) fn add_models(&mut self, models: &[Model]) {
        for model in models {
            if !self.models.iter().any(|known| known.model == *model)
                && let Some(layouts) = Layouts::new(model)
            {
                let mix = Mix::of_claims(&layouts.offers, &self.claimed);
                let new = WeighedModel::new(model.clone(), layouts, mix, self.rule);
                self.models.push(new);
            }
        }
    }

    /// Counts a new claim in the mix.
    pub(crate) fn add_claim(&mut self, claim: &Claim) {
        for slot in claim.slots() {
            *self.claimed.entry(slot.profile.clone()).or_default() += 1;
        }
        self.follow_mix();
    }

    /// Counts a claim that is gone in the mix.
    pub(crate) fn remove_claim(&mut self, claim: &Claim) {
        for slot in claim.slots() {
            if let Some(count) = self.claimed.get_mut(&slot.profile) {
                *count = count.saturating_sub(1);
            }
        }
        self.follow_mix();
    }

    /// Weighs the windows again where the mix has changed.
    fn follow_mix(&mut self) {
        for known in &mut self.models {
            let mix = Mix::of_claims(&known.layouts.offers, &self.claimed);
            if mix != known.mix {
                known.potential = Potential::new(&known.layouts, known.weighing, &mix);
                known.mix = mix;
            }
        }
    }

    /// What the cards of a node add to the counts, in the order of the models.
    pub(crate) fn count(&self, cards: &[Card<'_>]) -> Vec<Count> {
        let mut counts = vec![Count::default(); self.models.len()];
        for card in cards {
            let known = self.models.iter().position(|m| m.model == *card.model);
            if let Some(known) = known
                && card.gpu.mode == VgpuMode::Mig
            {
                counts[known].cards += 1;
                counts[known].empty += u32::from(card.is_idle());
            }
        }
        counts
    }

    /// Counts the cards of a node anew.
    pub(crate) fn set_counts(&mut self, node: &str, counts: Vec<Count>) {
        let before = self.counts.remove(node).unwrap_or_default();
        for (at, known) in self.models.iter_mut().enumerate() {
            let old = before.get(at).copied().unwrap_or_default();
            known.count.cards = known.count.cards - old.cards + counts[at].cards;
            known.count.empty = known.count.empty - old.empty + counts[at].empty;
        }
        if counts.iter().any(|count| count.cards > 0) {
            self.counts.insert(node.to_owned(), counts);
        }
    }

    /// What placements on the cards of a model cost; none for a model without MIG.
    pub(crate) fn potential(&self, model: &Model) -> Option<&Potential> {
        let known = self.models.iter().find(|known| known.model == *model)?;
        Some(known.potential())
    }
}

#[cfg(test)]
mod tests {
    use crate::cluster::Cluster;
    use domain::{
        config::Config,
        fixtures::{self, demand as one},
        mode::VgpuMode,
        rule::Rule,
    };

    #[test]
    fn no_slice_is_wasted_while_many_cards_are_empty_and_the_counts_follow() {
        let mut cluster = Cluster::default();
        for name in ["a", "b", "c"] {
            let node = fixtures::node(name, &fixtures::a100_80gb(), 8, VgpuMode::Mig);
            cluster.apply_node(name, node);
        }
        let start = |cluster: &Cluster| {
            let plan = cluster.plan("a", &one(8_000), &Config::default()).unwrap();
            plan.claim.slots().next().unwrap().start
        };
        assert_eq!(start(&cluster), 0, "6 would waste slice 7");
        for (at, node) in ["b", "c"].repeat(8).into_iter().enumerate() {
            let whole = cluster
                .plan(node, &one(80_000), &Config::default())
                .unwrap();
            cluster.apply_pod(&at.to_string(), node, whole.claim);
        }
        assert_ne!(start(&cluster), 0, "8 empty cards are few");
        for pod in 0..8 {
            cluster.remove_pod(&pod.to_string());
        }
        assert_eq!(start(&cluster), 0);
        let mut fixed = cluster.clone();
        fixed.set_rule(Rule::Fixed);
        assert_ne!(start(&fixed), 0, "that rule knows no filling");
        cluster.remove_node("b");
        cluster.remove_node("c");
        assert_ne!(start(&cluster), 0);
    }
}
