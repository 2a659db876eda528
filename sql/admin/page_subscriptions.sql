-- Subscriptions by name, as many as fit a page.
--   $1 only those after this name (null: any)   $2 most rows
select subscription.id,
       subscription.name,
       subscription.topics,
       subscription.sink,
       subscription.config,
       subscription.match,
       subscription.filter,
       subscription.transform,
       subscription.schema_version,
       subscription.organization,
       subscription.keys,
       subscription.ordering,
       subscription.on_exhausted,
       subscription."coalesce",
       subscription.rate,
       subscription.retry,
       subscription.max_in_flight,
       subscription.active,
       subscription.state,
       subscription.state_reason,
       subscription.owed_until,
       exists (select from outbox.starts as start
                where start.subscription_id = subscription.id) as starting,
       subscription.resumed_at
  from outbox.subscriptions as subscription
 where $1::text is null
    or subscription.name > $1::text
 order by subscription.name
 limit $2::bigint;
