-- Make deliveries of past events, and move on from where they were read. Whoever comes second does nothing, and no row comes
-- back.
--   $1 subscription   $2 worked through up to, as it was read   $3 and now   $4 positions   $5 the events' created_at
--   $6 not before (null: at once)   $7 priorities
with moved as (
    update outbox.starts set position = $3::bigint
     where subscription_id = $1::bigint and position = $2::bigint
    returning subscription_id
),
inserted as (
    insert into outbox.deliveries (position, created_at, subscription_id, owed_since, due_at)
    select past.position, past.created_at, moved.subscription_id, greatest(coalesce(past.deliver_after, now()), now()),
           greatest(past.deliver_after, now() - make_interval(mins => past.priority))
      from moved
     cross join unnest($4::bigint[], $5::timestamptz[], $6::timestamptz[], $7::integer[]) as past (position, created_at, deliver_after, priority)
)
select subscription_id from moved;
