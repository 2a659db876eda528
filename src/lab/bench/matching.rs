//! Matches events against many subscriptions of which few match, without a database: the cost of each
//! subscription that does not match.

use std::{sync::Arc, time::Instant};

use serde_json::json;

use super::{
    Row, per_second,
    report::{Figure, Report},
    stage::Stage,
};
use crate::{
    delivery::SubscriptionId,
    event::{Event, Position},
    sink::Registry,
    store::SubscriptionRow,
    subscription::{Index, Subscription},
};

const FLOOR: &str = "the same events against 1 subscription";
/// Subscriptions that match an event.
const MATCHING: usize = 3;

/// The condition in which the subscriptions differ.
#[derive(Debug, Clone, Copy)]
enum By {
    Topic,
    Organization,
    Keys,
    Match,
    Filter,
    AnyFilter,
    TopicAndFilter,
}

impl By {
    const ALL: [Self; 7] = [
        Self::Topic,
        Self::Organization,
        Self::Keys,
        Self::Match,
        Self::Filter,
        Self::TopicAndFilter,
        Self::AnyFilter,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Topic => "topics",
            Self::Organization => "organization",
            Self::Keys => "keys",
            Self::Match => "match",
            Self::Filter => "a field == …",
            Self::AnyFilter => "a field in […]",
            Self::TopicAndFilter => "topics and a filter",
        }
    }

    fn subscription(self, number: usize) -> SubscriptionRow {
        let has_own_topic = matches!(self, Self::Topic | Self::TopicAndFilter);
        let topic =
            if has_own_topic { format!("shop-{number}.orders.*") } else { "shop.orders.*".to_owned() };
        SubscriptionRow {
            id: SubscriptionId(i64::try_from(number).unwrap_or_default()),
            matching: matches!(self, Self::Match).then(|| json!({ "shop": number }).into()),
            filter: match self {
                Self::Filter => Some(format!("payload.shop == {number} && payload.total > 100")),
                Self::AnyFilter => Some(format!("payload.shop in [{number}]")),
                Self::TopicAndFilter => Some("payload.total > 100 && payload.status == \"paid\"".to_owned()),
                Self::Topic | Self::Organization | Self::Keys | Self::Match => None,
            },
            organization: matches!(self, Self::Organization).then(|| format!("shop-{number}")),
            keys: matches!(self, Self::Keys).then(|| vec![format!("shop-{number}/")]),
            ..SubscriptionRow::new(&format!("shop-{number}"), &[&topic], "none", json!({}))
        }
    }

    fn event(self, number: usize) -> Event {
        let has_own_topic = matches!(self, Self::Topic | Self::TopicAndFilter);
        Event {
            id: uuid::Uuid::nil(),
            position: Position(1),
            created_at: chrono::DateTime::UNIX_EPOCH,
            topic: if has_own_topic {
                format!("shop-{number}.orders.create")
            } else {
                "shop.orders.create".to_owned()
            },
            key: Some(format!("shop-{number}/1001")),
            payload: format!(
                "{{\"id\": 1001, \"shop\": {number}, \"total\": 4200, \"status\": \"paid\", \
                 \"customer\": {{\"name\": \"Ada\", \"city\": \"Bern\"}}, \
                 \"lines\": [{{\"sku\": \"A-1\", \"count\": 2}}, {{\"sku\": \"B-2\", \"count\": 1}}], \
                 \"note\": \"left with the neighbour\"}}"
            ),
            headers: "{}".to_owned(),
            organization: Some(format!("shop-{number}")),
            source: None,
            user_id: None,
            schema_version: None,
        }
    }
}

pub(super) fn measure(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let mut figures = Vec::new();
    for by in By::ALL {
        for total in [100, stage.sizes.match_among] {
            // Filters other than equality are evaluated for each subscription, so filters per
            // second are reported.
            let (each, unit, goal) = if matches!(by, By::AnyFilter) {
                (total, "filters/s", "")
            } else {
                (1, "events/s", ">= 0.50")
            };
            let each = f64::from(u32::try_from(each)?);
            let mut figure =
                Figure::new(Row::Matching, format!("{total} subscriptions by {}", by.label()), unit, goal);
            let (one, many) = (index(by, 1), index(by, total));
            for _ in 0..stage.sizes.rounds {
                figure.floor.push(rate(by, &one, stage)?);
                figure.value.push(rate(by, &many, stage)? * each);
            }
            figures.push(figure);
        }
    }
    Ok(report.print(FLOOR, &figures)?)
}

/// An index of `total` subscriptions, of which [`MATCHING`] match the event.
fn index(by: By, total: usize) -> Index {
    let copies = if total == 1 { 0 } else { MATCHING - 1 };
    let rows = (0..total - copies).map(|number| by.subscription(number));
    let copies = (0..copies).map(|copy| SubscriptionRow {
        id: SubscriptionId(i64::try_from(total + copy).unwrap_or_default()),
        ..by.subscription(0)
    });
    Index::new(1, rows.chain(copies).map(|row| Arc::new(Subscription::bind(row, &Registry::default()).0)))
}

fn rate(by: By, index: &Index, stage: &Stage) -> anyhow::Result<f64> {
    let event = by.event(0);
    let began = Instant::now();
    let mut matched = 0;
    let mut wanted = 0;
    while matched < 16 || began.elapsed() < stage.sizes.match_for {
        wanted += index.find_matches(&event).wanted_by.len();
        matched += 1;
    }
    anyhow::ensure!(wanted >= usize::try_from(matched)?, "every event matches a subscription");
    Ok(per_second(matched, began.elapsed()))
}
