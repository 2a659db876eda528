//! What is in a database, a line for each row, without what differs by nature: ids, and times beyond whether
//! they have come.

use pgoutbox::delivery::ranges::Ranges;
use uuid::Uuid;

use super::{Both, Millis};
use crate::model::database::NEVER;

/// Each row as it is compared.
const LINES: &str = "
    select 'page ' || lease_token || ' ' || array_to_string(subscriptions, ',') || ' '
           || array_to_string(owed::text[], ' ') || ' deaths ' || deaths || ' alone ' || alone
           || ' done ' || done::text || case when due_at <= clock_timestamp() then ' ended' else '' end
      from outbox.pages
    union all
    select 'backlog ' || subscription_id || ' ' || positions::text || ' deaths ' || deaths || ' alone '
           || alone || case when is_ordered then ' ordered' else '' end
      from outbox.backlog
    union all
    select 'delivery ' || subscription_id || ' ' || position || ' token '
           || coalesce(lease_token::text, '-') || ' attempt ' || attempt || ' unfinished ' || unfinished
           || ' repeated ' || repeated || ' key ' || coalesce(key, '-')
           || case when due_at = outbox_internal.never() then ' never'
                   when due_at <= clock_timestamp() then ' due' else ' later' end
      from outbox.deliveries
    union all
    select 'dead ' || subscription_id || ' ' || position || ' ' || reason || ' attempts ' || attempts
           || ' key ' || coalesce(key, '-')
      from outbox.dead_letters
    union all
    select 'order ' || subscription_id || ' ' || lease_token
           || case when due_at <= clock_timestamp() then ' ended' else '' end
      from outbox.order_leases
    union all
    select 'cursor ' || cursor.step || case when window_end is null then '' else ' window' end
      from outbox.cursor
    union all
    select 'unrouted ' || event.position
      from outbox.events as event, outbox.cursor
     where not pg_visible_in_snapshot(event.xid, cursor.settled)
       and not (cursor.window_end is not null
                and pg_visible_in_snapshot(event.xid, cursor.window_end)
                and event.position <= cursor.page_after)";

impl Both {
    pub(super) async fn state(&mut self) -> Vec<String> {
        let mut lines: Vec<String> = sqlx::query_scalar(LINES).fetch_all(&mut self.connection).await.unwrap();
        lines.sort_unstable();
        lines
    }

    pub(super) fn model_state(&self) -> Vec<String> {
        let (data, now) = (&self.model.data, self.model.now);
        let ended = |due: Millis| if due <= now { " ended" } else { "" };
        let token = |token: Option<Uuid>| token.map_or("-".to_owned(), |token| token.to_string());
        let mut lines = Vec::new();
        for page in data.pages.values() {
            let join = |parts: Vec<String>, with: &str| parts.join(with);
            let to = join(page.entries.iter().map(|one| one.subscription.0.to_string()).collect(), ",");
            let owed = join(page.entries.iter().map(|one| one.positions.to_string()).collect(), " ");
            let (deaths, alone, done) = (page.deaths, page.alone, sorted(&page.done));
            let end = ended(page.due);
            lines.push(format!(
                "page {} {to} {owed} deaths {deaths} alone {alone} done {done}{end}",
                page.token
            ));
        }
        for row in data.backlog.values() {
            let ordered = if row.is_ordered { " ordered" } else { "" };
            let (to, at) = (row.subscription, &row.positions);
            lines.push(format!("backlog {to} {at} deaths {} alone {}{ordered}", row.deaths, row.alone));
        }
        for row in data.deliveries.values() {
            let due = match row.due {
                NEVER => " never",
                due if due <= now => " due",
                _ => " later",
            };
            let key = row.key.as_deref().unwrap_or("-");
            lines.push(format!(
                "delivery {} {} token {} attempt {} unfinished {} repeated {} key {key}{due}",
                row.subscription,
                row.position,
                token(row.token),
                row.attempt,
                row.unfinished,
                row.repeated,
            ));
        }
        for letter in data.dead.values() {
            let key = letter.key.as_deref().unwrap_or("-");
            let (to, at) = (letter.subscription, letter.position);
            lines.push(format!("dead {to} {at} {} attempts {} key {key}", letter.reason, letter.attempts));
        }
        for (id, token, due) in self.model.order_leases() {
            lines.push(format!("order {id} {token}{}", ended(due)));
        }
        let cursor = self.model.load_cursor();
        lines.push(format!("cursor {}{}", cursor.step, if cursor.has_window() { " window" } else { "" }));
        lines.extend(self.model.unrouted().into_iter().map(|at| format!("unrouted {at}")));
        lines.sort_unstable();
        lines
    }
}

/// In ascending order, as PostgreSQL keeps it.
fn sorted(ranges: &Ranges) -> Ranges {
    ranges.iter().collect()
}
