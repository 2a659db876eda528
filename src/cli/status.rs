//! `status`: one row for each subscription, those with problems first.

use std::time::Duration;

use crate::{
    admin::{DEAF, Operator, Status},
    delivery::duration,
};

use super::{config::Config, exit, moment, print};

pub(super) async fn status(operator: &mut Operator, config: &Config, json: bool) -> anyhow::Result<()> {
    if let Some(why) = operator.fenced(&config.relay.environment).await? {
        print::note!("fenced: {why}");
    }
    match config.listen_servers()? {
        None => print::note!("{}", Config::ONLY_POLLS),
        // Only an address of its own is looked at: to look takes a connection.
        Some(listen) if config.database.listen_url.is_some() => match operator.is_heard(&listen).await {
            Ok(true) => {}
            Ok(false) => print::note!("database.listen_url: {DEAF}"),
            Err(error) => print::note!("database.listen_url: {}", exit::chain(&error.into())),
        },
        Some(_) => {}
    }
    let rows = operator.subscription_status().await?;
    if json {
        print::json(&rows)?;
        return Ok(print::json(&operator.list_gateways().await?)?);
    }
    let relays = operator.list_relays().await?;
    if relays.is_empty() {
        print::note!("no relay has reported in the last minute; start one with `pgoutbox run`");
    }
    for relay in relays {
        print::note!(
            "relay {}: version {}, {} permits: {} in flight, {} unsettled; {} leased ahead",
            relay.name,
            relay.version,
            relay.permits,
            relay.in_flight,
            relay.unsettled,
            relay.leased_ahead
        );
        if let (Some(since), Some(why)) = (relay.no_progress_since, &relay.no_progress_why) {
            print::note!(
                "relay {}: no progress since {}: {}",
                relay.name,
                moment::shown(since),
                print::escaped(why)
            );
        }
    }
    for gateway in operator.list_gateways().await? {
        print::note!(
            "gateway {}: version {}, {}",
            print::escaped(&gateway.gateway),
            print::escaped(&gateway.version),
            print::counted(i64::from(gateway.connections), "client connection")
        );
    }
    let log = operator.log_status().await?;
    if let (1.., Some(age)) = (log.unrouted, log.oldest_age_seconds) {
        // Round to whole seconds.
        let age = duration::format(Duration::from_secs(age.max(0.0) as u64));
        print::note!("log: {} not routed yet, the oldest {age} old", print::counted(log.unrouted, "event"));
    }
    for (subject, problem, _) in operator.list_kept().await? {
        print::note!("{}: {}", print::escaped(&subject), print::escaped(&problem));
    }
    for (table, problem) in operator.capture_problems().await? {
        print::note!("capture of {table}: {problem}");
    }
    if rows.is_empty() {
        print::note!("no subscriptions yet; create one with outbox.subscribe(…)");
    }
    let names = [
        "SUBSCRIPTION",
        "SINK",
        "STATE",
        "BACKLOG",
        "IN FLIGHT",
        "RETRYING",
        "OLDEST",
        "DEAD LETTERS",
        "SUCCESS 15 MIN",
        "BREAKER",
    ];
    Ok(print::table(names, &rows.iter().map(cells).collect::<Vec<_>>())?)
}

fn cells(row: &Status) -> [String; 10] {
    // Round to whole seconds.
    let oldest =
        row.oldest_age_seconds.map(|seconds| duration::format(Duration::from_secs(seconds.max(0.0) as u64)));
    [
        row.name.clone(),
        row.sink.clone(),
        state(row),
        row.backlog.to_string(),
        row.in_flight.to_string(),
        row.retrying.to_string(),
        oldest.unwrap_or_default(),
        row.dead_letters.to_string(),
        row.success_rate.map(|rate| format!("{:.1} %", rate * 100.0)).unwrap_or_default(),
        row.breaker.clone(),
    ]
}

fn state(row: &Status) -> String {
    let state = match (&row.state_reason, row.paused_until) {
        (Some(reason), _) if !row.active && row.state == "ok" => format!("paused ({reason})"),
        (Some(reason), _) => format!("{} ({reason})", row.state),
        _ if row.state != "ok" && row.state != "pending" => row.state.clone(),
        _ if !row.active => "paused".to_owned(),
        (_, Some(until)) => format!("paused until {}", moment::shown(until)),
        _ => row.state.clone(),
    };
    match row.filter_errors {
        Some(errors @ 1..) => format!("{state}, {}", print::counted(errors, "filter error")),
        _ => state,
    }
}
