-- Read how far subscriptions have got with their past events.
--   $1 subscriptions
select start.subscription_id, start.since, start.settled::text as settled,
       start.window_end::text as window_end, start.page_after,
       start.until, start.position
  from outbox.starts as start
 where start.subscription_id = any ($1::bigint[]);
