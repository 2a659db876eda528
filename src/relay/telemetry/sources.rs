//! The metrics of several relays on one page: each family once, with the samples of all. Pure.

use std::{collections::HashMap, fmt::Write as _};

/// Last line of a page.
const END: &str = "# EOF";

/// One family: its description, and its samples.
#[derive(Debug, Default)]
struct Family<'p> {
    head: Vec<&'p str>,
    samples: Vec<&'p str>,
}

/// One page of all. Each page is OpenMetrics text, whose samples have labels that those of others have not.
pub(crate) fn together(pages: &[String]) -> String {
    let mut families: Vec<Family<'_>> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for page in pages {
        let (mut place, mut is_new) = (None, false);
        for line in page.lines().filter(|line| *line != END) {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let name = rest.split(' ').next().unwrap_or(rest);
                is_new = !places.contains_key(name);
                place = Some(*places.entry(name).or_insert_with(|| {
                    families.push(Family::default());
                    families.len() - 1
                }));
            }
            let Some(family) = place.and_then(|place| families.get_mut(place)) else { continue };
            match line.starts_with('#') {
                true if is_new => family.head.push(line),
                true => {}
                false => family.samples.push(line),
            }
        }
    }
    let mut together = String::new();
    for line in families.iter().flat_map(|family| family.head.iter().chain(&family.samples)) {
        // Writing to a String does not fail.
        let _ = writeln!(together, "{line}");
    }
    together.push_str(END);
    together.push('\n');
    together
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::telemetry::Telemetry;

    #[test]
    fn a_family_is_described_once_and_has_the_samples_of_all_sources() {
        let pages: Vec<String> = ["shop", "billing"].map(|name| Telemetry::of_source(name).render()).into();
        let page = together(&pages);
        let count = |text: &str| page.lines().filter(|line| line.starts_with(text)).count();
        assert_eq!(count("# TYPE pgoutbox_events_routed counter"), 1);
        assert_eq!(count("# HELP pgoutbox_events_routed "), 1);
        assert_eq!(count("pgoutbox_events_routed_total{source=\"shop\"} 0"), 1);
        assert_eq!(count("pgoutbox_events_routed_total{source=\"billing\"} 0"), 1);
        assert!(page.ends_with("# EOF\n") && count("# EOF") == 1);
        let all = |pages: &str| pages.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(all(&page), pages.iter().map(|page| all(page)).sum::<usize>());
        assert_eq!(together(&pages[..1]), pages[0], "one alone stays as it is");
    }
}
