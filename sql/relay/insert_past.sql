-- Write past events that a subscription wants, and move on from where they were read. If another
-- relay was faster, nothing is written and no row is returned.
--   $1 subscription
--   $2 position up to which the log was read before
--   $3 position up to which it is read now
--   $4 positions for the backlog; null: none
--   $5 $6 first and last created_at of these events
--   New rows of deliveries, for events with a due time of their own:
--   $7 positions   $8 created_at of the events
--   $9 earliest time of the first attempt; null: now
--   $10 priorities
with moved as (
    update outbox.starts set position = $3::bigint
     where subscription_id = $1::bigint and position = $2::bigint
    returning subscription_id
),
waiting as (
    insert into outbox.backlog (
        subscription_id, positions, owed_since, created_from, created_until, is_ordered)
    select moved.subscription_id, $4::text::int8multirange, now(),
           $5::timestamptz, $6::timestamptz,
           exists (select from outbox.subscriptions as subscription
                    where subscription.id = moved.subscription_id
                      and subscription.ordering = 'key')
      from moved
     where $4::text is not null
),
inserted as (
    insert into outbox.deliveries (position, created_at, subscription_id, owed_since, due_at)
    select past.position, past.created_at, moved.subscription_id,
           greatest(coalesce(past.deliver_after, now()), now()),
           greatest(past.deliver_after, now() - make_interval(mins => past.priority))
      from moved
     cross join unnest($7::bigint[], $8::timestamptz[], $9::timestamptz[], $10::integer[])
           as past (position, created_at, deliver_after, priority)
)
select subscription_id from moved;
