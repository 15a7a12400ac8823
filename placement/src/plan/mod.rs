//! Plans a whole pod on one node: which card, which profile, which start, for every device of every container.

use std::collections::BTreeMap;

use crate::card::{Candidate, Card};
use domain::{
    claim::{Claim, ClaimedDevice, ContainerClaim, Share, Slot},
    config::{Config, Geometry},
    demand::{ContainerDemand, ContainerKind, Demand, Memory, Policy},
    gpu::{InstanceState, Model, Offer},
    mode::VgpuMode,
    refusal::{Needs, Refusal},
    slices::Slices,
};

/// How a node would serve a demand.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The devices of each container.
    pub claim: Claim,
    /// The mode of all of them.
    pub mode: VgpuMode,
    /// How well the mode suits the request; lower is better.
    pub suitability: Suitability,
    /// Devices that are of a larger memory size than the smallest sufficient one, because that is full.
    pub larger: u32,
    /// Future capacity that the plan destroys, in cards.
    pub loss: f64,
    /// Whether a card has to change its mode for it, which takes a while.
    pub changes_mode: bool,
    /// The part of the node's cards that is held already, 0 to 1.
    pub used: f64,
}

/// How well a mode suits a request, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Suitability {
    /// Isolated, and at least half of each instance is asked for.
    CloseInstance,
    /// Not isolated, but nothing wasted.
    Share,
    /// Isolated, with more than half of an instance unasked for.
    LooseInstance,
}

/// Plans tried for one pod before giving up; a pod of a few devices needs a few dozen.
const SEARCH_STEPS: u32 = 20_000;

/// Plans the demand on a node with these cards.
///
/// Deterministic: the same cards in the same order give the same plan. Running instances are never
/// moved; a larger memory size than the smallest sufficient one is taken only where the pod or the
/// settings allow it, and no card of the node has room for the right one.
///
/// # Errors
/// The [`Refusal`] names the scarce thing.
pub fn plan(cards: &[Card<'_>], demand: &Demand, config: &Config) -> Result<Plan, Refusal> {
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
    let used = cards.iter().map(Card::used).sum::<f64>()
        / f64::from(u32::try_from(cards.len()).unwrap_or(u32::MAX));
    let in_mode = |mode: VgpuMode| -> Result<Plan, Refusal> {
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
            match Search::new(staying.clone(), demand, config, mode).run() {
                Ok(plan) => return Ok(Plan { used, ..plan }),
                Err(refusal) => refusal,
            }
        };
        // Idle cards that change their mode by demand count as if they had: their instances, all idle, will be gone.
        let willing = usable.iter().filter(|card| {
            let gpu = card.gpu;
            gpu.auto_mode && gpu.mode != mode && gpu.changing_to.is_none() && card.is_idle()
        });
        let more: Vec<Card<'_>> = willing.map(|card| (**card).clone()).collect();
        if more.is_empty() {
            return Err(refusal);
        }
        let both = [staying, more].concat();
        let plan = Search::new(both, demand, config, mode).run();
        let plan = plan.map_err(|_| refusal)?;
        Ok(Plan {
            used,
            changes_mode: true,
            ..plan
        })
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
        (Err(Refusal::Mode(_)), Err(refusal)) | (Err(refusal), Err(Refusal::Mode(_))) => {
            Err(refusal)
        }
        (Err(mig), Err(hami_core)) => Err(Refusal::Both(Box::new(mig), Box::new(hami_core))),
    }
}

/// One device to find, of the container at `container`.
#[derive(Clone, Copy)]
struct Need {
    container: usize,
    device: usize,
}

/// One way to place one device.
struct DeviceChoice<'a> {
    /// MiB above the smallest sufficient size.
    larger: u64,
    /// Which of the known geometries it takes the card to.
    geometry: usize,
    /// The wish for fuller or emptier cards, lower is better.
    order: f64,
    loss: f64,
    card: usize,
    piece: Piece<'a>,
}

/// What a choice takes of its card.
enum Piece<'a> {
    Mig(Candidate<'a>),
    HamiCore { mem: u64, cores: u32 },
}

/// The state of one planning: the cards with what this pod takes of them so far.
struct Search<'a> {
    cards: Vec<Card<'a>>,
    demand: &'a Demand,
    config: &'a Config,
    mode: VgpuMode,
    placed: BTreeMap<(usize, usize), ClaimedDevice>,
    loss: f64,
    larger: u32,
    steps: u32,
}

impl<'a> Search<'a> {
    fn new(cards: Vec<Card<'a>>, demand: &'a Demand, config: &'a Config, mode: VgpuMode) -> Self {
        Self {
            cards,
            demand,
            config,
            mode,
            placed: BTreeMap::new(),
            loss: 0.0,
            larger: 0,
            steps: 0,
        }
    }

    fn run(mut self) -> Result<Plan, Refusal> {
        let containers = &self.demand.containers;
        for container in containers {
            self.check_size(container)?;
        }
        // What runs together first, the largest first: it has the fewest places.
        let mut together: Vec<Need> = Self::needs(containers, |kind| kind != ContainerKind::Init);
        together
            .sort_by_key(|need| std::cmp::Reverse(self.smallest_mib(&containers[need.container])));
        let start = self.cards.clone();
        if !self.search(&together) {
            self.cards = start;
            return Err(self.occupied(&together));
        }
        let before_inits = self.cards.clone();
        for (at, container) in containers.iter().enumerate() {
            if container.kind == ContainerKind::Init {
                self.place_init(at, &before_inits, &start)?;
            }
        }
        Ok(self.finish())
    }

    fn needs(containers: &[ContainerDemand], which: impl Fn(ContainerKind) -> bool) -> Vec<Need> {
        containers
            .iter()
            .enumerate()
            .filter(|(_, container)| which(container.kind))
            .flat_map(|(at, container)| {
                (0..container.count as usize).map(move |device| Need {
                    container: at,
                    device,
                })
            })
            .collect()
    }

    /// Refuses what no card here could ever serve.
    fn check_size(&self, demand: &ContainerDemand) -> Result<(), Refusal> {
        let too_large = || Refusal::TooLarge {
            asked: demand.memory,
            largest_mib: self.largest_mib(),
        };
        match self.mode {
            VgpuMode::HamiCore => {
                let fits = |card: &Card<'_>| share_mib(demand, card.model) <= card.model.memory_mib;
                if self.cards.iter().any(fits) {
                    Ok(())
                } else {
                    Err(too_large())
                }
            }
            VgpuMode::Mig => {
                let enough_memory = |card: &Card<'_>| {
                    card.model
                        .offers
                        .iter()
                        .any(|offer| self.has_memory(demand, card.model, offer))
                };
                if !self.cards.iter().any(enough_memory) {
                    return Err(too_large());
                }
                if self
                    .cards
                    .iter()
                    .all(|card| self.offers(demand, card.model).is_empty())
                {
                    return Err(Refusal::Cores {
                        asked: demand.cores,
                    });
                }
                Ok(())
            }
        }
    }

    fn largest_mib(&self) -> u64 {
        self.cards
            .iter()
            .map(|card| match self.mode {
                VgpuMode::HamiCore => card.model.memory_mib,
                VgpuMode::Mig => {
                    let offers = card.model.offers.iter();
                    let usable = offers.filter(|o| self.is_in_a_geometry(card.model, o));
                    usable.map(|o| o.memory_mib).max().unwrap_or(0)
                }
            })
            .max()
            .unwrap_or(0)
    }

    fn has_memory(&self, demand: &ContainerDemand, model: &Model, offer: &Offer) -> bool {
        if !offer.is_plain() || !self.is_in_a_geometry(model, offer) {
            return false;
        }
        let asked = match demand.memory {
            Memory::Whole => return model.whole().is_some_and(|whole| whole == offer),
            Memory::Mib(mib) => mib,
            Memory::Percent(percent) => percent_of(model, percent),
        };
        offer.memory_mib >= asked
            || (self.config.nominal_memory && offer.nominal_mib().is_some_and(|mib| mib >= asked))
    }

    /// Whether the settings let the model's cards be cut so that such an instance is among the pieces.
    fn is_in_a_geometry(&self, model: &Model, offer: &Offer) -> bool {
        let known = self.config.geometries(model);
        known.is_none_or(|known| {
            let names = |geometry: &&Geometry| geometry.0.iter().any(|i| i.name == offer.profile);
            known.iter().any(names)
        })
    }

    /// The offers that serve the demand, of any memory size.
    fn sufficient(&self, demand: &ContainerDemand, model: &'a Model) -> Vec<&'a Offer> {
        let enough = |offer: &&Offer| {
            self.has_memory(demand, model, offer) && model.cores_percent(offer) >= demand.cores
        };
        model.offers.iter().filter(enough).collect()
    }

    /// The offers that serve the demand with the smallest sufficient memory size.
    fn offers(&self, demand: &ContainerDemand, model: &'a Model) -> Vec<&'a Offer> {
        let mut enough = self.sufficient(demand, model);
        let smallest = enough.iter().map(|offer| offer.memory_mib).min();
        enough.retain(|offer| Some(offer.memory_mib) == smallest);
        enough
    }

    fn smallest_mib(&self, demand: &ContainerDemand) -> u64 {
        let of = |card: &Card<'a>| match self.mode {
            VgpuMode::HamiCore => Some(share_mib(demand, card.model)),
            VgpuMode::Mig => self
                .offers(demand, card.model)
                .first()
                .map(|o| o.memory_mib),
        };
        self.cards.iter().filter_map(of).min().unwrap_or(0)
    }

    /// Finds places for all needs, with backtracking.
    fn search(&mut self, needs: &[Need]) -> bool {
        let Some((need, rest)) = needs.split_first() else {
            return true;
        };
        for choice in self.choices(*need) {
            let device = self.device(&choice);
            let DeviceChoice {
                card, loss, larger, ..
            } = choice;
            self.steps += 1;
            if self.steps > SEARCH_STEPS {
                return false;
            }
            self.take(card, &device);
            self.placed
                .insert((need.container, need.device), device.clone());
            self.loss += loss;
            self.larger += u32::from(larger > 0);
            if self.search(rest) {
                return true;
            }
            self.loss -= loss;
            self.larger -= u32::from(larger > 0);
            self.placed.remove(&(need.container, need.device));
            self.give_back(card, &device);
        }
        false
    }

    /// Every way to place one device, best first.
    fn choices(&self, need: Need) -> Vec<DeviceChoice<'a>> {
        let demand = &self.demand.containers[need.container];
        let mut choices: Vec<DeviceChoice<'a>> = Vec::new();
        for (at, card) in self.cards.iter().enumerate() {
            let order = match self.demand.gpu_policy {
                Some(Policy::Binpack) => -card.used(),
                Some(Policy::Spread) => card.used(),
                None => 0.0,
            };
            match self.mode {
                VgpuMode::Mig => {
                    let right = self.offers(demand, card.model);
                    let smallest = right.first().map_or(0, |offer| offer.memory_mib);
                    let offers = if self.demand.allow_larger {
                        self.sufficient(demand, card.model)
                    } else {
                        right
                    };
                    let geometries = self.config.geometries(card.model);
                    for candidate in card.candidates(&offers) {
                        let geometry = match &geometries {
                            Some(known) => first_geometry(known, card, &candidate),
                            None => Some(0),
                        };
                        if let Some(geometry) = geometry {
                            choices.push(DeviceChoice {
                                larger: candidate.offer.memory_mib.saturating_sub(smallest),
                                geometry,
                                order,
                                loss: candidate.loss,
                                card: at,
                                piece: Piece::Mig(candidate),
                            });
                        }
                    }
                }
                VgpuMode::HamiCore => {
                    let taken = self
                        .placed
                        .range((need.container, 0)..(need.container + 1, 0))
                        .any(|(_, device)| device.gpu() == card.gpu.uuid);
                    if let Some(share) = free_share(card, demand).filter(|_| !taken) {
                        let (mem, cores) = share;
                        let part = part_of_card(mem, cores, card.model);
                        // Without a wish the fullest card first: whole cards stay free.
                        let loss = part * (2.0 - card.used());
                        choices.push(DeviceChoice {
                            larger: 0,
                            geometry: 0,
                            order,
                            loss,
                            card: at,
                            piece: Piece::HamiCore { mem, cores },
                        });
                    }
                }
            }
        }
        choices.sort_by(|a, b| {
            a.larger
                .cmp(&b.larger)
                .then(a.order.total_cmp(&b.order))
                .then(a.geometry.cmp(&b.geometry))
                .then(a.loss.total_cmp(&b.loss))
                .then(a.card.cmp(&b.card))
        });
        choices
    }

    fn device(&self, choice: &DeviceChoice<'a>) -> ClaimedDevice {
        let card = &self.cards[choice.card];
        match &choice.piece {
            Piece::Mig(candidate) => ClaimedDevice::Mig(slot(card, candidate)),
            Piece::HamiCore { mem, cores } => ClaimedDevice::HamiCore(Share {
                gpu: card.gpu.uuid.clone(),
                mem: *mem,
                cores: *cores,
            }),
        }
    }

    fn take(&mut self, card: usize, device: &ClaimedDevice) {
        let card = &mut self.cards[card];
        match device {
            ClaimedDevice::Mig(slot) => card.hold(slot.slices(), slot.profile.clone()),
            ClaimedDevice::HamiCore(share) => {
                card.used_shares.count += 1;
                card.used_shares.mem += share.mem;
                card.used_shares.cores += share.cores;
            }
        }
    }

    fn give_back(&mut self, card: usize, device: &ClaimedDevice) {
        let card = &mut self.cards[card];
        match device {
            ClaimedDevice::Mig(slot) => card.undo(slot.slices()),
            ClaimedDevice::HamiCore(share) => {
                card.used_shares.count -= 1;
                card.used_shares.mem -= share.mem;
                card.used_shares.cores -= share.cores;
            }
        }
    }

    /// Places an ordinary init container: it runs alone but for the sidecars started before it, so it may use an
    /// application container's device where the size is enough, or stand on slices that the pod holds anyway.
    fn place_init(
        &mut self,
        at: usize,
        with_apps: &[Card<'a>],
        without_pod: &[Card<'a>],
    ) -> Result<(), Refusal> {
        let containers = &self.demand.containers;
        let demand = &containers[at];
        // Beside the init container only the pod's sidecars run.
        let mut beside = without_pod.to_vec();
        let mut lendable: Vec<ClaimedDevice> = Vec::new();
        for ((container, _), device) in &self.placed {
            match containers[*container].kind {
                ContainerKind::Sidecar => {
                    let card = beside.iter_mut().find(|card| card.gpu.uuid == device.gpu());
                    if let Some(card) = card {
                        hold(card, device);
                    }
                }
                ContainerKind::App => lendable.push(device.clone()),
                ContainerKind::Init => {}
            }
        }
        lendable.sort_by_key(device_mib);
        for index in 0..demand.count as usize {
            let fits = |device: &ClaimedDevice| {
                let card = with_apps.iter().find(|card| card.gpu.uuid == device.gpu());
                card.is_some_and(|card| self.serves(demand, card.model, device))
            };
            let taken_here = |device: &ClaimedDevice, this: &Self| {
                this.mode == VgpuMode::HamiCore
                    && this
                        .placed
                        .range((at, 0)..(at + 1, 0))
                        .any(|(_, own)| own.gpu() == device.gpu())
            };
            let lent = lendable
                .iter()
                .position(|device| fits(device) && !taken_here(device, self))
                .filter(|&position| {
                    let device = &lendable[position];
                    beside
                        .iter()
                        .find(|card| card.gpu.uuid == device.gpu())
                        .is_some_and(|card| match device {
                            ClaimedDevice::Mig(slot) => !card.slices().overlaps(slot.slices()),
                            ClaimedDevice::HamiCore(_) => true,
                        })
                })
                .map(|position| lendable.remove(position));
            let device = if let Some(device) = lent {
                device
            } else {
                let need = Need {
                    container: at,
                    device: index,
                };
                let own = Self {
                    cards: beside.clone(),
                    demand: self.demand,
                    config: self.config,
                    mode: self.mode,
                    placed: self.placed.clone(),
                    loss: 0.0,
                    larger: 0,
                    steps: 0,
                };
                let best = own
                    .choices(need)
                    .into_iter()
                    .min_by(|a, b| {
                        let new = |choice: &DeviceChoice<'a>| self.new_slices(&own.device(choice));
                        a.larger
                            .cmp(&b.larger)
                            .then(new(a).cmp(&new(b)))
                            .then(a.loss.total_cmp(&b.loss))
                    })
                    .ok_or_else(|| own.occupied(&[need]))?;
                self.larger += u32::from(best.larger > 0);
                let device = own.device(&best);
                if self.new_slices(&device) > 0 {
                    self.loss += best.loss;
                }
                device
            };
            if let Some(card) = beside.iter_mut().find(|card| card.gpu.uuid == device.gpu()) {
                hold(card, &device);
            }
            if let Some(card) = self
                .cards
                .iter_mut()
                .find(|card| card.gpu.uuid == device.gpu())
                && let ClaimedDevice::Mig(slot) = &device
            {
                card.hold(slot.slices(), slot.profile.clone());
            }
            self.placed.insert((at, index), device);
        }
        Ok(())
    }

    /// Whether a device that is placed already would serve the demand too.
    fn serves(&self, demand: &ContainerDemand, model: &Model, device: &ClaimedDevice) -> bool {
        match device {
            ClaimedDevice::Mig(slot) => model.offer(&slot.profile).is_some_and(|offer| {
                self.has_memory(demand, model, offer) && model.cores_percent(offer) >= demand.cores
            }),
            ClaimedDevice::HamiCore(share) => {
                share.mem >= share_mib(demand, model)
                    && (share.cores == 0 || (demand.cores > 0 && share.cores >= demand.cores))
            }
        }
    }

    /// Slices of a device that the pod does not hold yet.
    fn new_slices(&self, device: &ClaimedDevice) -> u32 {
        let Some(slot) = device.slot() else { return 0 };
        let held: Slices = self
            .placed
            .values()
            .filter_map(ClaimedDevice::slot)
            .filter(|held| held.gpu == slot.gpu)
            .map(Slot::slices)
            .collect();
        slot.slices().minus(held).count()
    }

    fn finish(self) -> Plan {
        let mut closest = 1.0f64;
        let containers: Vec<ContainerClaim> = self
            .demand
            .containers
            .iter()
            .enumerate()
            .map(|(at, container)| ContainerClaim {
                name: container.name.clone(),
                kind: container.kind,
                devices: self
                    .placed
                    .range((at, 0)..(at + 1, 0))
                    .map(|(_, device)| device.clone())
                    .collect(),
            })
            .collect();
        for ((container, _), device) in &self.placed {
            let demand = &self.demand.containers[*container];
            let card = self.cards.iter().find(|card| card.gpu.uuid == device.gpu());
            if let (Some(card), Some(slot), true) =
                (card, device.slot(), demand.kind != ContainerKind::Init)
                && let Some(offer) = card.model.offer(&slot.profile)
            {
                closest = closest.min(closeness(demand, card.model, offer));
            }
        }
        Plan {
            claim: Claim { containers },
            mode: self.mode,
            suitability: match self.mode {
                VgpuMode::HamiCore => Suitability::Share,
                VgpuMode::Mig if closest >= 0.5 => Suitability::CloseInstance,
                VgpuMode::Mig => Suitability::LooseInstance,
            },
            larger: self.larger,
            loss: self.loss,
            changes_mode: false,
            used: 0.0,
        }
    }

    /// The refusal for needs that found no place now: what was wanted and what would fit.
    fn occupied(&self, needs: &[Need]) -> Refusal {
        let mut counted: BTreeMap<usize, u32> = BTreeMap::new();
        for need in needs {
            *counted.entry(need.container).or_default() += 1;
        }
        let mut wanted = Vec::new();
        let mut needs: Option<Needs> = None;
        for (container, count) in counted {
            let demand = &self.demand.containers[container];
            let what = match self.mode {
                VgpuMode::Mig => {
                    let mut names: Vec<_> = self
                        .cards
                        .iter()
                        .flat_map(|card| self.offers(demand, card.model))
                        .map(|offer| offer.profile.clone())
                        .collect();
                    names.sort();
                    names.dedup();
                    let fragmented = self.cards.iter();
                    needs = needs.or(fragmented
                        .filter_map(|card| self.needs_of(demand, card))
                        .min_by_key(|needs| needs.holders.len()));
                    names.join(" or ")
                }
                VgpuMode::HamiCore => format!("{} MiB", self.smallest_mib(demand)),
            };
            let what = if count == 1 {
                what
            } else {
                format!("{count} x {what}")
            };
            if !wanted.contains(&what) {
                wanted.push(what);
            }
        }
        let fits = self.largest_fit();
        Refusal::Occupied {
            wanted: wanted.join(" + "),
            // Where no profile may start at all the card is full: its last slice has no compute slice.
            needs: needs.filter(|_| fits.is_some()),
            fits,
        }
    }

    /// What the demand needs of a card that has as many free slices, but not side by side where they must be.
    fn needs_of(&self, demand: &ContainerDemand, card: &Card<'a>) -> Option<Needs> {
        let held = card.slices();
        let free = u32::from(card.model.memory_slices).saturating_sub(held.count());
        let offers = self.offers(demand, card.model);
        let size = offers.first()?.size;
        let blocked = offers.iter().all(|o| card.free_starts(o).next().is_none());
        if !blocked || free < u32::from(size) {
            return None;
        }
        let mut starts: Vec<u8> = offers.iter().flat_map(|o| o.starts.clone()).collect();
        starts.sort_unstable();
        starts.dedup();
        let in_the_way = |window: Slices| -> Vec<String> {
            let live = card.gpu.instances.iter();
            let live =
                live.filter(|i| i.state != InstanceState::Idle && i.slices().overlaps(window));
            let mut names: Vec<String> = live
                .map(|instance| match (&instance.pod, instance.state) {
                    (Some(pod), _) => pod.clone(),
                    (None, InstanceState::Quarantined) => "a quarantined instance".to_owned(),
                    (None, _) => "a foreign instance".to_owned(),
                })
                .collect();
            names.sort();
            names.dedup();
            names
        };
        let windows = starts.iter().map(|start| Slices::span(*start, size));
        let holders = windows.map(in_the_way).min_by_key(Vec::len);
        Some(Needs {
            slices: size,
            starts,
            holders: holders.unwrap_or_default(),
        })
    }

    /// The largest single device that would fit now, in words.
    fn largest_fit(&self) -> Option<String> {
        match self.mode {
            VgpuMode::Mig => self
                .cards
                .iter()
                .flat_map(|card| card.model.offers.iter().map(move |offer| (card, offer)))
                .filter(|(card, offer)| {
                    let known = self.config.geometries(card.model);
                    let allowed = |candidate: &Candidate<'_>| {
                        known
                            .as_ref()
                            .is_none_or(|known| first_geometry(known, card, candidate).is_some())
                    };
                    offer.is_plain() && card.candidates(&[offer]).iter().any(allowed)
                })
                .max_by_key(|(_, offer)| (offer.memory_mib, offer.multiprocessors))
                .map(|(_, offer)| format!("{}, {} MiB", offer.profile, offer.memory_mib)),
            VgpuMode::HamiCore => self
                .cards
                .iter()
                .filter(|card| card.used_shares.count < card.gpu.max_shares)
                .map(|card| card.model.memory_mib.saturating_sub(card.used_shares.mem))
                .max()
                .filter(|mib| *mib > 0)
                .map(|mib| format!("{mib} MiB")),
        }
    }
}

/// The first of the known geometries to which the card can still be brought after the placement.
fn first_geometry(
    known: &[&Geometry],
    card: &Card<'_>,
    candidate: &Candidate<'_>,
) -> Option<usize> {
    let taken = card
        .slices()
        .union(Slices::span(candidate.start, candidate.offer.size));
    known.iter().position(|geometry| {
        let mut rest = geometry.offers(card.model);
        let live = card.profiles().chain([candidate.offer.profile.as_str()]);
        for profile in live {
            let Some(at) = rest.iter().position(|offer| offer.profile == profile) else {
                return false;
            };
            rest.remove(at);
        }
        rest.sort_by_key(|offer| std::cmp::Reverse(offer.size));
        can_stand(&rest, taken)
    })
}

/// Whether these instances, the largest first, find places beside what is taken.
fn can_stand(offers: &[&Offer], taken: Slices) -> bool {
    let Some((offer, rest)) = offers.split_first() else {
        return true;
    };
    offer
        .windows()
        .any(|window| !window.overlaps(taken) && can_stand(rest, taken.union(window)))
}

fn hold(card: &mut Card<'_>, device: &ClaimedDevice) {
    match device {
        ClaimedDevice::Mig(slot) => card.hold(slot.slices(), slot.profile.clone()),
        ClaimedDevice::HamiCore(share) => {
            card.used_shares.count += 1;
            card.used_shares.mem += share.mem;
            card.used_shares.cores += share.cores;
        }
    }
}

fn device_mib(device: &ClaimedDevice) -> u64 {
    match device {
        ClaimedDevice::Mig(slot) => slot.mem,
        ClaimedDevice::HamiCore(share) => share.mem,
    }
}

fn slot(card: &Card<'_>, candidate: &Candidate<'_>) -> Slot {
    Slot {
        gpu: card.gpu.uuid.clone(),
        profile: candidate.offer.profile.clone(),
        start: candidate.start,
        size: candidate.offer.size,
        mem: candidate.offer.memory_mib,
    }
}

fn percent_of(model: &Model, percent: u32) -> u64 {
    (model.memory_mib * u64::from(percent)).div_ceil(100)
}

fn share_mib(demand: &ContainerDemand, model: &Model) -> u64 {
    match demand.memory {
        Memory::Whole => model.memory_mib,
        Memory::Mib(mib) => mib,
        Memory::Percent(percent) => percent_of(model, percent),
    }
}

/// MiB and percent of compute of the card that the demand gets, if so much is free; a whole card only when nobody is on it.
fn free_share(card: &Card<'_>, demand: &ContainerDemand) -> Option<(u64, u32)> {
    let mem = share_mib(demand, card.model);
    let cores = if demand.memory == Memory::Whole {
        100
    } else {
        demand.cores.min(100)
    };
    let fits = card.used_shares.count < card.gpu.max_shares
        && card.used_shares.mem + mem <= card.model.memory_mib
        && card.used_shares.cores + cores <= 100;
    fits.then_some((mem, cores))
}

#[allow(
    clippy::cast_precision_loss,
    reason = "memory sizes are far below 2^52"
)]
fn part_of_card(mem: u64, cores: u32, model: &Model) -> f64 {
    (mem as f64 / model.memory_mib.max(1) as f64).max(f64::from(cores) / 100.0)
}

/// The part of an instance that was asked for, in memory or compute, whichever is more.
#[allow(
    clippy::cast_precision_loss,
    reason = "memory sizes are far below 2^52"
)]
fn closeness(demand: &ContainerDemand, model: &Model, offer: &Offer) -> f64 {
    let memory = match demand.memory {
        Memory::Whole => 1.0,
        Memory::Mib(mib) => mib as f64 / offer.memory_mib.max(1) as f64,
        Memory::Percent(percent) => {
            percent_of(model, percent) as f64 / offer.memory_mib.max(1) as f64
        }
    };
    let cores = f64::from(demand.cores) / f64::from(model.cores_percent(offer).max(1));
    memory.max(cores)
}
