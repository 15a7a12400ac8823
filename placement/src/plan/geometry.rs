//! Keeps cards to the geometries that the configuration lists for their model.

use domain::{config::Geometry, gpu::Offer, slices::Slices};

use crate::card::{Candidate, Card};

/// The first of the known geometries to which the card can still be brought after the placement.
pub(super) fn first_geometry(
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
        have_places(&rest, taken)
    })
}

/// Whether these instances, the largest first, find places beside what is taken.
fn have_places(offers: &[&Offer], taken: Slices) -> bool {
    let Some((offer, rest)) = offers.split_first() else {
        return true;
    };
    offer
        .windows()
        .any(|window| !window.overlaps(taken) && have_places(rest, taken.union(window)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Cluster;
    use domain::{
        config::{Config, GeometryInstances},
        fixtures::{self, demand as one},
        mode::VgpuMode,
        refusal::Refusal,
    };

    #[test]
    fn a_placement_that_leaves_no_place_for_the_rest_is_of_no_geometry() {
        let model = fixtures::a100_80gb();
        let node = fixtures::node("n", &model, 1, VgpuMode::Mig);
        let card = Card::new(&node.gpus[0], &model, None);
        let instances = |name: &str, count| GeometryInstances {
            name: name.to_owned(),
            count,
            ..GeometryInstances::default()
        };
        let halves = Geometry(vec![instances("3g.40gb", 2)]);
        let pairs = Geometry(vec![instances("2g.20gb", 3), instances("1g.10gb", 1)]);
        let first = |profile: &str, start| {
            let offer = model.offer(profile).unwrap();
            let candidate = Candidate {
                offer,
                start,
                loss: 0.0,
            };
            first_geometry(&[&halves, &pairs], &card, &candidate)
        };
        assert_eq!(first("3g.40gb", 0), Some(0));
        assert_eq!(first("1g.10gb", 6), Some(1));
        assert_eq!(first("1g.10gb", 0), None, "three pairs need 0 to 5");
        assert_eq!(first("7g.80gb", 0), None);
    }

    #[test]
    fn cards_are_kept_to_the_known_geometries_in_their_order_until_their_instances_fit_another() {
        let config: Config = serde_json::from_str(
            r#"{"knownMigGeometries":[{"models":["A100-SXM4-80GB"],"allowedGeometries":[
                [{"name":"2g.20gb","count":3},{"name":"1g.10gb","count":1}],
                [{"name":"3g.40gb","count":2}]]}]}"#,
        )
        .unwrap();
        let mut cluster = Cluster::default();
        let node = fixtures::node("n", &fixtures::a100_80gb(), 1, VgpuMode::Mig);
        cluster.apply_node("n", node);
        let place = |cluster: &mut Cluster, uid: &str, mib| {
            let plan = cluster.plan("n", &one(mib), &config)?;
            let slot = plan.claim.slots().next().unwrap().clone();
            cluster.apply_pod(uid, "n", plan.claim);
            Ok::<_, Refusal>((slot.profile, slot.start))
        };
        let single = place(&mut cluster, "a", 8_000).unwrap();
        assert_eq!(
            single,
            ("1g.10gb".to_owned(), 6),
            "where the three 2g.20gb still fit"
        );
        let refusal = place(&mut cluster, "b", 8_000).unwrap_err().to_string();
        assert!(refusal.contains("would fit now: 2g.20gb"), "{refusal}");
        assert!(
            place(&mut cluster, "c", 40_000).is_err(),
            "that is another geometry"
        );
        cluster.remove_pod("a");
        assert_eq!(place(&mut cluster, "c", 40_000).unwrap().0, "3g.40gb");
        let lasting = place(&mut cluster, "d", 80_000).unwrap_err();
        assert!(
            lasting.is_unresolvable(),
            "no geometry has 7g.80gb: {lasting}"
        );
    }
}
