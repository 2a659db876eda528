-- Owe past events, and move on from where they were read. Whoever comes second does nothing, and no row comes back.
--   $1 subscription   $2 worked through up to, as it was read   $3 and now   $4 positions that wait as a whole, or null
--   $5 $6 the span of their created_at
--   what has a due time of its own: $7 positions   $8 the events' created_at   $9 not before (null: at once)   $10 priorities
with moved as (
    update outbox.starts set position = $3::bigint
     where subscription_id = $1::bigint and position = $2::bigint
    returning subscription_id
),
waiting as (
    insert into outbox.backlog (subscription_id, positions, owed_since, created_from, created_until)
    select moved.subscription_id, $4::text::int8multirange, now(), $5::timestamptz, $6::timestamptz from moved where $4::text is not null
),
inserted as (
    insert into outbox.deliveries (position, created_at, subscription_id, owed_since, due_at)
    select past.position, past.created_at, moved.subscription_id, greatest(coalesce(past.deliver_after, now()), now()),
           greatest(past.deliver_after, now() - make_interval(mins => past.priority))
      from moved
     cross join unnest($7::bigint[], $8::timestamptz[], $9::timestamptz[], $10::integer[]) as past (position, created_at, deliver_after, priority)
)
select subscription_id from moved;
